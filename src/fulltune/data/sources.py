"""A source -> rows with line numbers: which reader reads which file. What cannot be read is named."""

import codecs
import importlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from fulltune.base.errors import CheckpointError, DataError
from fulltune.base.files import fingerprint
from fulltune.data.columns import Columns
from fulltune.data.example import Row
from fulltune.data.findings import Findings
from fulltune.data.reading import cells, documents, kept, lines, opened, prose
from fulltune.data.reading.lines import LONGEST_ROW
from fulltune.data.reading.places import CELLS, TEXT, Place, places
from fulltune.recipe.data import Source

__all__ = ["LONGEST_ROW", "digest", "places", "read_rows", "whole_digest"]

_REFUSED = {b"PK\x03\x04": "a zip archive or a spreadsheet", b"%PDF": "PDF", b"\x7fELF": "a program"}
_TABLES = (b"PAR1", b"ARROW1", b"\xff\xff\xff\xff")
_PACKED = {opened.GZIP: "gzip data", opened.ZSTD: "zstd data"}


def read_rows(place: Path | Place, findings: Findings, source: Source | None = None) -> Iterator[tuple[int, Row]]:
    """Line number (from 1; where there are no lines, the row's number) and row; the rest goes to `findings`.

    What a file is, is told from its first bytes, and of texts from its name. A byte order mark, CRLF line ends, gzip
    and zstd data are understood.
    """
    if isinstance(place, Path):
        place = Place("file", str(place))
    source = source or Source(path=place.path)
    if place.kind in ("saved", "hub"):
        yield from _lazy("hub").rows(place, source, findings)
    elif place.kind == "run":
        try:
            found = kept.held(Path(place.path), source.split, source.name, whole_digest)
            yield from enumerate(_of_a_run(found, findings), 1)
        except (DataError, CheckpointError) as fault:
            findings.unreadable += fault.faults
    elif place.kind == "remote" or _readable(Path(place.path), findings):
        try:
            yield from _file(place, source, findings)
        except opened.DAMAGED as fault:
            findings.bad_file(
                place.path, "compressed", f"damaged {_packing(place)} data: {fault}", "copy the file again"
            )
        except DataError as fault:
            findings.unreadable += fault.faults
        except OSError as fault:
            what = f"it cannot be read: {fault.strerror or fault}"
            findings.bad_file(place.path, "no_file", what, "check the disk, or copy the file again")


def _of_a_run(found: Sequence[kept.Held], findings: Findings) -> Iterator[Row]:
    """The rows under the names that formats know, in the order in which their files have them."""
    for one in found:
        columns = Columns(one.source.columns, f"columns of {one.source.path}") if one.source.columns else None
        for place, lines_of in zip(one.places, one.lines, strict=True):
            for line, row in read_rows(place, findings, one.source):
                if line in lines_of:
                    yield row if columns is None else columns(row)


def digest(place: Place, source: Source) -> str:
    """Fingerprint of the bytes behind a place; nothing if they cannot be read, which is told when their turn comes."""
    try:
        if place.kind in ("saved", "hub"):
            return str(_lazy("hub").digest(place, source))
        if place.kind == "run":
            found = kept.held(Path(place.path), source.split, source.name, whole_digest)
            return fingerprint([[one.sha256, [sorted(lines) for lines in one.lines]] for one in found])
        fine = place.kind == "remote" or (os.access(place.path, os.R_OK) and Path(place.path).is_file())
        return opened.digest(place) if fine else ""
    except (DataError, CheckpointError, OSError):
        return ""


def whole_digest(source: Source, read: Sequence[Place]) -> str:
    """sha256 of a source's file; of several, one over all of them."""
    digests = [digest(place, source) for place in read]
    return digests[0] if len(digests) == 1 else fingerprint(digests)


def _lazy(reader: str) -> Any:
    """A reader whose library takes long to import, so that those who need none of it do not wait."""
    return importlib.import_module(f"fulltune.data.reading.{reader}")


def _packing(place: Place) -> str:
    return opened.unpacking(place)[1]


def _readable(path: Path, findings: Findings) -> bool:
    where = str(path)
    if not path.exists():
        findings.bad_file(where, "no_file", "there is no such file", "check `path` in the data section of the recipe")
    elif not path.is_file():
        findings.bad_file(where, "no_file", "this is no file", "name a file, or a folder or pattern in the recipe")
    elif not os.access(path, os.R_OK):
        findings.bad_file(where, "no_file", "this file may not be read by you", "change its permissions")
    elif path.stat().st_size == 0:
        findings.bad_file(where, "empty_file", "the file is empty (0 rows)", "check how it was made, or remove it")
    else:
        return True
    return False


def _file(place: Place, source: Source, findings: Findings) -> Iterator[tuple[int, Row]]:
    opener, packed = opened.unpacking(place)
    if packed:
        findings.note(packed, place.path)
    with opener() as stream:
        head = stream.peek(64)[:64]
    if head.startswith(_TABLES) and not packed:
        with opened.raw(place) as raw:
            yield from _lazy("tables").rows(raw, place.path, findings)
        return
    if _is_other(head, place.path, findings):
        return
    if place.suffix in TEXT:
        yield from prose.rows(opener, place.path, findings, source.document, source.separator)
    elif lines.is_foreign_text(head, place.path, findings):
        return
    elif place.suffix in CELLS:
        with opener() as stream:
            written = cells.shape(stream, place.suffix, source.header, source.quoted)
            yield from cells.rows(stream, place.path, findings, written)
    else:
        yield from _json(opener, head, place, findings)


def _json(opener: opened.Opener, head: bytes, place: Place, findings: Findings) -> Iterator[tuple[int, Row]]:
    begin = head.removeprefix(codecs.BOM_UTF8).lstrip()
    if begin.startswith(b"["):
        findings.note("json_array", place.path)
        yield from documents.array(opener, place.path, findings)
    elif begin.startswith(b"{") and place.suffix == ".json" and documents.is_document(opener):
        yield from documents.whole(opener, place.path, findings)
    else:
        with opener() as stream:
            yield from lines.rows(stream, place.path, findings)


def _is_other(head: bytes, path: str, findings: Findings) -> bool:
    """Whether a file is of a kind that is not read."""
    tables = dict.fromkeys(_TABLES, "a Parquet or Arrow file inside compressed data")
    for magic, kind in {**_REFUSED, **_PACKED, **tables}.items():
        if head.startswith(magic):
            mend = "unpack it" if magic not in _REFUSED else "save it as JSONL, CSV or Parquet"
            findings.bad_file(f"{path}:1", "kind", f"this is {kind}, which is not read", mend)
            return True
    return False
