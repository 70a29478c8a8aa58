"""All rows together: which are repeated, which leak, which side each is on. Works on tables, never on tokens."""

import itertools
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fulltune.data.example import RowFault
from fulltune.data.findings import Findings
from fulltune.data.labels import Label, label_faults
from fulltune.data.parts import OTHER, Part, Tables
from fulltune.data.split import place, sides
from fulltune.recipe.data import DataSection, portion

SPLITS = ("train", "heldout", "test", "retention")
_APART: Mapping[str, tuple[str, ...]] = {
    "train": ("heldout",),
    "heldout": ("train",),
    "test": ("train", "heldout"),
    "retention": ("train",),
}
"""Splits that must not share content: what is measured on, with what is taught; the test split with both."""
GONE = -1
"""Side of a row that is not kept."""


@dataclass(slots=True)
class Choice:
    """What became of each row: `side`, the number of a split or GONE (int8 [rows]), and why it is gone."""

    side: NDArray[np.int8]
    reason: NDArray[np.uint8]
    """Number of the code in `codes`; 0 for rows that are kept."""
    codes: list[str]

    def leave_out(self, rows: Any, code: str) -> None:
        """These rows are not kept, for this reason."""
        if code not in self.codes:
            self.codes.append(code)
        self.side[rows] = GONE
        self.reason[rows] = self.codes.index(code)


class Rows:
    """The rows of all parts: where each stands, and columns over all of them."""

    def __init__(self, tables: Tables, files: Mapping[tuple[str, int], Sequence[str]]) -> None:
        """`files`: those of each source, by split and number."""
        self.tables, self._files = tables, files

    def place(self, row: int | np.integer[Any]) -> str:
        """`file:line` of a row."""
        part, entry = self.entry(row)
        return f"{self._files[part.split, part.source][entry['file']]}:{entry['line']}"

    def entry(self, row: int | np.integer[Any]) -> tuple[Part, Any]:
        """Its part and its line of the table."""
        number = int(np.searchsorted(self.tables.starts, row, side="right")) - 1
        part = self.tables.parts[number]
        return part, part.row(int(row - self.tables.starts[number]))

    def files(self) -> NDArray[np.int64]:
        """A number for the file of each row, another for each."""
        sources = {key: number << 32 for number, key in enumerate(self._files)}
        found: NDArray[np.int64] = self.filled(lambda part: sources[part.split, part.source], np.int64)
        found += self.tables.column("file")
        return found

    def by_source(self) -> Iterator[list[tuple[Part, slice]]]:
        """The parts of each source, and where their rows lie."""
        for _, together in itertools.groupby(self.tables.slices(), lambda item: (item[0].split, item[0].source)):
            yield list(together)

    def filled(self, value_of: Any, dtype: Any) -> NDArray[Any]:
        """An array over all rows with one value for each part."""
        made = np.empty(self.tables.count, dtype)
        for part, here in self.tables.slices():
            made[here] = value_of(part)
        return made


def choose(rows: Rows, data: DataSection, findings: Findings) -> Choice:
    """Tells all faults and notes of the rows to `findings`, and the side of each row that is kept."""
    split = rows.filled(lambda part: SPLITS.index(part.split), np.int8)
    choice = Choice(split.copy(), np.zeros(rows.tables.count, np.uint8), [""])
    _leave_out_faults(rows, choice, findings)
    _leave_out_labels(rows, choice, findings)
    _leave_out_repeated(rows, choice, data, findings)
    _tell_ids(rows, findings)
    _keep_back(rows, choice, data)
    _leave_out_leaks(rows, choice, findings)
    return choice


def _leave_out_faults(rows: Rows, choice: Choice, findings: Findings) -> None:
    """What was said of single rows when they were read and rendered."""
    for part, here in rows.tables.slices():
        said = part.said
        for number, code, what, mend in said.faults:
            findings.bad_row(rows.place(here.start + number), RowFault(code, what, mend))
            choice.leave_out(here.start + number, code)
        for number, code in said.left:
            findings.left_out(code)
            choice.leave_out(here.start + number, code)


def _leave_out_repeated(rows: Rows, choice: Choice, data: DataSection, findings: Findings) -> None:
    """Rows whose content stood before in the same split, as `data.duplicates` asks."""
    ids, stands_for = rows.tables.column("id"), rows.tables.column("rows")
    counts = (rows.tables.column("examples") > 0) | (rows.tables.column("state") == OTHER)
    for split in range(len(SPLITS)):
        members = np.flatnonzero((choice.side == split) & counts)
        for row, first in _repeated(ids, members):
            if data.duplicates == "keep":
                findings.note("duplicate", f"{rows.place(row)} (as {rows.place(first)})")
                continue
            if data.duplicates == "error":
                mend = "remove it, or say data.duplicates=drop or keep"
                findings.bad_row(
                    rows.place(row), RowFault("duplicate", f"the same content as {rows.place(first)}", mend)
                )
            else:
                findings.left_out("duplicate", int(stands_for[row]))
            choice.leave_out(row, "duplicate")


def _repeated(hashes: NDArray[Any], members: NDArray[np.int64]) -> Iterator[tuple[int, int]]:
    """Rows whose hash (two numbers) an earlier one has, in order, each with the first that has it."""
    pairs = hashes[members]
    order = np.lexsort((pairs[:, 1], pairs[:, 0]))
    same = (pairs[order[1:]] == pairs[order[:-1]]).all(axis=1)
    begins = np.concatenate([[True], ~same])[: len(order)]
    firsts = order[begins][np.cumsum(begins) - 1]
    again = order != firsts
    rows, first = members[order[again]], members[firsts[again]]
    for at in np.argsort(rows, kind="stable"):
        yield int(rows[at]), int(first[at])


def _tell_ids(rows: Rows, findings: Findings) -> None:
    """Notes on a column `id`. Nothing is keyed by it, but a repeated one hints at a bad export."""
    kinds = rows.tables.column("kind")
    members = np.flatnonzero(kinds)
    if not len(members):
        return
    files = rows.files()[members]
    given = np.stack([rows.tables.column("given")[members], files.astype(np.uint64)], axis=1)
    told = set()
    for at, first in _repeated(given, np.arange(len(members))):
        told.add(at)
        line = rows.entry(members[first])[1]["line"]
        findings.note("duplicate_id", f"{rows.place(members[at])} (the id of line {line})")
    _, firsts, which = np.unique(files, return_index=True, return_inverse=True)
    for odd in np.flatnonzero(kinds[members] != kinds[members[firsts[which]]]):
        if int(odd) not in told:
            findings.note("id_type", f"{rows.place(members[odd])} (not of the type of those before it)")


def _leave_out_labels(rows: Rows, choice: Choice, findings: Findings) -> None:
    """Rows whose label is a slip of another one, source by source."""
    for together in rows.by_source():
        labelled = [(here.start, part.said.labels) for part, here in together if part.labelled]
        counts: Counter[Label] = Counter(name for _, said in labelled for _, names in said for name in names)
        faults = label_faults(counts)
        for start, said in labelled if faults else ():
            for number, names in said:
                fault = next((faults[name] for name in names if name in faults), None)
                if fault is not None:
                    findings.bad_row(rows.place(start + number), fault)
                    choice.leave_out(start + number, fault.code)


def _keep_back(rows: Rows, choice: Choice, data: DataSection) -> None:
    """The training rows that are measured on."""
    heldout, test = portion(data.heldout), portion(data.test)
    shared = rows.filled(lambda part: part.split == "train" and part.source < len(data.train), bool)
    members = np.flatnonzero(shared & (choice.side == SPLITS.index("train")))
    if heldout is None and test is None:
        return
    places = place(rows.tables.column("group")[members])
    made = sides(places, rows.tables.column("examples")[members], heldout, test, rows.tables.column("stratum")[members])
    choice.side[members] = np.array([SPLITS.index("train"), SPLITS.index("heldout"), SPLITS.index("test")])[made]


def _leave_out_leaks(rows: Rows, choice: Choice, findings: Findings) -> None:
    """Rows that a split holds which this one must not share anything with; whatever comes later is the leak."""
    keys = rows.tables.column("key")
    members = np.flatnonzero(choice.side != GONE)
    order = members[np.lexsort((keys[members, 1], keys[members, 0]))]
    if not len(order):
        return
    differs = (keys[order[1:]] != keys[order[:-1]]).any(axis=1)
    starts = np.concatenate([[0], np.flatnonzero(differs) + 1])
    lowest, highest = np.minimum.reduceat(choice.side[order], starts), np.maximum.reduceat(choice.side[order], starts)
    ends = np.append(starts[1:], len(order))
    for number in np.flatnonzero(lowest != highest):
        _tell_leak(rows, choice, findings, np.sort(order[starts[number] : ends[number]]))


def _tell_leak(rows: Rows, choice: Choice, findings: Findings, alike: NDArray[np.int64]) -> None:
    """Of rows with one content, on several sides."""
    first: dict[str, int] = {}
    for row in map(int, alike):
        side = SPLITS[choice.side[row]]
        other = next((name for name in _APART[side] if name in first), None)
        if other is None:
            first.setdefault(side, row)
            continue
        what = (
            f"{other} holds the same content, but for case and spacing, at {rows.place(first[other])}: "
            "a score would mean nothing"
        )
        mend = f"remove it from the {side} or the {other} data, or group both rows"
        findings.bad_row(rows.place(row), RowFault("leak", what, mend))
        choice.leave_out(row, "leak")
