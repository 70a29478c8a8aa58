"""Which example comes when: a pure function of (sizes, shares, seed, position). No iterator, nothing to fast-forward.

Without shares all sources are one stream: its examples in a new random order each epoch, for ever. With shares every
source has such a stream of its own, and they are merged: item j of a source with share p is due at time (j + 1/2) / p,
so after T positions p * T of its items have come, give or take one. In a block of positions the sources take turns at
random, each going on in its own stream.

Replay is a second such order laid into the first. It is not shuffled among the rest but comes evenly, so that every
update has its part of it, give or take one example, however small the update is.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

_BLOCK = 4096
_FINEST = 10**9
"""Largest denominator of a share of replay: an update of 9e9 examples is counted in 64 bits without overflow."""


@dataclass(frozen=True, slots=True)
class Replay:
    """Examples that stand behind the others in the store, and their part of the positions.

    Position k is theirs if a whole number lies in (k * part, (k + 1) * part]: every n positions hold n * part of them,
    give or take one.
    """

    sizes: tuple[int, ...]
    shares: tuple[float, ...] | None
    part: Fraction

    @classmethod
    def of(cls, sizes: Sequence[int], shares: Sequence[float] | None, part: float) -> "Replay":
        """`part` as it is written: 0.1 is a tenth, not the float beside it, so that ten positions hold exactly one."""
        exact = Fraction(str(part)).limit_denominator(_FINEST)
        assert 0 <= exact < 1, "replay is a part of the whole"
        return cls(tuple(sizes), None if shares is None else tuple(shares), exact)

    def before(self, position: int) -> int:
        """How many of the positions before this one are replay."""
        return position * self.part.numerator // self.part.denominator

    def positions(self, others: int) -> int:
        """The fewest positions that hold so many other examples."""
        assert others > 0, "a run has examples of its own"
        return (others - 1) * self.part.denominator // (self.part.denominator - self.part.numerator) + 1

    def which(self, start: int, stop: int) -> NDArray[np.bool_]:
        """Whether each of these positions is replay."""
        above, below = self.part.numerator, self.part.denominator
        rest = start * above % below  # in Python's whole numbers, which do not overflow
        return np.diff((rest + np.arange(stop - start + 1, dtype=np.int64) * above) // below) > 0


class Order:
    """`order.at(start, stop)` are the examples of those positions, as indices into the store."""

    def __init__(
        self, sizes: Sequence[int], *, shares: Sequence[float] | None, seed: int, replay: Replay | None = None
    ) -> None:
        """`sizes`: examples of each source, one source after the other in the store. `shares`: how often each comes."""
        self._main = _Merged(sizes, shares, f"{seed}")
        self._replay = replay
        if replay is not None:
            self._again = _Merged(replay.sizes, replay.shares, f"{seed}/replay")
            self._behind = sum(sizes)

    def at(self, start: int, stop: int) -> NDArray[np.int64]:
        """int64 [stop - start]."""
        if self._replay is None or start >= stop:
            return self._main.at(start, stop)
        before, after = self._replay.before(start), self._replay.before(stop)
        which = self._replay.which(start, stop)
        made = np.empty(stop - start, np.int64)
        made[which] = self._behind + self._again.at(before, after)
        made[~which] = self._main.at(start - before, stop - after)
        return made


class _Merged:
    """An endless order of the examples of some sources, each as often as its share says."""

    def __init__(self, sizes: Sequence[int], shares: Sequence[float] | None, key: str) -> None:
        assert sum(sizes) > 0, "an order needs examples"
        if shares is None:
            sizes, shares = [sum(sizes)], [1.0]
        wanted = list(shares)
        self._sources = [s for s, size in enumerate(sizes) if size > 0]
        total = sum(wanted[s] for s in self._sources)
        self._shares = np.array([wanted[s] / total for s in self._sources])
        self._sizes = [sizes[s] for s in self._sources]
        starts = np.concatenate([[0], np.cumsum(sizes)])
        self._starts = [int(starts[s]) for s in self._sources]
        self._key = key
        self._block = lru_cache(maxsize=4)(self._make_block)
        self._permutation = lru_cache(maxsize=2 * len(self._sources))(self._make_permutation)

    def at(self, start: int, stop: int) -> NDArray[np.int64]:
        pieces = []
        while start < stop:
            number = self._block_of(start)
            first, block = self._first(number), self._block(number)
            piece = block[start - first : stop - first]
            pieces.append(piece)
            start += len(piece)
        return np.concatenate(pieces) if pieces else np.empty(0, np.int64)

    def _counts(self, time: int) -> NDArray[np.int64]:
        """How many items of each source are due before `time`: item j is, if (j + 1/2) / share < time."""
        # Rounded, since a share times an epoch is meant to be a whole number and floats miss it by 1e-10.
        return np.ceil(np.round(self._shares * time - 0.5, 6)).astype(np.int64)

    def _first(self, number: int) -> int:
        return int(self._counts(number * _BLOCK).sum())

    def _block_of(self, position: int) -> int:
        """Blocks hold _BLOCK positions, give or take one for each source, so the guess is off by a few at most."""
        number = position // _BLOCK
        while number > 0 and self._first(number) > position:
            number -= 1
        while self._first(number + 1) <= position:
            number += 1
        return number

    def _make_block(self, number: int) -> NDArray[np.int64]:
        before, after = self._counts(number * _BLOCK), self._counts((number + 1) * _BLOCK)
        counts = after - before
        turns = np.repeat(np.arange(len(counts)), counts)
        turns = turns[_shuffle(len(turns), f"{self._key}/block/{number}")]
        block = np.empty(len(turns), np.int64)
        for source in range(len(counts)):
            block[turns == source] = self._stream(source, int(before[source]), int(after[source]))
        return block

    def _stream(self, source: int, start: int, stop: int) -> NDArray[np.int64]:
        """Items [start, stop) of one source's endless stream."""
        size = self._sizes[source]
        pieces = []
        while start < stop:
            epoch, place = divmod(start, size)
            piece = self._permutation(source, epoch)[place : place + stop - start]
            pieces.append(piece)
            start += len(piece)
        return self._starts[source] + (np.concatenate(pieces) if pieces else np.empty(0, np.int64))

    def _make_permutation(self, source: int, epoch: int) -> NDArray[np.int64]:
        return _shuffle(self._sizes[source], f"{self._key}/{self._sources[source]}/{epoch}")


def _shuffle(size: int, key: str) -> NDArray[np.int64]:
    """A permutation that no version of numpy changes: the raw Philox stream is guaranteed, shuffles are not."""
    digest = hashlib.sha256(key.encode()).digest()
    raw = np.random.Philox(key=np.frombuffer(digest[:16], np.uint64)).random_raw(size)
    return np.argsort(raw, kind="stable").astype(np.int64)
