"""What a source's path stands for: files, a folder of them, a pattern, an address, a saved or a hub data set."""

import itertools
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from fulltune.base.folder import is_run_folder
from fulltune.data.findings import Findings
from fulltune.recipe.data import Source
from fulltune.recipe.kinds import is_address, is_hub_id

TEXT = frozenset({".txt", ".text", ".md", ".markdown"})
CELLS = frozenset({".csv", ".tsv"})
TABLES = frozenset({".parquet", ".pq", ".arrow", ".arrows", ".feather", ".ipc"})
JSON = frozenset({".jsonl", ".ndjson", ".json"})
_PACKED = frozenset({".gz", ".zst", ".zstd"})
_PAPERS = re.compile(r"(readme|license|licence|notice|changelog|contributing|citation)\b.*", re.IGNORECASE)
"""Files that lie beside data and are none."""
_MOST_FILES = 100_000
"""Entries of a folder that are looked at. More is a home folder or a disk, named by a slip."""

Kind = Literal["file", "remote", "saved", "hub", "run"]


@dataclass(frozen=True, slots=True)
class Place:
    """One thing to be read: a local file, an address, a data set folder, a hub id or a run folder."""

    kind: Kind
    path: str

    @property
    def suffix(self) -> str:
        """The suffix in lower case that tells the kind of content; that of a compression is looked through."""
        name = Path(self.path.partition("?")[0] if self.kind == "remote" else self.path)
        return Path(name.stem).suffix.lower() if name.suffix.lower() in _PACKED else name.suffix.lower()


def places(source: Source, findings: Findings) -> tuple[Place, ...]:
    """All places of a source, in the order in which they are read; what is wrong with its path goes to `findings`."""
    found = _found(source.path, findings)
    if found:
        _all_used(source, found, findings)
    return found


def _found(named: str, findings: Findings) -> tuple[Place, ...]:
    path = Path(named)
    if is_address(named):
        return (Place("remote", named),)
    if is_hub_id(named) and not path.exists():
        return (Place("hub", named),)
    if path.is_dir() and is_run_folder(path):
        return (Place("run", named),)
    if path.is_dir():
        saved = any((path / name).is_file() for name in ("dataset_dict.json", "state.json"))
        return (Place("saved", named),) if saved else _folder(path, findings)
    if path.exists() or not re.search(r"[*?\[]", named):
        return (Place("file", named),)
    top = Path(path.anchor)
    matched = sorted(str(one) for one in top.glob(str(path.relative_to(top))) if one.is_file())
    if not matched:
        findings.bad_file(named, "no_file", "no file matches this pattern", "check `path` in the data section")
    return tuple(Place("file", one) for one in matched)


def _folder(folder: Path, findings: Findings) -> tuple[Place, ...]:
    """The data files in a folder and the folders in it, sorted; hidden ones and papers about the data are left out."""
    seen = list(itertools.islice(folder.rglob("*"), _MOST_FILES + 1))
    if len(seen) > _MOST_FILES:
        what = f"this folder has more than {_MOST_FILES:,} entries"
        findings.bad_file(str(folder), "no_file", what, "name the folder of the data itself, or a pattern")
        return ()
    made = []
    for path in sorted(seen):
        inside = path.relative_to(folder)
        if any(part.startswith((".", "_")) for part in inside.parts) or not path.is_file():
            continue
        place = Place("file", str(path))
        if place.suffix in TEXT | CELLS | TABLES | JSON and not _PAPERS.fullmatch(path.name):
            made.append(place)
        else:
            findings.note("file_left_out", str(path))
    texts = sum(place.suffix in TEXT for place in made)
    if 0 < texts < len(made):
        what = f"this folder holds {texts} plain texts and {len(made) - texts} files of rows"
        findings.bad_file(str(folder), "mixed_files", what, "name one kind by a pattern, such as folder/*.jsonl")
        return ()
    if not made:
        mend = "name a folder with JSONL, JSON, CSV, TSV, Parquet, Arrow or text files"
        findings.bad_file(str(folder), "no_file", "there are no data files in this folder", mend)
    return tuple(made)


def _all_used(source: Source, found: tuple[Place, ...], findings: Findings) -> None:
    """A fault for every option that means nothing to what was found: no setting is ignored."""
    sets = any(place.kind in ("saved", "hub", "run") for place in found)
    named = any(place.kind in ("hub", "run") for place in found)
    hub = any(place.kind == "hub" for place in found)
    suffixes = {place.suffix for place in found}
    checks = (
        ("split", source.split is not None, sets, "Hugging Face data sets and runs have splits"),
        ("name", source.name is not None, named, "data sets of the hub have configurations, and runs names of sources"),
        ("revision", source.revision is not None, hub, "data sets of the hub have revisions"),
        ("streaming", source.streaming, hub, "data sets of the hub are streamed"),
        ("document", source.document != "file", suffixes & TEXT, "plain texts (.txt, .md) are cut into documents"),
        ("separator", source.separator is not None, suffixes & TEXT, "plain texts (.txt, .md) have separators"),
        ("header", source.header is not None, suffixes & CELLS, "CSV and TSV files have a header"),
        ("quoted", source.quoted is not None, suffixes & CELLS, "CSV and TSV files have cells"),
    )
    for field, given, used, why in checks:
        if given and not used:
            what = f"`{field}` means nothing here: only {why}"
            findings.bad_file(source.path, "unused_option", what, f"leave `{field}` out")
