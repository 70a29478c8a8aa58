"""Which example comes when: a pure function of (sizes, shares, seed, position). No iterator, nothing to fast-forward.

Without shares all sources are one stream: its examples in a new random order each epoch, for ever. With shares every
source has such a stream of its own, and they are merged: item j of a source with share p is due at time (j + 1/2) / p,
so after T positions p * T of its items have come, give or take one. In a block of positions the sources take turns at
random, each going on in its own stream.
"""

import hashlib
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

_BLOCK = 4096


class Order:
    """`order.at(start, stop)` are the examples of those positions, as indices into the store."""

    def __init__(self, sizes: Sequence[int], *, shares: Sequence[float] | None, seed: int) -> None:
        """`sizes`: examples of each source, one source after the other in the store. `shares`: how often each comes."""
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
        self._seed = seed
        self._block = lru_cache(maxsize=4)(self._make_block)
        self._permutation = lru_cache(maxsize=2 * len(self._sources))(self._make_permutation)

    def at(self, start: int, stop: int) -> NDArray[np.int64]:
        """int64 [stop - start]."""
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
        turns = turns[_shuffle(len(turns), f"{self._seed}/block/{number}")]
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
        return _shuffle(self._sizes[source], f"{self._seed}/{self._sources[source]}/{epoch}")


def _shuffle(size: int, key: str) -> NDArray[np.int64]:
    """A permutation that no version of numpy changes: the raw Philox stream is guaranteed, shuffles are not."""
    digest = hashlib.sha256(key.encode()).digest()
    raw = np.random.Philox(key=np.frombuffer(digest[:16], np.uint64)).random_raw(size)
    return np.argsort(raw, kind="stable").astype(np.int64)
