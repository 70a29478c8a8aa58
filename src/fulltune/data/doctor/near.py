"""Near-duplicates by MinHash and locality-sensitive hashing, every pair verified, and near leaks between two sides.

Workers write for each part of the rows what `NearWriter` makes of their texts; one process then asks for all parts.
Texts that agree in a whole band of their signatures (`signatures.py`) are candidates (Leskovec, Rajaraman and Ullman,
"Mining of Massive Datasets", 3.4): a pair of Jaccard similarity s is one with probability 1 - (1 - s^6)^20: 0.9977 at
0.8, 0.9999 at 0.85, 0.27 at 0.5. Candidates whose sketches agree too little are left out (3 of 100,000 pairs that
belong), and every other is compared by its exact sets of shingles, so no pair is reported that is not one.

On one core, for rows of 700 characters: 35 µs a row in the worker; 3 to 7 µs a row for all pairs of a million rows of
which 5 % are near-duplicates, 30 µs where every row is one of a single template, 330 µs where all rows share 70 % of
their words and none is alike. Memory of the process that asks, measured at a million rows: 80 bytes a row, 115 where
every row is in one cluster (`side` included), and a constant 5 MB. On disk 124 bytes a row besides the texts.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fulltune.data.doctor.found import NAMED
from fulltune.data.doctor.near_parts import NearParts, NearWriter
from fulltune.data.doctor.near_search import Duplicates, Leaks, Rows

__all__ = ["THRESHOLD", "Near", "NearFacts", "NearWriter", "Pair", "near_duplicates", "near_leaks"]

THRESHOLD = 0.8


@dataclass(frozen=True, slots=True)
class Pair:
    """Two rows that are nearly the same: where they stand, and their Jaccard similarity (1: the same shingles)."""

    first: str
    second: str
    similarity: float


@dataclass(frozen=True, slots=True, kw_only=True)
class NearFacts:
    """Near-duplicates of a data set, or near leaks from one side into another. Numbers are whole, of rows the first."""

    threshold: float
    rows: int
    """Rows looked at; for leaks, measured ones."""
    exact: int
    """Rows whose content came before on their side to the letter: counted here, compared no more, in no pair."""
    affected: int
    """Rows in clusters; for leaks, measured rows that have a partner."""
    surplus: int
    """Rows to leave out so that one of each cluster stays; for leaks, all affected ones."""
    clusters_in_all: int
    pairs: tuple[Pair, ...]
    """One link for each surplus row leads to every row of every cluster; the first of them."""
    clusters: tuple[tuple[str, ...], ...]
    """Rows that hang together by links, the largest first, each in the order in which it was read; for leaks, a taught
    row and the measured ones that are like it."""
    uncompared: int
    """Candidates of a band not looked at since too many rows are candidates of each other (one long instruction in all
    of them): pairs that may have been missed. 0 means that none was missed for this reason."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Near:
    """What was found, by the numbers of rows over all parts."""

    threshold: float
    rows: int
    """Rows looked at; for leaks, measured ones."""
    pairs: Rows
    """[links, 2], in the order of rows: one link for each surplus row. For leaks, a taught row and a measured one."""
    similarity: NDArray[np.float64]
    """Of each link."""
    surplus: Rows
    """Rows to leave out, ascending: all of each cluster but its first; for leaks, the measured ones."""
    clusters: Rows
    """Rows that hang together, cluster after cluster, the largest first; for leaks, a taught row before its likes."""
    affected: int
    """Rows in clusters; for leaks, measured rows that have a partner."""
    ends: Rows
    """Where each cluster ends in `clusters`."""
    uncompared: int

    def facts(self, place: Callable[[int], str], exact: int = 0) -> NearFacts:
        """The record. `place`: where a row stands; `exact`: exact repetitions that the caller had left out."""
        links = zip(self.pairs[:NAMED].tolist(), self.similarity[:NAMED].tolist(), strict=True)
        ends = self.ends[:NAMED].tolist()
        clusters = (self.clusters[begin:end][:NAMED].tolist() for begin, end in zip([0, *ends], ends, strict=False))
        return NearFacts(
            threshold=self.threshold,
            rows=self.rows,
            exact=exact,
            affected=self.affected,
            surplus=len(self.surplus),
            clusters_in_all=len(self.ends),
            pairs=tuple(Pair(place(a), place(b), round(similarity, 4)) for (a, b), similarity in links),
            clusters=tuple(tuple(place(row) for row in rows) for rows in clusters),
            uncompared=self.uncompared,
        )


def near_duplicates(parts: Sequence[Path], side: NDArray[np.int8], *, threshold: float = THRESHOLD) -> Near:
    """Rows of side 0 that are nearly the same.

    `parts`: folders that a `NearWriter` wrote, in order; `side`: for each row over all of them, 0 or what is not
    compared. Rows that are the same to the letter are best left out: they would be a cluster too.
    """
    _check(threshold)
    with _opened(parts, side) as opened:
        search = Duplicates(opened, side == 0, threshold)
        links, groups, uncompared = search.links, search.groups, search.uncompared
        del search  # and its sketches: what follows takes as much where every row is in a cluster
    heads = groups.roots(np.arange(len(side)))
    surplus = np.flatnonzero(heads != np.arange(len(side)))
    clusters, ends = _clusters(heads[surplus], surplus)
    pairs, similarity = links.ordered()
    return Near(
        threshold=threshold,
        rows=int(np.count_nonzero(side == 0)),
        pairs=pairs,
        similarity=similarity,
        surplus=surplus,
        affected=len(clusters),
        clusters=clusters,
        ends=ends,
        uncompared=uncompared,
    )


def near_leaks(parts: Sequence[Path], side: NDArray[np.int8], *, threshold: float = THRESHOLD) -> Near:
    """Rows of side 1, the measured ones, that are nearly the same as one of side 0, the taught ones.

    Each measured row is asked about by itself: copies of a taught row are leaks, all of them, to the letter or nearly.
    """
    _check(threshold)
    with _opened(parts, side) as opened:
        search = Leaks(opened, side == 0, side == 1, threshold)
        links, uncompared = search.links, search.uncompared
        del search
    pairs, similarity = links.ordered()
    clusters, ends = _clusters(pairs[:, 0], pairs[:, 1])
    return Near(
        threshold=threshold,
        rows=int(np.count_nonzero(side == 1)),
        pairs=pairs,
        similarity=similarity,
        surplus=np.sort(pairs[:, 1]),
        affected=len(pairs),
        clusters=clusters,
        ends=ends,
        uncompared=uncompared,
    )


def _check(threshold: float) -> None:
    if not 0.5 <= threshold <= 1:
        raise ValueError(f"the bands are made for thresholds from 0.5 to 1, not {threshold}")


def _opened(parts: Sequence[Path], side: NDArray[np.int8]) -> NearParts:
    opened = NearParts(parts)
    if len(opened) != len(side):
        raise ValueError(f"{len(side)} sides for {len(opened)} rows")
    return opened


def _clusters(heads: Rows, others: Rows) -> tuple[Rows, Rows]:
    """Clusters one after the other, the largest first, and where each ends; of each row its cluster's head is given."""
    order = np.lexsort((others, heads))
    gathered = heads[order]
    firsts, starts, counts = np.unique(gathered, return_index=True, return_counts=True)
    gathered = np.insert(others[order], starts, firsts)
    del order
    by_size = np.argsort(-np.repeat(counts, counts + 1), kind="stable")  # of one size, they stay in order
    return gathered[by_size], np.cumsum(np.sort(counts + 1)[::-1])
