"""A count by code with the first places: the small record that every analysis of the doctor fills."""

from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

NAMED = 20
"""Places that a record names; it counts them all."""


@dataclass(frozen=True, slots=True)
class Found:
    """How many rows something was found in, how often in all, and the first places (`file:line`)."""

    rows: int
    times: int
    places: tuple[str, ...]


class Tally:
    """Counts by code, one call for each row that has it. Those of parts can be merged."""

    def __init__(self, named: int = NAMED) -> None:
        self._named = named
        self._rows: Counter[str] = Counter()
        self._times: Counter[str] = Counter()
        self._places: defaultdict[str, list[str]] = defaultdict(list)

    def add(self, code: str, where: str, times: int = 1) -> None:
        """Something was found so many times in the row at `where`."""
        self._rows[code] += 1
        self._times[code] += times
        if len(self._places[code]) < self._named:
            self._places[code].append(where)

    def state(self) -> dict[str, Any]:
        """All of it as plain JSON values: code -> rows, times, places."""
        return {code: [rows, self._times[code], [*self._places[code]]] for code, rows in self._rows.items()}

    def merge(self, state: Mapping[str, Any]) -> None:
        """Add what the `state` of the part after this one holds."""
        for code, (rows, times, places) in state.items():
            self._rows[code] += rows
            self._times[code] += times
            self._places[code] += places[: self._named - len(self._places[code])]

    @property
    def found(self) -> dict[str, Found]:
        """By code, in alphabetical order."""
        return {
            code: Found(self._rows[code], self._times[code], tuple(self._places[code])) for code in sorted(self._rows)
        }
