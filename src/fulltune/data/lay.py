"""How the examples of one update become forward passes: pure functions of their lengths.

Both layouts hold every example whole and exactly once. *Padded* rows hold one example each, similar lengths beside
each other; a *packed* micro-batch is one row of several examples. On every rank there are equally many
micro-batches, since ranks wait for each other; a rank with less work gets empty ones.
"""

from collections.abc import Sequence
from dataclasses import dataclass

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

    def fits(self, count: int, longest: int, total: int) -> bool:
        """Whether `count` examples, the longest of so many tokens, `total` together, fit."""
        size = count * self.width(longest) if self.layout == "padded" else total
        return count <= self.examples and size <= self.tokens

    def width(self, tokens: int) -> int:
        """Of a row that holds so many tokens, padding included."""
        if self.layout == "packed":
            return tokens
        rounded = -(-tokens // _STEP) * _STEP
        return rounded if self.context is None else max(tokens, min(rounded, self.context))


def lay(lengths: Sequence[int], budget: Budget, *, rank: int = 0, size: int = 1) -> list[list[int]]:
    """This rank's micro-batches: lists of indices into `lengths`."""
    mine = _deal(lengths, size)
    laid = [_micros([(lengths[i], i) for i in part], budget) for part in mine]
    most = max(len(micros) for micros in laid)
    return laid[rank] + [[] for _ in range(most - len(laid[rank]))]


def _deal(lengths: Sequence[int], size: int) -> list[list[int]]:
    """Examples to ranks, longest first, each to the rank with the fewest tokens so far."""
    loads = [0] * size
    dealt: list[list[int]] = [[] for _ in range(size)]
    for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        rank = loads.index(min(loads))
        dealt[rank].append(index)
        loads[rank] += lengths[index]
    return dealt


def _micros(examples: list[tuple[int, int]], budget: Budget) -> list[list[int]]:
    """(length, index), longest first -> micro-batches."""
    if budget.layout == "packed":
        return _first_fit(examples, budget)
    micros: list[list[int]] = []
    longest = 0
    for length, index in examples:
        if micros and budget.fits(len(micros[-1]) + 1, longest, 0):
            micros[-1].append(index)
        else:
            micros.append([index])
            longest = length
    return micros


def _first_fit(examples: list[tuple[int, int]], budget: Budget) -> list[list[int]]:
    """First fit, longest first: within 11/9 of the fewest rows (Johnson 1973)."""
    rows: list[tuple[int, list[int]]] = []
    for length, index in examples:
        for place, (total, members) in enumerate(rows):
            if budget.fits(len(members) + 1, 0, total + length):
                rows[place] = (total + length, [*members, index])
                break
        else:
            rows.append((length, [index]))
    return [members for _, members in rows]
