"""Near-duplicates by MinHash and locality-sensitive hashing, every pair verified, and near leaks between two sides.

Signatures (`shingles.py`) are cut into BANDS bands of ROWS values; texts that agree in a whole band are candidates
(Leskovec, Rajaraman and Ullman, "Mining of Massive Datasets", 3.4). A pair of Jaccard similarity s is one with
probability 1 - (1 - s^6)^20: 0.9977 at 0.8, 0.9999 at 0.85, 0.27 at 0.5. Candidates whose signatures agree too little
are left out (3 of 100,000 pairs that belong), and every other is compared by its exact sets of shingles, so no pair is
reported that is not one.

Memory: 0.5 kB a row for its signature and its place, 1.4 kB at the peak (140 MB for 100,000 rows); normalised texts
wait in a temporary file. Time, on one core: 100,000 rows of 100 words in 8 to 16 s (5 % of them near-duplicates).
The worst case is a crowd that shares most of its words: 20,000 rows of which 80 % is one text took 40 s to more than a
minute.
"""

import math
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from fulltune.data.doctor.shingles import HASHES, Signer, jaccard, normalised, shingles

THRESHOLD = 0.8
BANDS, ROWS = 20, 6
assert BANDS * ROWS == HASHES
_TOGETHER = 256
"""Texts signed in one call."""
_WINDOW = 16
"""Neighbours that a text is compared with among those that agree in a band: thousands may (a shared instruction)."""
_TRIES = 6
"""Comparisons in vain after which a row is let be: where half of every row is one instruction, all are candidates."""


@dataclass(frozen=True, slots=True)
class Pair:
    """Two rows that are nearly the same: where they stand, and their Jaccard similarity (1: the same shingles)."""

    first: str
    second: str
    similarity: float


@dataclass(frozen=True, slots=True, kw_only=True)
class NearFacts:
    """Near-duplicates of a data set, or near leaks from one side into another."""

    threshold: float
    rows: int
    """Texts compared."""
    exact: int
    """Rows whose content came before on their side to the letter: counted here, compared no more, in no pair."""
    affected: int
    """Rows in clusters; for leaks, rows of the other side that have a partner."""
    surplus: int
    """Rows to leave out so that one of each cluster stays; for leaks, all affected ones."""
    pairs: tuple[Pair, ...]
    """One link for each surplus row, the most similar ones: enough to lead to every row of every cluster."""
    clusters: tuple[tuple[str, ...], ...]
    """Rows that hang together by links, largest first, each in the order in which it was read."""
    uncompared: int
    """Candidates not looked at since too many rows are candidates of each other (one long instruction in all of them):
    pairs that may have been missed. 0 means that none was missed for this reason."""

    @property
    def surplus_places(self) -> frozenset[str]:
        """Rows to leave out: all of each cluster but its first; for leaks these are rows of the measured side."""
        return frozenset(place for cluster in self.clusters for place in cluster[1:])


class NearIndex:
    """Takes texts one by one and tells at the end which are nearly the same. A context manager: it holds a file."""

    def __init__(self, *, threshold: float = THRESHOLD, seed: int = 0) -> None:
        if not 0.5 <= threshold <= 1:
            raise ValueError(f"the bands are made for thresholds from 0.5 to 1, not {threshold}")
        self._threshold = threshold
        self._signer = Signer(seed)
        self._waiting: list[str] = []
        self._signed: list[NDArray[np.uint32]] = []
        self._places: list[str] = []
        self._sides: list[int] = []
        self._ends = [0]
        self._seen: tuple[set[str], set[str]] = (set(), set())
        self._exact = 0
        self._file = tempfile.TemporaryFile()  # noqa: SIM115 closed by __exit__

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def add(self, text: str, where: str, key: str, side: int = 0) -> None:
        """One row: its text, its place, the hash of its exact content, and for leaks its side: 0 taught, 1 measured."""
        if key in self._seen[side]:
            self._exact += 1
            return
        self._seen[side].add(key)
        plain = normalised(text)
        data = plain.encode("utf-8", "surrogatepass")
        self._file.write(data)
        self._ends.append(self._ends[-1] + len(data))
        self._places.append(where)
        self._sides.append(side)
        self._waiting.append(plain)
        if len(self._waiting) == _TOGETHER:
            self._sign()

    def duplicates(self) -> NearFacts:
        """Clusters over all rows, whatever their side."""
        links, uncompared = self._links(leaks=False)
        groups = _Groups(len(self._places))
        for first, second, _ in links:
            groups.join(first, second)
        clusters = groups.clusters
        return self._facts(links, clusters, sum(map(len, clusters)), uncompared)

    def leaks(self) -> NearFacts:
        """For each row of side 1, the most similar row of side 0 (by signature), if one is similar enough."""
        links, uncompared = self._links(leaks=True)
        partners = defaultdict[int, list[int]](list)
        for taught, measured, _ in links:
            partners[taught].append(measured)
        clusters = [[taught, *sorted(rows)] for taught, rows in partners.items()]
        return self._facts(links, clusters, len(links), uncompared)

    def _facts(
        self, pairs: list[tuple[int, int, float]], clusters: list[list[int]], affected: int, uncompared: int
    ) -> NearFacts:
        named = [Pair(self._places[a], self._places[b], round(s, 4)) for a, b, s in sorted(pairs)]
        ordered = sorted(clusters, key=lambda cluster: (-len(cluster), cluster))
        return NearFacts(
            threshold=self._threshold,
            rows=len(self._places),
            exact=self._exact,
            affected=affected,
            surplus=len(pairs),
            pairs=tuple(named),
            clusters=tuple(tuple(self._places[row] for row in cluster) for cluster in ordered),
            uncompared=uncompared,
        )

    def _sign(self) -> None:
        self._signed.append(self._signer.sign(self._waiting))
        self._waiting = []

    def _links(self, *, leaks: bool) -> tuple[list[tuple[int, int, float]], int]:
        """Verified pairs, the most similar by signature first, and how many candidates were not looked at.

        A pair whose rows hang together already is not compared, nor a measured row that has its partner: ten thousand
        rows of one template would make fifty million pairs.
        """
        if self._waiting:
            self._sign()
        if not self._places:
            return [], 0
        sides = np.array(self._sides, np.int8)
        # Four standard deviations of an estimate from 120 values below the threshold.
        least = self._threshold - 4 * math.sqrt(self._threshold * (1 - self._threshold) / HASHES)
        candidates = _Candidates(np.concatenate(self._signed), sides if leaks else None, least)
        codes, estimates = candidates.found()
        groups = _Groups(len(self._places))
        partnered: set[int] = set()
        vain = [0] * len(self._places)
        uncompared = candidates.uncompared
        links = []
        for index in np.lexsort((codes, -estimates)):
            first, second = divmod(int(codes[index]), len(self._places))
            if leaks and sides[first] > sides[second]:
                first, second = second, first
            known = second in partnered if leaks else groups.root(first) == groups.root(second)
            if known:
                continue
            if max(vain[first], vain[second]) >= _TRIES:
                uncompared += 1
                continue
            similarity = self._similarity(first, second)
            if similarity < self._threshold:
                vain[first] += 1
                vain[second] += 1
                continue
            groups.join(first, second)
            partnered.add(second)
            links.append((first, second, similarity))
        return links, uncompared

    def _similarity(self, first: int, second: int) -> float:
        left, right = self._text(first), self._text(second)
        return 1.0 if left == right else jaccard(shingles(left), shingles(right))

    def _text(self, row: int) -> str:
        self._file.seek(self._ends[row])
        return self._file.read(self._ends[row + 1] - self._ends[row]).decode("utf-8", "surrogatepass")


class _Candidates:
    """Pairs of rows that agree in a band, and enough over all values.

    Rows with one signature stand for each other: only the first of them goes into the bands, and each other one makes
    a pair with it. Looking for leaks, that holds for what is taught; each measured row is looked at itself.
    """

    def __init__(self, signatures: NDArray[np.uint32], sides: NDArray[np.int8] | None, least: float) -> None:
        self._signatures, self._sides, self._least = signatures, sides, least
        whole = signatures.view(np.uint64) @ np.arange(1, HASHES, 2, dtype=np.uint64)  # a hash of each signature
        _, firsts, inverse = np.unique(whole, return_index=True, return_inverse=True)
        stands_for = firsts[inverse]
        rows = np.arange(len(signatures))
        self._twins = np.flatnonzero(stands_for != rows) if sides is None else np.empty(0, np.int64)
        self._firsts = stands_for[self._twins]
        alone = stands_for == rows
        if sides is not None:  # the first row of a signature may be a measured one, so taught ones are told apart
            alone = np.zeros(len(rows), bool)
            taught = np.flatnonzero(sides == 0)
            alone[taught[np.unique(whole[taught], return_index=True)[1]]] = True
            alone |= sides == 1
        self._alone = np.flatnonzero(alone)
        self.uncompared = 0

    def found(self) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Each pair once, as first * rows + second, and the share of values in which it agrees."""
        rows = len(self._signatures)
        codes = self._firsts * rows + self._twins
        for band in range(BANDS):
            codes = np.union1d(codes, np.concatenate([codes[:0], *self._of_band(band)]))
        return codes, self._agreement(codes // rows, codes % rows)

    def _of_band(self, band: int) -> Iterator[NDArray[np.int64]]:
        values = self._signatures[self._alone, band * ROWS : (band + 1) * ROWS]
        order = np.lexsort(values.T)
        ordered, placed = values[order], self._alone[order]
        runs = np.concatenate([[0], np.cumsum((ordered[1:] != ordered[:-1]).any(axis=1))])
        sizes = np.bincount(runs)
        beyond = np.maximum(sizes - 1 - _WINDOW, 0)
        self.uncompared += int((beyond * (beyond + 1) // 2).sum())
        for step in range(1, min(_WINDOW, int(sizes.max()) - 1) + 1):
            near = np.flatnonzero(runs[step:] == runs[:-step])
            one, other = placed[near], placed[near + step]
            if self._sides is not None:
                across = self._sides[one] != self._sides[other]
                one, other = one[across], other[across]
            enough = self._agreement(one, other) >= self._least
            first, second = np.minimum(one, other)[enough], np.maximum(one, other)[enough]
            yield first * len(self._signatures) + second

    def _agreement(self, one: NDArray[np.int64], other: NDArray[np.int64]) -> NDArray[np.float32]:
        shares = np.empty(len(one), np.float32)
        for begin in range(0, len(one), 1 << 16):
            part = slice(begin, begin + (1 << 16))
            agree = self._signatures[one[part]] == self._signatures[other[part]]
            # Eight truth values are added at a time: bytes of a word, none of which can pass 15.
            lanes = agree.view(np.uint64).sum(axis=1, dtype=np.uint64)
            shares[part] = (lanes * np.uint64(0x0101010101010101) >> np.uint64(56)).astype(np.float32) / HASHES
        return shares


class _Groups:
    """Rows that hang together (union-find with path halving)."""

    def __init__(self, rows: int) -> None:
        self._above = list(range(rows))

    def root(self, row: int) -> int:
        while self._above[row] != row:
            self._above[row] = self._above[self._above[row]]
            row = self._above[row]
        return row

    def join(self, one: int, other: int) -> bool:
        """Whether they hung apart."""
        first, second = sorted((self.root(one), self.root(other)))
        self._above[second] = first
        return first != second

    @property
    def clusters(self) -> list[list[int]]:
        """Those of more than one row."""
        gathered = defaultdict[int, list[int]](list)
        for row in range(len(self._above)):
            gathered[self.root(row)].append(row)
        return [rows for rows in gathered.values() if len(rows) > 1]
