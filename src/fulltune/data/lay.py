"""How the examples of one update become forward passes: pure functions of their lengths.

Both layouts hold every example whole and exactly once. *Padded* rows hold one example each, similar lengths beside
each other; a *packed* micro-batch is one row of several examples. On every rank there are equally many
micro-batches, since ranks wait for each other; a rank with less work gets empty ones.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from fulltune.base.records import Layout

_STEP = 16
"""Padded rows are as wide as a multiple of this. Matrix kernels are made for each new shape: with every width of its
own, a bf16 run on a CPU was 20% slower and took twice the memory (1.4 M parameters, 2 cores with AMX)."""


@dataclass(frozen=True, slots=True)
class Budget:
    """What one forward pass may hold: so many examples, and so many tokens including padding (at least one example)."""

    examples: int
    tokens: int
    layout: Layout
    context: int | None = None
    """Rows may not be wider than the model has positions."""
    even: float = math.inf
    """Length at which attention costs as much as all else, by which work is dealt to ranks: about 6 times the hidden
    size, since attention takes 4 * length * hidden operations a token, and the rest of a block 24 * hidden ** 2.
    """

    def fits(self, count: int, longest: int) -> bool:
        """Whether `count` padded rows, the longest of so many tokens, fit."""
        return count <= self.examples and count * self.width(longest) <= self.tokens

    def width(self, tokens: int) -> int:
        """Of a row that holds so many tokens, padding included."""
        if self.layout == "packed":
            return tokens
        rounded = -(-tokens // _STEP) * _STEP
        return rounded if self.context is None else max(tokens, min(rounded, self.context))

    def shape(self, lengths: Sequence[int]) -> tuple[int, int]:
        """Rows and width of the micro-batch of examples of these lengths; one row of one token if there are none."""
        if self.layout == "packed":
            return 1, max(1, sum(lengths))
        return max(1, len(lengths)), self.width(max(lengths, default=1))

    def halved(self, times: int) -> "Budget":
        """The budget after memory ran out so many times; one example always fits."""
        return replace(self, examples=max(1, self.examples >> times), tokens=max(1, self.tokens >> times))


def lay(lengths: Sequence[int], budget: Budget, *, rank: int = 0, size: int = 1) -> list[list[int]]:
    """This rank's micro-batches: lists of indices into `lengths`."""
    mine = _deal(lengths, size, budget.even)
    laid = [_micros([(lengths[i], i) for i in part], budget) for part in mine]
    most = max(len(micros) for micros in laid)
    return laid[rank] + [[] for _ in range(most - len(laid[rank]))]


def fullest(lengths: NDArray[np.int32], budget: Budget, most: Callable[[int], int]) -> NDArray[np.intp]:
    """Indices of the examples that make the largest micro-batch there can be, the longest first.

    `most`: how many examples an update may have, the longest of which has so many tokens.
    """
    order = np.argsort(-lengths, kind="stable")
    falling = lengths[order]

    def count(start: int) -> int:
        longest = int(falling[start])
        room = budget.tokens // budget.width(longest)
        return max(1, min(budget.examples, room, most(longest), len(order) - start))

    starts = np.flatnonzero(np.diff(falling, prepend=falling[0] + 1)).tolist()
    begin = max(starts, key=lambda start: count(start) * budget.width(int(falling[start])))
    return order[begin : begin + count(begin)]


def _deal(lengths: Sequence[int], size: int, even: float) -> list[list[int]]:
    """Examples to ranks, longest first, each to the rank with the least work so far."""
    loads = [0.0] * size
    dealt: list[list[int]] = [[] for _ in range(size)]
    for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        rank = loads.index(min(loads))
        dealt[rank].append(index)
        loads[rank] += lengths[index] * (1 + lengths[index] / even)
    return dealt


def _micros(examples: list[tuple[int, int]], budget: Budget) -> list[list[int]]:
    """(length, index), longest first -> micro-batches."""
    if budget.layout == "packed":
        return _first_fit(examples, budget)
    micros: list[list[int]] = []
    longest = 0
    for length, index in examples:
        if micros and budget.fits(len(micros[-1]) + 1, longest):
            micros[-1].append(index)
        else:
            micros.append([index])
            longest = length
    return micros


def _first_fit(examples: list[tuple[int, int]], budget: Budget) -> list[list[int]]:
    """First fit, longest first: within 11/9 of the fewest rows (Johnson 1973)."""
    rows: list[list[int]] = []
    space = _Space(len(examples), budget.tokens)
    at = 0
    while at < len(examples):
        length = examples[at][0]
        alone = length > budget.tokens
        row = len(rows) if alone else space.first(length)
        if row == len(rows):
            rows.append([])
        # As many as fit of those that are equally long: each of them would find this row first.
        most = at + (1 if alone else min(space.of(row) // length, budget.examples - len(rows[row])))
        begun = at
        while at < most and at < len(examples) and examples[at][0] == length:
            at += 1
        rows[row] += [index for _, index in examples[begun:at]]
        full = len(rows[row]) == budget.examples
        space.set(row, -1 if full else space.of(row) - length * (at - begun))
    return rows


class _Space:
    """The free tokens of rows, all empty at first: a tree of maxima, since looking at row after row is quadratic.

    20,000 examples of up to 400 tokens in rows of 512 took 11 s that way, and take 0.1 s.
    """

    def __init__(self, rows: int, tokens: int) -> None:
        self._leaves = 1 << max(0, rows - 1).bit_length()
        self._most = [tokens] * (2 * self._leaves)

    def of(self, row: int) -> int:
        """What is free in a row."""
        return self._most[self._leaves + row]

    def first(self, tokens: int) -> int:
        """The first row that has so much free; there is one, since there are as many rows as examples."""
        node = 1
        while node < self._leaves:
            node *= 2
            if self._most[node] < tokens:
                node += 1
        return node - self._leaves

    def set(self, row: int, tokens: int) -> None:
        """Say what is free in a row; less than nothing closes it."""
        node = self._leaves + row
        self._most[node] = tokens
        while node > 1:
            node //= 2
            self._most[node] = max(self._most[2 * node], self._most[2 * node + 1])
