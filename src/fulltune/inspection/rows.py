"""Which rows of a prepared split to look at, and everything that can be said of each."""

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from fulltune.base.errors import RecipeError
from fulltune.base.records import IGNORE
from fulltune.data.spelling import Speller
from fulltune.data.store import Store
from fulltune.inspection.pieces import Piece, byte_reader, pieces, stretches


@dataclass(frozen=True, slots=True)
class Inspected:
    """One row as training sees it. `labels[i]` is the token to be predicted AT i, already shifted; -100: nothing."""

    split: str
    row: int
    """Its number in the split, from 0."""
    origin: str
    """`file:line` where it stood."""
    length: int
    """Tokens that are kept."""
    uncut: int
    """Tokens that the row would have without `data.max_length`."""
    text: str
    ids: tuple[int, ...]
    labels: tuple[int, ...]
    weights: tuple[float, ...]
    supervised: tuple[str, ...]
    """The text of each taught stretch; each is one turn of the assistant, or a whole document."""
    pieces: tuple[Piece, ...]
    """The text cut where characters and teaching begin and end."""
    spelled: tuple[str, ...]
    """Each token as the vocabulary spells it."""
    raw: tuple[bytes, ...]
    """The bytes of each token."""

    @property
    def taught(self) -> int:
        """How many tokens are taught."""
        return sum(label != IGNORE for label in self.labels)

    @property
    def truncated(self) -> bool:
        """Whether the row was cut at `data.max_length`."""
        return self.uncut > self.length

    def as_values(self) -> dict[str, Any]:
        """What a program wants to know, as plain JSON values."""
        return {
            "split": self.split,
            "row": self.row,
            "origin": self.origin,
            "text": self.text,
            "ids": list(self.ids),
            "labels": list(self.labels),
            "weights": list(self.weights),
            "supervised": list(self.supervised),
            "length": self.length,
            "truncated": self.truncated,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """Which rows of a split: a number, an origin, the longest, so many at random; else the first ones."""

    split: str = "train"
    row: int | None = None
    origin: str | None = None
    longest: bool = False
    random: int | None = None
    first: int | None = None

    def __post_init__(self) -> None:
        given = {
            "--row": self.row is not None,
            "--origin": self.origin is not None,
            "--longest": self.longest,
            "--random": self.random is not None,
            "--first": self.first is not None,
        }
        named = [name for name, there in given.items() if there]
        if len(named) > 1:
            raise RecipeError(
                f"{' and '.join(named)} exclude each other", where="inspect", mend="name the rows in one way"
            )
        for name, count in (("--random", self.random), ("--first", self.first)):
            if count is not None and count < 1:
                raise RecipeError(f"{count} rows cannot be shown", where=name, mend="name a number from 1 on")


def pick(stores: Mapping[str, Store], wanted: Wanted, *, first: int, seed: int) -> list[int]:
    """Numbers of the wanted rows; RecipeError that names what there is. `first`: how many if nothing is asked."""
    if wanted.split not in stores:
        there = ", ".join(f"{name} ({len(store):,})" for name, store in stores.items())
        raise RecipeError(
            f"there are no rows in {wanted.split!r}", where="--split", mend=f"splits that have rows: {there}"
        )
    store = stores[wanted.split]
    if wanted.row is not None:
        if not 0 <= wanted.row < len(store):
            what = f"{wanted.split} has no row {wanted.row}"
            raise RecipeError(what, where="--row", mend=f"its rows are 0 to {len(store) - 1}")
        return [wanted.row]
    if wanted.origin is not None:
        return _from(stores, wanted.split, wanted.origin)
    if wanted.longest:
        return [int(np.argmax(store.lengths))]
    if wanted.random is not None:
        order = list(range(len(store)))
        random.Random(seed).shuffle(order)  # noqa: S311 - the same rows for the same seed, and more of them for a larger number
        return sorted(order[: wanted.random])
    return list(range(min(wanted.first or first, len(store))))


def _from(stores: Mapping[str, Store], split: str, origin: str) -> list[int]:
    found = [number for number, place in _places(stores[split]) if _same(place, origin)]
    if found:
        return found
    others = [name for name, store in stores.items() if any(_same(place, origin) for _, place in _places(store))]
    if others:
        mend = f"it is in another split: --split {others[0]}"
    else:
        lines: dict[str, list[int]] = {}
        for _, place in _places(stores[split]):
            file, _, line = place.rpartition(":")
            lines.setdefault(file, []).append(int(line))
        files = "; ".join(f"{file}:{min(at)} to :{max(at)} ({len(at):,} rows)" for file, at in lines.items())
        mend = f"{split} has {files}; rows that were left out or held back are not among them"
    raise RecipeError(f"no row of {split} comes from {origin}", where="--origin", mend=mend)


def _places(store: Store) -> Iterator[tuple[int, str]]:
    return ((number, store.origin(number)) for number in range(len(store)))


def _same(place: str, origin: str) -> bool:
    """Whether an origin is meant by what a user wrote: in full, from here, or by the end of its path."""
    file, _, line = origin.rpartition(":")
    return place == origin or place.endswith(f"/{origin}") or (bool(file) and place == f"{Path(file).resolve()}:{line}")


class Reader:
    """Turns stored rows into what can be shown of them, with one tokenizer."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._decode = partial(tokenizer.decode, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        self._special = Speller(tokenizer).special_ids
        self._bytes = byte_reader(tokenizer.backend_tokenizer.decoder)

    def read(self, store: Store, split: str, row: int) -> Inspected:
        """One row of a split; `uncut` is its length until somebody knows better."""
        encoded = store[row]
        ids, labels = encoded.ids.tolist(), encoded.labels.tolist()
        # labels[i] teaches the token behind i.
        taught = [False, *(label != IGNORE for label in labels[:-1])][: len(ids)]
        made = pieces(self._decode, ids, taught, self._special)
        spelled = tuple(self._tokenizer.convert_ids_to_tokens(ids))
        return Inspected(
            split=split,
            row=row,
            origin=store.origin(row),
            length=len(ids),
            uncut=len(ids),
            text=self._decode(ids),
            ids=tuple(ids),
            labels=tuple(labels),
            weights=tuple(encoded.weights.tolist()),
            supervised=stretches(made),
            pieces=made,
            spelled=spelled,
            raw=tuple(
                piece.encode() if number in self._special else self._bytes(piece)
                for number, piece in zip(ids, spelled, strict=True)
            ),
        )


def with_uncut(rows: Sequence[Inspected], lengths: Mapping[str, int]) -> list[Inspected]:
    """The same rows, with the lengths (by origin) that they had before they were cut."""
    return [replace(row, uncut=lengths.get(row.origin, row.uncut)) for row in rows]
