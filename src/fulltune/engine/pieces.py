"""Tensors of a checkpoint, whichever files hold which rows of them: what was saved by four ranks is read by one.

Each file says of its own tensors which rows they are, in the metadata of the safetensors header; a tensor of which it
says nothing is whole. So no file lists the others, and any engine reads what any other wrote.
"""

import json
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import safe_open
from torch import Tensor

from fulltune.base.errors import CheckpointError

KEY = "pieces"
"""In the metadata of a file: JSON of names to `[first row, rows of the whole]`."""


@dataclass(frozen=True, slots=True)
class Piece:
    """Rows of a tensor: they begin at `start`, of `total`."""

    start: int
    total: int


def part(total: int, shards: int, number: int) -> slice:
    """Which of so many rows the shard of this number has: fully_shard cuts as torch.chunk does."""
    each = -(-total // shards)
    return slice(min(number * each, total), min((number + 1) * each, total))


def file_of(stem: str, number: int) -> str:
    """The name of a rank's file; the first has the plain one."""
    return f"{stem}.safetensors" if number == 0 else f"{stem}-{number:05d}.safetensors"


def metadata(pieces: Mapping[str, Piece]) -> dict[str, str]:
    """What a file says of its tensors."""
    return {KEY: json.dumps({name: [piece.start, piece.total] for name, piece in pieces.items()})} if pieces else {}


class Pieces:
    """All files of one stem in a folder, opened; rows are read when they are asked for."""

    def __init__(self, folder: Path, stem: str) -> None:
        self._folder = folder
        self._places: dict[str, list[tuple[int, Any]]] = defaultdict(list)
        """By name: first row, and what reads from there."""
        self._shapes: dict[str, tuple[int, ...]] = {}
        for path in sorted(folder.glob(f"{stem}.safetensors")) + sorted(folder.glob(f"{stem}-*.safetensors")):
            file: Any = safe_open(path, "pt")
            said = json.loads((file.metadata() or {}).get(KEY, "{}"))
            for name in file.keys():  # noqa: SIM118 - it is no mapping
                rows = file.get_slice(name)
                shape = tuple(rows.get_shape())
                start, total = said.get(name, (0, shape[0] if shape else 1))
                self._places[name].append((start, rows))
                self._shapes[name] = (total, *shape[1:]) if shape else ()
        for places in self._places.values():
            places.sort(key=lambda place: place[0])

    def __iter__(self) -> Iterator[str]:
        return iter(self._shapes)

    def shape(self, name: str) -> tuple[int, ...]:
        """Of the whole tensor."""
        return self._shapes[name]

    def read(self, name: str, piece: Piece | None = None, rows: int = 0) -> Tensor:
        """The whole tensor, or so many rows of it from where the piece begins; CheckpointError if some are missing."""
        if not self._shapes[name]:
            return cast(Tensor, self._places[name][0][1][...])
        start, stop = (0, self._shapes[name][0]) if piece is None else (piece.start, piece.start + rows)
        found = []
        at = start
        for first, source in self._places[name]:
            last = first + source.get_shape()[0]
            if first <= at < last and at < stop:
                found.append(source[at - first : min(stop, last) - first])
                at = min(stop, last)
        if at < stop:
            raise CheckpointError(
                f"rows {at} to {stop} of {name} are in none of its files",
                where=str(self._folder),
                mend="copy all files of the checkpoint, those of every rank",
            )
        if len(found) == 1:
            return cast(Tensor, found[0])
        return torch.cat(found) if found else cast(Tensor, self._places[name][0][1][0:0])
