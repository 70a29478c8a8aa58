"""The search behind `near.py`: candidates band by band, estimated by their sketches, verified by their texts.

Nothing here grows with the number of candidates: those of one chunk of a band are compared and forgotten, but for the
pairs that were compared in vain, about four for each row at most. Two rounds: likely pairs first, so that no row spends
its tries on others.
"""

from array import array
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from fulltune.base import stop
from fulltune.data.doctor.near_parts import NearParts
from fulltune.data.doctor.shingles import jaccard, shingles
from fulltune.data.doctor.signatures import BANDS, WHOLE, differing, most_differing

_WINDOW = 32
"""Neighbours that a row is compared with among those that agree in a band: thousands may (a shared instruction)."""
_TRIES, _FEWER = 24, 6
"""Comparisons in vain after which a row is let be; the fewer once there were as many in all as there are rows: where
most of every row is one instruction, all are candidates of each other."""
_DEVIATIONS = 4.0
"""Standard deviations below the threshold up to which an estimate is not believed: 3 of 100,000 pairs lie lower."""
_CHUNK = 1 << 14
"""Candidates looked at together."""
_KEPT = 64
"""Texts whose shingles are kept, of at most _SHORT each: a row of a crowd is compared several times in a row."""
_SHORT = 10_000
_ROW, _KEY = np.uint64(0xFFFFFFFF), np.uint64(32)

Rows = NDArray[np.int64]
Mask = NDArray[np.bool_]


class Links:
    """Verified pairs, 16 bytes each: rows are numbers of 32 bits."""

    def __init__(self) -> None:
        self._rows, self._similarity = array("i"), array("d")

    def add(self, first: int, second: int, similarity: float) -> None:
        """One more."""
        self._rows.extend((first, second))
        self._similarity.append(similarity)

    def ordered(self) -> tuple[Rows, NDArray[np.float64]]:
        """Rows [links, 2] and similarities, in the order of rows."""
        rows = np.array(self._rows, np.int32).reshape(-1, 2)
        order = np.lexsort((rows[:, 1], rows[:, 0]))
        return rows[order].astype(np.int64), np.array(self._similarity, np.float64)[order]


class Groups:
    """Rows that hang together (union-find with path halving); the least row of a group is its root."""

    def __init__(self, rows: int) -> None:
        self._above = array("i", range(rows))
        self._view: NDArray[np.int32] = np.frombuffer(self._above, np.int32) if rows else np.empty(0, np.int32)

    def root(self, row: int) -> int:
        """Of one row."""
        above = self._above
        while above[row] != row:
            above[row] = above[above[row]]
            row = above[row]
        return row

    def join(self, one: int, other: int) -> None:
        """These two hang together."""
        first, second = sorted((self.root(one), self.root(other)))
        self._above[second] = first

    def roots(self, rows: Rows) -> Rows:
        """Of many rows."""
        found, above = rows, self._view[rows].astype(np.int64)
        while not np.array_equal(found, above):
            found, above = above, self._view[above].astype(np.int64)
        self._view[rows] = found
        return found


class Verifier:
    """Compares pairs: their sketches, then their texts; remembers which were compared in vain."""

    def __init__(self, parts: NearParts, threshold: float) -> None:
        self._parts, self._threshold = parts, threshold
        self._sketches = parts.sketches()
        self._vain = bytearray(len(parts))
        self._failed, self._failing, self._failures = np.empty(0, np.int64), array("q"), 0
        self._shingles: dict[int, NDArray[np.uint64]] = {}
        self.rounds = (most_differing(threshold), most_differing(threshold, _DEVIATIONS))

    def promising(self, one: Rows, other: Rows, most: int) -> Iterator[tuple[int, int]]:
        """Those pairs whose sketches differ in at most so many values and that have not failed, the likely first."""
        stop.check()
        apart = differing(self._sketches[one], self._sketches[other])
        chosen = np.flatnonzero(apart <= most)
        chosen = chosen[np.argsort(apart[chosen], kind="stable")]
        one, other = one[chosen], other[chosen]
        fresh = slice(None)
        if len(self._failed):
            codes = one * len(self._vain) + other
            at = np.minimum(np.searchsorted(self._failed, codes), len(self._failed) - 1)
            fresh = self._failed[at] != codes
        return zip(one[fresh].tolist(), other[fresh].tolist(), strict=True)

    def spent(self, row: int) -> bool:
        """Whether the row was compared in vain often enough."""
        return self._vain[row] >= (_TRIES if self._failures < len(self._vain) else _FEWER)

    def similarity(self, first: int, second: int) -> float | None:
        """The exact Jaccard similarity; None if it is below the threshold."""
        stop.check()
        left, right = self._text(first), self._text(second)
        small, large = sorted((len(left), len(right)))
        found = jaccard(left, right) if small >= self._threshold * large else 0.0
        if found >= self._threshold:
            return found
        self._failing.append(first * len(self._vain) + second)
        self._failures += 1
        for row in (first, second):
            self._vain[row] = min(self._vain[row] + 1, _TRIES)
        return None

    def settle(self) -> None:
        """A band is done: what failed in it is not to be compared in the next."""
        if self._failing:
            self._failed = np.concatenate([self._failed, np.frombuffer(self._failing, np.int64)])
            self._failed.sort()
            self._failing = array("q")

    def _text(self, row: int) -> NDArray[np.uint64]:
        if (known := self._shingles.get(row)) is not None:
            return known
        made = shingles(self._parts.text(row))
        if len(made) <= _SHORT:
            if len(self._shingles) == _KEPT:
                del self._shingles[next(iter(self._shingles))]
            self._shingles[row] = made
        return made


class Duplicates:
    """Links between the chosen rows that join all rows which hang together by similar pairs.

    A pair whose rows hang together already is not compared: ten thousand rows of one template would make fifty
    million pairs. Rows with one signature stand for each other: after they are linked, the first goes into the bands.
    """

    def __init__(self, parts: NearParts, chosen: Mask, threshold: float) -> None:
        self.links, self.groups, self.uncompared = Links(), Groups(len(parts)), 0
        self._parts, self._alone = parts, chosen.copy()
        self._verifier = Verifier(parts, threshold)
        for one, other in _neighbours(parts.keys(WHOLE, chosen), 1):
            for first, second in self._verifier.promising(one, other, 0):
                if self._link(first, second):
                    self._alone[second] = False
        for most in self._verifier.rounds:
            for band in range(BANDS):
                self._band(band, most)

    def _band(self, band: int, most: int) -> None:
        keys = self._parts.keys(band, self._alone)
        last = most == self._verifier.rounds[-1]
        for one, other in _neighbours(keys, _WINDOW):
            apart = self.groups.roots(one) != self.groups.roots(other)
            for first, second in self._verifier.promising(one[apart], other[apart], most):
                if self.groups.root(first) == self.groups.root(second):
                    continue
                if self._verifier.spent(first) or self._verifier.spent(second):
                    self.uncompared += last
                else:
                    self._link(first, second)
        self._verifier.settle()
        if last:
            self.uncompared += self._beyond(keys)

    def _link(self, first: int, second: int) -> bool:
        if (similarity := self._verifier.similarity(first, second)) is None:
            return False
        self.groups.join(first, second)
        self.links.add(first, second, similarity)
        return True

    def _beyond(self, keys: NDArray[np.uint64]) -> int:
        """Pairs outside the window, in crowds that do not hang together as a whole."""
        crowds = (keys >> _KEY).astype(np.uint32)
        starts = np.concatenate([[0], np.flatnonzero(crowds[1:] != crowds[:-1]) + 1])
        sizes = np.diff(starts, append=len(keys))
        missed = 0
        for crowd in np.flatnonzero(sizes > _WINDOW + 1).tolist():
            rows = keys[starts[crowd] : starts[crowd] + sizes[crowd]] & _ROW
            roots = self.groups.roots(rows.astype(np.int64))
            beyond = len(rows) - 1 - _WINDOW
            missed += 0 if (roots == roots[0]).all() else beyond * (beyond + 1) // 2
        return missed


class Leaks:
    """Links from taught rows to measured ones, one for each measured row that has a similar taught row."""

    def __init__(self, parts: NearParts, taught: Mask, measured: Mask, threshold: float) -> None:
        self.links, self.uncompared = Links(), 0
        self._parts, self._alone, self._asked = parts, taught.copy(), measured.copy()
        self._verifier = Verifier(parts, threshold)
        for one, other in _neighbours(parts.keys(WHOLE, taught), 1):
            self._alone[[second for _, second in self._verifier.promising(one, other, 0)]] = False
        for most in self._verifier.rounds:
            for band in (WHOLE, *range(BANDS)):
                self._band(band, most)

    def _band(self, band: int, most: int) -> None:
        taught, asked = (self._parts.keys(band, chosen) for chosen in (self._alone, self._asked))
        last = most == self._verifier.rounds[-1]
        for begin in range(0, len(asked), _CHUNK):
            rows = (asked[begin : begin + _CHUNK] & _ROW).astype(np.int64)
            keys = asked[begin : begin + _CHUNK] & ~_ROW
            start, end = np.searchsorted(taught, keys), np.searchsorted(taught, keys | _ROW, side="right")
            beyond = np.maximum(end - start - _WINDOW, 0)
            # In a crowd, measured rows begin at different places: none should depend on the same few taught ones.
            start += rows % (beyond + 1)
            for step in range(_WINDOW):
                near = np.flatnonzero((start + step < end) & self._asked[rows])
                if not len(near):
                    break
                partners = (taught[start[near] + step] & _ROW).astype(np.int64)
                self._chunk(partners, rows[near], most)
            self.uncompared += int(beyond[self._asked[rows]].sum()) if last else 0
        self._verifier.settle()

    def _chunk(self, one: Rows, other: Rows, most: int) -> None:
        for first, second in self._verifier.promising(one, other, most):
            if self._verifier.spent(second):
                self.uncompared += most == self._verifier.rounds[-1]
            elif (similarity := self._verifier.similarity(first, second)) is not None:
                self.links.add(first, second, similarity)
                self._asked[second] = False


def _neighbours(keys: NDArray[np.uint64], window: int) -> Iterator[tuple[Rows, Rows]]:
    """Pairs of rows with the same key that stand at most so far from each other in their order."""
    for begin in range(0, len(keys), _CHUNK):
        block = keys[begin : begin + _CHUNK + window]
        same, rows = block >> _KEY, (block & _ROW).astype(np.int64)
        for step in range(1, min(window, len(block) - 1) + 1):
            near = np.flatnonzero(same[step:][:_CHUNK] == same[:-step][:_CHUNK])
            if not len(near):
                break
            yield rows[near], rows[near + step]
