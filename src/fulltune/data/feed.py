"""The feed: examples of a store -> the batches of an update."""

import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fulltune.base.beside import Beside
from fulltune.base.records import IGNORE
from fulltune.batch import Batch, Reference
from fulltune.data.lay import Budget, fullest, lay
from fulltune.data.order import Order
from fulltune.data.store import Store

Refer = Callable[[Sequence[int], Sequence[int], NDArray[Any]], Reference]
"""Examples of a batch, how many supervised tokens each has, and the weights of all these -> what the base predicts."""


def collate(store: Store, members: Sequence[int], budget: Budget, refer: Refer | None = None) -> Batch:
    """Lay examples of a store into one batch; with what the base predicts of them, where it is asked for."""
    examples = [store[i] for i in members]
    lengths = [len(example.ids) for example in examples]
    packed = budget.layout == "packed"
    shape = budget.shape(lengths)
    ids = np.zeros(shape, np.int64)
    labels = np.full(shape, IGNORE, np.int64)
    weights = np.zeros(shape, np.float32)
    positions = np.zeros(shape, np.int64)
    at = 0
    for number, example in enumerate(examples):
        row, start = (0, at) if packed else (number, 0)
        here = slice(start, start + lengths[number])
        ids[row, here], labels[row, here], weights[row, here] = example.ids, example.labels, example.weights
        positions[row, here] = np.arange(lengths[number])
        at += lengths[number]
    taught = np.flatnonzero(labels != IGNORE)
    sizes = (lengths or [1]) if packed else [shape[1]] * shape[0]
    made = Batch(
        ids=torch.from_numpy(ids),
        labels=torch.from_numpy(labels),
        weights=torch.from_numpy(weights),
        positions=torch.from_numpy(positions) if packed else None,
        taught=torch.from_numpy(taught),
        examples=tuple(int(i) for i in members),
        lengths=tuple(lengths),
        weight=float(weights.sum(dtype=np.float64)),
        bounds=torch.from_numpy(np.cumsum([0, *sizes], dtype=np.int32)),
    )
    if refer is None:
        return made
    counts = [int((example.labels != IGNORE).sum()) for example in examples]
    return replace(made, reference=refer(made.examples, counts, weights.reshape(-1)[taught]))


@dataclass(frozen=True, slots=True)
class Portion:
    """What one update takes from the data: examples, or as many whole ones as fit into so many tokens."""

    examples: int | None
    tokens: int | None

    def count(self, lengths: Sequence[int]) -> int:
        """How many of the next examples, of these lengths, one update takes; at least one."""
        if self.tokens is None:
            return len(lengths)
        fitting = int(np.searchsorted(np.cumsum(lengths), self.tokens, side="right"))
        return max(1, fitting)

    def most(self, shortest: int) -> int:
        """No update takes more examples than this, of which the shortest has so many tokens."""
        if self.tokens is None:
            assert self.examples is not None
            return self.examples
        return max(1, self.tokens // shortest)


@dataclass(frozen=True, slots=True)
class _Made:
    """Batches of examples under a budget."""

    members: list[int]
    budget: Budget
    batches: list[Batch]


class Feed:
    """The micro-batches of the update that begins at a position of the data; the same whenever it is asked."""

    def __init__(
        self,
        store: Store,
        order: Order,
        portion: Portion,
        *,
        end: int | None,
        rank: int = 0,
        size: int = 1,
        refer: Refer | None = None,
    ) -> None:
        """`end`: the position at which the data is used up, None for never. `refer`: knows what the base predicts."""
        self._store, self._order, self._portion = store, order, portion
        self._end, self._rank, self._size = end, rank, size
        self._most = portion.most(int(store.lengths.min()))
        self._refer = refer
        self._coming: Future[_Made] | None = None

    def take(self, position: int) -> list[int]:
        """The examples of the update that begins here, in order; empty at the end. The next begins `len` further."""
        stop = position + self._most
        members = self._order.at(position, stop if self._end is None else min(stop, self._end))
        count = self._portion.count(self._store.lengths[members].tolist()) if len(members) else 0
        return [int(i) for i in members[:count]]

    def batches(self, members: Sequence[int], budget: Budget) -> Iterator[Batch]:
        """This rank's micro-batches of these examples: those that were made ahead, or else made one by one."""
        coming, self._coming = self._coming, None
        # What could not be made ahead is tried once more, where its error belongs and a pass holds no memory.
        made = None if coming is None or coming.exception() is not None else coming.result()
        if made is not None and (made.members, made.budget) == (list(members), budget):
            return iter(made.batches)
        return self._one_by_one(members, budget)

    @contextmanager
    def ahead(self, position: int, budget: Budget) -> Iterator[None]:
        """In here a thread makes the batches of the update at this position, which `batches` gives if they are asked.

        It ends with this. While a GPU computes, the host has time for it; on a CPU it is two ten thousandths of it.
        """
        making = Beside("next-batches", self._next, position, budget)
        self._coming = making.found
        try:
            yield
        finally:
            making.join()

    def _next(self, position: int, budget: Budget) -> _Made:
        members = self.take(position)
        return _Made(members, budget, list(self._one_by_one(members, budget)) if members else [])

    def _one_by_one(self, members: Sequence[int], budget: Budget) -> Iterator[Batch]:
        for micro in lay(self._lengths(members), budget, rank=self._rank, size=self._size):
            yield collate(self._store, [members[i] for i in micro], budget, self._refer)

    def cut(self, members: Sequence[int], budget: Budget) -> list[list[int]]:
        """How these examples fall into the micro-batches of all ranks, the same on each; to compare budgets by."""
        lengths = self._lengths(members)
        return [micro for rank in range(self._size) for micro in lay(lengths, budget, rank=rank, size=self._size)]

    def heaviest(self, budget: Budget) -> list[list[int]]:
        """What asks for the most memory: an update of the longest examples, and the fullest micro-batch there can be.

        They differ: of 4,096 tokens, a row of 2,100 leaves half of them empty, and four rows of 1,000 nearly none. The
        second is left out where the widest micro-batch of the first is as full.
        """
        order = np.argsort(-self._store.lengths, kind="stable")[: self._most]
        count = self._portion.count(self._store.lengths[order].tolist())
        longest, most = order[:count].tolist(), fullest(self._store.lengths, budget, self._portion.most).tolist()
        shapes = [budget.shape(self._lengths([longest[i] for i in micro])) for micro in self.cut(longest, budget)]
        widest = max(shapes, key=lambda shape: (shape[1], shape[0]))
        return [longest] if math.prod(widest) >= math.prod(budget.shape(self._lengths(most))) else [longest, most]

    @property
    def shortest(self) -> list[int]:
        """The example that asks for the least, alone."""
        return [int(self._store.lengths.argmin())]

    def _lengths(self, members: Sequence[int]) -> list[int]:
        return [int(self._store.lengths[i]) for i in members]

    def origins(self, members: Sequence[int]) -> list[str]:
        """`file:line` of examples, for messages."""
        return [self._store.origin(i) for i in members]


def once(
    store: Store,
    budget: Budget,
    *,
    members: Sequence[int] | None = None,
    rank: int = 0,
    size: int = 1,
    refer: Refer | None = None,
) -> Iterator[Batch]:
    """These examples of a store (by default all) exactly once, in batches of similar length: for evaluation."""
    members = range(len(store)) if members is None else members
    for micro in lay([int(store.lengths[i]) for i in members], budget, rank=rank, size=size):
        yield collate(store, [members[i] for i in micro], budget, refer)
