"""What preparation found: rows that cannot be taught, and notes on rows that can. Counted, and named by line."""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence

from fulltune.base.errors import DataError, Fault
from fulltune.data.example import RowFault

_NAMED = 20
"""Lines that a note names; it counts them all."""


class Findings:
    """Gathers faults and notes over all sources, so that one run names every one of them."""

    def __init__(self, *, keeps: bool = True) -> None:
        """`keeps`: whether bad rows are held to be told at the end, or counted only."""
        self._keeps = keeps
        self.faults: list[Fault] = []
        self.unreadable: list[Fault] = []
        self.dropped: Counter[str] = Counter()
        self._notes: defaultdict[str, list[str]] = defaultdict(list)
        self._note_counts: Counter[str] = Counter()

    def bad_row(self, where: str, fault: RowFault) -> None:
        """A row that is not taught; `data.on_bad_row` decides what that means."""
        if self._keeps:
            self.faults.append(Fault(fault.what, where, fault.mend, fault.code))
        self.dropped[fault.code] += 1

    def bad_file(self, where: str, code: str, what: str, mend: str) -> None:
        """A file of which nothing can be read: an error whatever the recipe says of bad rows."""
        self.unreadable.append(Fault(what, where, mend, code))

    def left_out(self, code: str, rows: int = 1) -> None:
        """A row (or several that were joined) that the recipe asks to leave out; counted, no fault."""
        self.dropped[code] += rows

    def note(self, code: str, where: str) -> None:
        """Something worth knowing about a row that is taught all the same."""
        self._note_counts[code] += 1
        if len(self._notes[code]) < _NAMED:
            self._notes[code].append(where)

    @property
    def notes(self) -> Mapping[str, str]:
        """Code -> how often, and where."""
        told: dict[str, str] = {}
        for code, places in self._notes.items():
            count = self._note_counts[code]
            more = f" and {count - len(places)} more" if count > len(places) else ""
            told[code] = f"{count} x: {', '.join(places)}{more}"
        return told

    def fatal(self, on_bad_row: str) -> int:
        """How many faults so far forbid to go on."""
        return len(self.unreadable) + (len(self.faults) if on_bad_row == "error" else 0)

    def settle(self, *, on_bad_row: str, fine: int, checked: Sequence[Fault] = ()) -> None:
        """DataError with every fault, if the recipe does not allow to leave bad rows out; `checked`: further ones."""
        faults = sorted(self.faults, key=_place) if on_bad_row == "error" else []
        if self.unreadable or checked:
            raise DataError(faults=[*self.unreadable, *faults, *checked])
        if faults:
            raise DataError(
                faults=faults,
                note=f"{len(self.faults)} rows cannot be taught, {fine} are fine. Mend them, or leave them out and "
                "have them counted with data.on_bad_row=drop",
            )


def _place(fault: Fault) -> tuple[str, int]:
    """By file and line; rows are looked at ahead, so faults are not found in order."""
    path, _, line = fault.where.rpartition(":")
    return path, int(line)
