"""A count by code with the first places: the small record that every analysis of the doctor fills."""

from collections import Counter, defaultdict
from dataclasses import dataclass

NAMED = 20
"""Places that a record names; it counts them all."""


@dataclass(frozen=True, slots=True)
class Found:
    """How many rows something was found in, how often in all, and the first places (`file:line`)."""

    rows: int
    times: int
    places: tuple[str, ...]


class Tally:
    """Counts by code. A row counts once for each code, however often it is told of it in a row (by `where`)."""

    def __init__(self, named: int = NAMED) -> None:
        self._named = named
        self._rows: Counter[str] = Counter()
        self._times: Counter[str] = Counter()
        self._last: dict[str, str] = {}
        self._places: defaultdict[str, list[str]] = defaultdict(list)

    def add(self, code: str, where: str, times: int = 1) -> None:
        """Something was found so many times in the row at `where`; nothing happens for no times."""
        if not times:
            return
        self._times[code] += times
        if self._last.get(code) == where:
            return
        self._last[code] = where
        self._rows[code] += 1
        if len(self._places[code]) < self._named:
            self._places[code].append(where)

    @property
    def found(self) -> dict[str, Found]:
        """By code, in alphabetical order."""
        return {
            code: Found(self._rows[code], self._times[code], tuple(self._places[code])) for code in sorted(self._rows)
        }
