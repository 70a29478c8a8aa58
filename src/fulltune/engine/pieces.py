"""Tensors of a checkpoint, whichever files hold which part of them: what was saved by four ranks is read by one.

Each file says of its own tensors which part they are, in the metadata of the safetensors header; a tensor of which it
says nothing is whole. So no file lists the others, and any engine reads what any other wrote.
"""

import json
import math
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import safe_open
from torch import Tensor

from fulltune.base.errors import CheckpointError

KEY = "pieces"
"""In the metadata of a file: JSON of names to `[first row, rows of the whole]`, or of what is cut anywhere to
`[first number, numbers of the whole, shape of the whole]`.
"""


STEMS = ("weights", "optimizer", "extra")
FILES = frozenset({"weights.safetensors", "optimizer.safetensors", "optimizer.json", "extra.safetensors"})
"""What it takes to load a state, of whichever engine."""


@dataclass(frozen=True, slots=True)
class Piece:
    """Rows of a tensor: they begin at `start`, of `total`. With a `shape`: numbers of a tensor of it, as one line."""

    start: int
    total: int
    shape: tuple[int, ...] | None = None


@dataclass(frozen=True, slots=True)
class _Place:
    """Where some numbers of a tensor lie: from `first` on, counted along the whole, up to `last`."""

    first: int
    last: int
    width: int
    """Numbers of one row of what `source` slices: 1 if it is a line of them."""
    source: Any

    def read(self, start: int, stop: int) -> Tensor:
        """The numbers from `start` to `stop`, as a line; rows are read whole, which is all that a file can slice."""
        begin, end = start - self.first, stop - self.first
        row = begin // self.width
        rows = cast(Tensor, self.source[row : -(-end // self.width)])
        return rows.reshape(-1)[begin - row * self.width : end - row * self.width]


def part(total: int, shards: int, number: int) -> slice:
    """Which of so many rows the shard of this number has: fully_shard cuts as torch.chunk does."""
    each = -(-total // shards)
    return slice(min(number * each, total), min((number + 1) * each, total))


def file_of(stem: str, number: int) -> str:
    """The name of a rank's file; the first has the plain one."""
    return f"{stem}.safetensors" if number == 0 else f"{stem}-{number:05d}.safetensors"


def metadata(pieces: Mapping[str, Piece]) -> dict[str, str]:
    """What a file says of its tensors."""
    said = {name: [p.start, p.total, *([] if p.shape is None else [p.shape])] for name, p in pieces.items()}
    return {KEY: json.dumps(said)} if said else {}


class Pieces:
    """All files of one stem in a folder, opened; numbers are read when they are asked for."""

    def __init__(self, folder: Path, stem: str) -> None:
        self._folder = folder
        self._places: dict[str, list[_Place]] = defaultdict(list)
        self._shapes: dict[str, tuple[int, ...]] = {}
        for path in sorted(folder.glob(f"{stem}.safetensors")) + sorted(folder.glob(f"{stem}-*.safetensors")):
            file: Any = safe_open(path, "pt")
            said = json.loads((file.metadata() or {}).get(KEY, "{}"))
            for name in file.keys():  # noqa: SIM118 - it is no mapping
                self._add(name, file.get_slice(name), said.get(name))
        for places in self._places.values():
            places.sort(key=lambda place: place.first)

    def _add(self, name: str, source: Any, said: list[Any] | None) -> None:
        here = tuple(source.get_shape())
        if said is None:
            said = [0, here[0] if here else 1]
        start, total, *shape = said
        self._shapes[name] = tuple(shape[0]) if shape else (total, *here[1:]) if here else ()
        width = math.prod(here[1:])
        self._places[name].append(_Place(start * width, start * width + math.prod(here), width, source))

    def __iter__(self) -> Iterator[str]:
        return iter(self._shapes)

    def shape(self, name: str) -> tuple[int, ...]:
        """Of the whole tensor."""
        return self._shapes[name]

    def read(self, name: str, piece: Piece | None = None, count: int = 0) -> Tensor:
        """The whole tensor, or so many rows (numbers, of a piece with a shape) from where the piece begins.

        CheckpointError if some of them are in no file.
        """
        shape = self._shapes[name]
        if not shape:
            return cast(Tensor, self._places[name][0].source[...])
        if piece is not None and piece.shape is not None:
            return self._line(name, piece.start, piece.start + count)
        start, rows = (0, shape[0]) if piece is None else (piece.start, count)
        width = math.prod(shape[1:])
        return self._line(name, start * width, (start + rows) * width).reshape(rows, *shape[1:])

    def _line(self, name: str, start: int, stop: int) -> Tensor:
        found, at = [], start
        for place in self._places[name]:
            if place.first <= at < min(place.last, stop):
                found.append(place.read(at, min(stop, place.last)))
                at = min(stop, place.last)
        if at < stop:
            raise CheckpointError(
                f"numbers {at} to {stop} of {name} are in none of its files",
                where=str(self._folder),
                mend="copy all files of the checkpoint, those of every rank",
            )
        if len(found) == 1:
            return found[0]
        return torch.cat(found) if found else cast(Tensor, self._places[name][0].source[0:0]).reshape(-1)


def require_same(saved: Pieces, own: Collection[str], folder: Path) -> None:
    """CheckpointError if a checkpoint has weights that the model has not, or lacks one."""
    if apart := set(saved) ^ set(own):
        raise CheckpointError(
            f"the checkpoint's weights are not the model's: {sorted(apart)[:5]}",
            where=str(folder),
            mend="it belongs to another model; use a new run folder",
        )
