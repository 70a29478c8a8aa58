"""Parts: what became of some thousand rows that follow each other, written by one process and whole or absent.

A part is a folder with the tokens of its examples, a table with one entry for each row, one for each example, and
what was said of single rows. Everything that must look at all rows together (repetitions, leaks, sides) works on the
tables; the tokens are not read again.
"""

import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fulltune.base import stop
from fulltune.base.files import flush
from fulltune.data.doctor.lengths import LADDER
from fulltune.data.store import TOKENS

ROW = np.dtype(
    [
        ("id", "<u8", 2),  # hash of the content
        ("key", "<u8", 2),  # the same, blind to case and spacing
        ("group", "<u8"),  # hash that decides the side
        ("stratum", "<u8"),  # hash of the value of `stratify_by`, 0 if there is none
        ("given", "<u8"),  # hash of the row's own `id`, 0 if it has none
        ("line", "<i8"),
        ("file", "<i4"),
        ("rows", "<i4"),  # rows that it stands for: several if documents were joined
        ("examples", "<i4"),
        ("state", "u1"),
        ("kind", "u1"),  # of its own `id`: 0 none, 1 text, 2 number
    ]
)
EXAMPLE = np.dtype(
    [
        ("row", "<i4"),
        ("start", "<i8"),
        ("length", "<i4"),
        ("taught", "<i4"),
        ("kept", "<i4", len(LADDER)),  # taught tokens that are left under each limit of the ladder
        ("augmented", "u1"),
        ("cut", "u1"),
    ]
)
FINE, FAULT, LEFT_OUT, OTHER = range(4)
"""States of a row: makes examples; cannot be taught; the recipe leaves it out; of a task that is read only."""


@dataclass(slots=True)
class Said:
    """What was said of single rows of a part (by their number in it), and what adds up over parts."""

    faults: list[tuple[int, str, str, str]] = field(default_factory=list)
    """Row, code, what, mend."""
    left: list[tuple[int, str]] = field(default_factory=list)
    notes: list[tuple[int, str, str]] = field(default_factory=list)
    """Row, code, and what stands behind the row's place."""
    codes: list[tuple[int, dict[str, int]]] = field(default_factory=list)
    """What the doctor found in a row, and how often."""
    labels: list[tuple[int, tuple[str | int, ...]]] = field(default_factory=list)
    unread: list[str] = field(default_factory=list)
    stop_ids: list[int] = field(default_factory=list)
    survey: Mapping[str, Any] = field(default_factory=dict)
    tokens: int = 0


@dataclass(frozen=True, slots=True)
class Part:
    """A finished part: which split and source it belongs to, and its folder."""

    split: str
    source: int
    folder: Path

    @property
    def rows(self) -> NDArray[Any]:
        """ROW [rows]."""
        return np.fromfile(self.folder / "rows.bin", ROW)

    def row(self, number: int) -> Any:
        """One line of it."""
        return np.fromfile(self.folder / "rows.bin", ROW, count=1, offset=number * ROW.itemsize)[0]

    @property
    def labelled(self) -> bool:
        """Whether it holds rows of classification, whose labels must be spelled alike."""
        return bool((self.rows["state"] == OTHER).any())

    @property
    def examples(self) -> NDArray[Any]:
        """EXAMPLE [examples]."""
        return np.fromfile(self.folder / "examples.bin", EXAMPLE)

    @property
    def said(self) -> Said:
        """What was said of its rows."""
        return Said(**json.loads((self.folder / "said.json").read_text()))


def write(folder: Path, rows: NDArray[Any], examples: NDArray[Any], said: Said) -> None:
    """The tables of a part, into the folder where its tokens lie already."""
    rows.astype(ROW, copy=False).tofile(folder / "rows.bin")
    examples.astype(EXAMPLE, copy=False).tofile(folder / "examples.bin")
    (folder / "said.json").write_text(json.dumps(asdict(said)))


def finish(draft: Path, folder: Path) -> None:
    """Let a draft stand as a part, for good: it survives a power cut from here on."""
    for file in draft.rglob("*"):
        if file.is_file():
            flush(file)
    draft.replace(folder)
    flush(folder.parent)


def ship(part: Part, shard: Path) -> None:
    """The part's tokens as a shard of the prepared data, sharing the disk space of the part where that can be."""
    stop.check()
    shard.mkdir(parents=True)
    for name in TOKENS:
        source, target = part.folder / f"{name}.bin", shard / f"{name}.bin"
        try:
            os.link(source, target)
        except OSError:  # a file system without hard links
            shutil.copyfile(source, target)


class Tables:
    """The rows of all parts of a preparation, one after the other, column by column.

    Whoever goes over all parts does so by `slices`, which raises Interrupted where a signal came.
    """

    def __init__(self, parts: Sequence[Part]) -> None:
        self.parts = tuple(parts)
        sizes = [(part.folder / "rows.bin").stat().st_size // ROW.itemsize for part in self.parts]
        self.starts = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
        self.count = int(self.starts[-1])

    def column(self, name: str) -> NDArray[Any]:
        """One column over all rows."""
        first = np.empty(0, ROW[name])
        return np.concatenate([first, *(np.ascontiguousarray(part.rows[name]) for part in self.parts)])

    def slices(self) -> Iterator[tuple[Part, slice]]:
        """Each part and where its rows lie among all."""
        for part, start, end in zip(self.parts, self.starts[:-1], self.starts[1:], strict=True):
            stop.check()
            yield part, slice(int(start), int(end))
