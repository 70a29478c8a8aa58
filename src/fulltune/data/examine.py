"""The doctor's round over all rows together: what is odd about them, and what the recipe says to do about it."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fulltune.base import stop
from fulltune.base.errors import DataError, Fault
from fulltune.data.choose import GONE, SPLITS, Choice, Rows
from fulltune.data.doctor.labels import LabelFacts, LabelShift, label_facts, label_shares
from fulltune.data.doctor.lengths import LengthFacts, LengthTotals
from fulltune.data.doctor.near import NearFacts, near_duplicates, near_leaks
from fulltune.data.doctor.near_parts import NearParts
from fulltune.data.doctor.overlap import Overlap, OverlapFacts
from fulltune.data.doctor.report import Checkup, Finding, findings, refuse
from fulltune.data.doctor.survey import Survey, SurveyFacts
from fulltune.data.findings import Findings
from fulltune.data.labels import Label
from fulltune.data.publish import kept_examples
from fulltune.data.sources import places, read_rows
from fulltune.data.strict import strings
from fulltune.recipe.data import DataSection

_TAUGHT, _MEASURED, _APART = 0, 1, -1


class Examination:
    """Asks every analysis, leaves out the rows that the recipe wants left out, and tells what was found."""

    def __init__(self, rows: Rows, choice: Choice, data: DataSection, told: Findings) -> None:
        self._rows, self._choice, self._data, self._told = rows, choice, data, told

    def run(self) -> tuple[Checkup, tuple[Finding, ...]]:
        """Facts as they were found, before rows are left out for them; lengths and labels of what stays."""
        survey = self._survey()
        self._drop_coded()
        overlap = self._overlap()
        near, leaks = self._near(), self._leaks()
        labels, shifts = self._labels()
        checkup = Checkup(
            survey=survey,
            near=near,
            leaks=leaks,
            overlap=overlap,
            lengths=self._lengths(),
            labels=labels,
            shifts=shifts,
        )
        return checkup, findings(checkup, self._data.checks)

    def _wants(self, code: str, policy: str) -> bool:
        return self._data.checks.get(code, "keep") == policy

    def _leave_out(self, rows: NDArray[np.int64], code: str) -> None:
        if len(rows):
            stands_for = self._rows.tables.column("rows")[rows]
            self._told.left_out(code, int(stands_for.sum()))
            self._choice.leave_out(rows, code)

    def _survey(self) -> SurveyFacts:
        """Over the training rows and what is kept back of them."""
        survey = Survey()
        for part in self._rows.tables.parts:
            if part.split == "train":
                survey.merge(part.said.survey)
        return survey.facts

    def _drop_coded(self) -> None:
        """Training rows with something in them that the recipe does not want."""
        unwanted = [code for code in self._data.checks if self._wants(code, "drop")]
        found: dict[str, list[int]] = {code: [] for code in unwanted}
        for part, here in self._rows.tables.slices() if unwanted else ():
            for number, codes in part.said.codes if part.split == "train" else ():
                first = next((code for code in unwanted if code in codes), None)
                if first is not None and self._choice.side[here.start + number] != GONE:
                    found[first].append(here.start + number)
        for code, rows in found.items():
            self._leave_out(np.array(rows, np.int64), code)

    def _overlap(self) -> OverlapFacts | None:
        """Words in a row that training rows share with the benchmarks."""
        if not self._data.benchmarks or self._wants("benchmark_overlap", "off"):
            return None
        overlap, hit = Overlap(self._benchmarks()), []
        with NearParts(self._folders()) as opened:
            for row in map(int, np.flatnonzero(self._choice.side == SPLITS.index("train"))):
                stop.check()
                if overlap.add(opened.text(row), self._rows.place(row)):
                    hit.append(row)
        if self._wants("benchmark_overlap", "drop"):
            self._leave_out(np.array(hit, np.int64), "benchmark_overlap")
        return overlap.facts

    def _benchmarks(self) -> Iterator[tuple[str, str]]:
        for source in self._data.benchmarks:
            for place in places(source, self._told):
                stop.check()
                for line, row in read_rows(place, self._told, source):
                    yield f"{place.path}:{line}", "\n".join(text for value in row.values() for text in strings(value))

    def _near(self) -> NearFacts | None:
        if self._wants("near_duplicate", "off"):
            return None
        side = np.where(self._choice.side == SPLITS.index("train"), _TAUGHT, _APART).astype(np.int8)
        near = near_duplicates(self._folders(), self._compared(side))
        if self._wants("near_duplicate", "drop"):
            self._leave_out(near.surplus, "near_duplicate")
        return near.facts(self._rows.place, exact=self._told.dropped["duplicate"])

    def _leaks(self) -> NearFacts | None:
        measured = np.isin(self._choice.side, (SPLITS.index("heldout"), SPLITS.index("test")))
        if self._wants("near_leak", "off") or not measured.any():
            return None
        side = np.where(measured, _MEASURED, _APART).astype(np.int8)
        side[self._choice.side == SPLITS.index("train")] = _TAUGHT
        leaks = near_leaks(self._folders(), self._compared(side))
        if self._wants("near_leak", "drop"):
            self._leave_out(leaks.surplus, "near_leak")
        return leaks.facts(self._rows.place, exact=0)

    def _folders(self) -> list[Path]:
        """Where the texts lie; those of retention, the last split, are not kept."""
        return [part.folder / "near" for part in self._rows.tables.parts if part.split != "retention"]

    def _compared(self, side: NDArray[np.int8]) -> NDArray[np.int8]:
        retained = (here.stop - here.start for part, here in self._rows.tables.slices() if part.split == "retention")
        return side[: len(side) - sum(retained)]

    def _lengths(self) -> LengthFacts:
        totals = LengthTotals()
        for part, here in self._rows.tables.slices():
            found = kept_examples(part, self._choice.side[here], "train")
            totals.add_chunk(found["length"], found["taught"], found["kept"])
        return totals.facts

    def _labels(self) -> tuple[LabelFacts | None, dict[str, LabelShift]]:
        """Of the training rows that have labels, and how those of each side differ from all."""
        counts: dict[str, Counter[Label]] = {split: Counter() for split in SPLITS}
        for part, here in self._rows.tables.slices():
            for number, labels in part.said.labels if part.split == "train" else ():
                side = int(self._choice.side[here.start + number])
                if side != GONE:
                    counts[SPLITS[side]].update(labels)
        whole = sum(counts.values(), Counter[Label]())
        if not whole:
            return None, {}
        shifts = {side: label_shares(whole, kept) for side, kept in counts.items() if 0 < kept.total() < whole.total()}
        return label_facts(whole), shifts


def looked_for(data: DataSection) -> bool:
    """Whether the texts of rows are needed after they were read."""
    wanted = any(data.checks.get(code) != "off" for code in ("near_duplicate", "near_leak"))
    return wanted or bool(data.benchmarks)


def refusals(found: tuple[Finding, ...]) -> tuple[Fault, ...]:
    """A fault for every finding that the recipe calls an error."""
    try:
        refuse(found)
    except DataError as fault:
        return fault.faults
    return ()
