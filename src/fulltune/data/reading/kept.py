"""The rows of a run as a source of another one: those that it kept back, read anew from the files where they stand."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import ValidationError

from fulltune.base.errors import CheckpointError, DataError
from fulltune.base.files import read_record
from fulltune.base.records import DataFacts
from fulltune.data.findings import Findings
from fulltune.data.names import short_names
from fulltune.data.reading.places import Place, places
from fulltune.data.store import INDEX
from fulltune.recipe.data import DataSection, Source, sources
from fulltune.recipe.tree import parse

SPLITS = ("train", "heldout", "test", "retention")
WholeDigest = Callable[[Source, Sequence[Place]], str]
_MEND = "bring it back as it was, or leave this source out"


@dataclass(frozen=True, slots=True)
class Held:
    """What one source of a run gave to one of its splits."""

    name: str
    source: Source
    format: str
    places: tuple[Place, ...]
    lines: tuple[frozenset[int], ...]
    """Of each place."""
    sha256: str


def written(run: Path) -> dict[str, Any]:
    """The recipe in a run's folder as values: nothing that it names is imported. CheckpointError if it has none."""
    path = run / "recipe.yaml"
    try:
        tree = parse(path.read_text(encoding="utf-8"), str(path))
    except (OSError, UnicodeDecodeError) as fault:
        raise CheckpointError("the run's recipe cannot be read", where=str(path), mend=_MEND) from fault
    if tree.faults:
        raise CheckpointError(faults=tree.faults)
    return tree.values


def _data_of(run: Path) -> DataSection:
    try:
        return DataSection.model_validate(written(run).get("data"))
    except ValidationError as fault:
        what = f"the data section of the run's recipe cannot be read: {fault.errors()[0]['msg']}"
        raise CheckpointError(what, where=str(run / "recipe.yaml"), mend=_MEND) from fault


def held(
    run: Path, split: str | None, name: str | None, whole_digest: WholeDigest, *, local: bool = False
) -> list[Held]:
    """What a run's split is made of; `name`: one of its sources alone. `local`: nothing is asked of the network.

    DataError if there is no such split or source, or if a file is no longer what the run read.
    """
    if split not in SPLITS:
        raise DataError(
            "which rows of this run?" if split is None else f"a run has no split {split!r}",
            where=str(run),
            mend=f"`split: heldout`, or another of {', '.join(SPLITS)}",
        )
    facts = read_record(run / "data.json", DataFacts)
    data = _data_of(run)
    asked = sources(data, split) or sources(data, "train")
    there = [number for number, count in enumerate(facts.splits[split].by_source) if count]
    if not there:
        raise DataError(f"the run has no {split} data", where=str(run), mend="leave this source out")
    named = dict(zip(short_names([facts.sources[split][number].path for number in there]), there, strict=True))
    if name is not None and name not in named:
        raise DataError(f"its {split} data has no source {name!r}", where=str(run), mend=f"known: {', '.join(named)}")
    index = np.fromfile(run / "data" / split / "examples.bin", INDEX)
    found = []
    for called, number in named.items():
        if name in (None, called):
            source, known = asked[number], facts.sources[split][number]
            read = places(source, Findings())
            if local and any(place.kind in ("remote", "hub") for place in read):
                what = "lies on the network, where nothing is read that only the run's recipe names"
                raise DataError(f"{source.path} {what}", where=str(run), mend="name it in data.retention")
            _require_unchanged(source, tuple(place.path for place in read) == known.files, str(run))
            _require_unchanged(source, whole_digest(source, read) == known.sha256, str(run))
            own = index[index["source"] == number]
            lines = tuple(frozenset(own["line"][own["file"] == file].tolist()) for file in range(len(read)))
            found.append(Held(called, source, known.format, read, lines, known.sha256))
    return found


def _require_unchanged(source: Source, same: bool, run: str) -> None:
    if source.join:
        raise DataError(f"{source.path}: its documents were joined, so none stands alone", where=run, mend=_MEND)
    if not same:
        what = "is not what the run read: it changed, or is not there any more"
        raise DataError(f"{source.path} {what}", where=run, mend=_MEND)
