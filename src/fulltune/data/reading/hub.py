"""Data sets of the Hugging Face hub, and folders that `save_to_disk` wrote -> rows."""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import datasets

from fulltune.base.errors import DataError
from fulltune.base.files import fingerprint, sha256
from fulltune.data.example import Row, RowFault
from fulltune.data.findings import Findings
from fulltune.data.reading.places import Place
from fulltune.data.reading.tables import own_row
from fulltune.recipe.data import Source

_MEDIA = (datasets.Image, datasets.Audio, datasets.Video)
"""Columns that are not decoded: no text is in them."""
_PART = re.compile(r"(?P<split>[^\[\]+]+)(\[(?P<start>\d*):(?P<stop>\d*)\])?")
"""What of a split a stream can give without knowing its end."""


def rows(place: Place, source: Source, findings: Findings) -> Iterator[tuple[int, Row]]:
    """Every row of the asked split with its number in it."""
    try:
        number = 0
        for number, row in enumerate(_iterated(place, source, findings), 1):
            try:
                yield number, own_row(row, f"{place.path}:{number}", findings)
            except RowFault as fault:
                findings.bad_row(f"{place.path}:{number}", fault)
    except DataError as fault:
        findings.unreadable += fault.faults
        return
    if number == 0:
        findings.bad_file(place.path, "empty_file", "the data set is empty (0 rows)", "check `split` beside the path")


def _iterated(place: Place, source: Source, findings: Findings) -> Iterator[dict[str, Any]]:
    """The rows as the library gives them; whatever stops it while reading its own files is one DataError."""
    found = loaded(place, source)
    media = [name for name, feature in (found.features or {}).items() if isinstance(feature, _MEDIA)]
    if media:
        findings.note("unused_column", f"{place.path} ({', '.join(media)})")
    try:
        yield from found.remove_columns(media) if media else found
    except Exception as fault:
        raise _cannot(place, fault) from fault


def digest(place: Place, source: Source) -> str:
    """Over every byte of the files behind the asked split; of a stream, what its files are called and their version."""
    if source.streaming:
        return _version(place, source)
    found = loaded(place, source)
    files = [Path(file["filename"]) for file in found.cache_files]
    return fingerprint([found.num_rows, [sha256(file) for file in files]])


def loaded(place: Place, source: Source) -> Any:
    """The asked split; DataError if there is none or it cannot be had."""
    try:
        if place.kind == "saved":
            return _sliced(datasets.load_from_disk(place.path), place, source.split)
        if source.streaming:
            return _streamed(place, source)
        found = datasets.load_dataset(place.path, source.name, split=source.split, revision=source.revision)
    except DataError:
        raise
    except Exception as fault:
        raise _cannot(place, fault) from fault
    return found if source.split else _sliced(found, place, None)


def _streamed(place: Place, source: Source) -> Any:
    """The asked split, or the rows [start, stop) of it, of which no more is downloaded than is read."""
    part = _PART.fullmatch("" if source.split is None else source.split)
    if source.split is not None and part is None:
        mend = "write train, train[:1000] or train[1000:2000]: of a stream nobody knows the end"
        raise DataError(f"{source.split!r} is no part of a stream", where=place.path, mend=mend)
    named = None if part is None else part["split"]
    found = datasets.load_dataset(place.path, source.name, split=named, revision=source.revision, streaming=True)
    if part is None:
        return _only(found, place) if isinstance(found, dict) else found
    start, stop = int(part["start"] or 0), part["stop"]
    found = found.skip(start) if start else found
    return found.take(max(int(stop) - start, 0)) if stop else found


def _version(place: Place, source: Source) -> str:
    """Of a data set that is not downloaded: the hub's commit."""
    try:
        builder = datasets.load_dataset_builder(place.path, source.name, revision=source.revision)
    except Exception as fault:
        raise _cannot(place, fault) from fault
    return fingerprint([builder.config.name, builder.hash])


def _only(splits: Mapping[str, Any], place: Place) -> Any:
    if len(splits) > 1:
        mend = "say `split:` beside the path"
        raise DataError(f"this data set has the splits {', '.join(splits)}", where=place.path, mend=mend)
    return next(iter(splits.values()))


def _sliced(found: Any, place: Place, split: str | None) -> Any:
    """One split of what was loaded, or the asked slice of it, such as `train[:10]`."""
    splits = dict(found) if isinstance(found, datasets.DatasetDict) else {str(found.split or "train"): found}
    if split is None:
        return _only(splits, place)
    sizes = {name: len(rows) for name, rows in splits.items()}
    try:
        parts = datasets.ReadInstruction.from_spec(split).to_absolute(sizes)
    except (ValueError, AssertionError, KeyError) as fault:
        mend = f"it has {', '.join(splits)}; a part is written {next(iter(splits))}[:10] or {next(iter(splits))}[:10%]"
        raise DataError(f"there is no split {split!r}: {fault}", where=place.path, mend=mend) from fault
    chosen = [splits[part.splitname].select(range(part.from_, part.to)) for part in parts]
    return chosen[0] if len(chosen) == 1 else datasets.concatenate_datasets(chosen)


def _cannot(place: Place, fault: Exception) -> DataError:
    told = " ".join(str(fault).split())[:300]
    if place.kind == "saved":
        what = f"this data set folder cannot be loaded: {type(fault).__name__}: {told}"
        return DataError(what, where=place.path, mend="save it again with save_to_disk, or copy it again")
    what = f"no such file here, and it cannot be loaded from the hub: {type(fault).__name__}: {told}"
    mend = "check the path or the id (org/name, `name`, `split`, `revision`); without a network it must be cached"
    return DataError(what, where=place.path, mend=mend)
