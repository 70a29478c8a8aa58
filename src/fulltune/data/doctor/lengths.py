"""Lengths of examples in tokens, and what each limit on them would cut away."""

from collections import Counter
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

LADDER = tuple(1 << power for power in range(8, 18))
"""Limits that are asked about: 256, 512, ... 131,072 tokens."""
_LIMITS = np.array(LADDER)


@dataclass(frozen=True, slots=True, kw_only=True)
class Cut:
    """What `data.max_length` of so many tokens takes away when over-long rows are truncated."""

    max_length: int
    rows: int
    """Rows that are longer."""
    rows_share: float
    supervised: int
    """Supervised tokens that are cut off; the last place kept predicts nothing, so it counts too."""
    supervised_share: float
    rows_untaught: int
    """Rows of which no supervised token would be left."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LengthFacts:
    """How long the examples are. Rows that an earlier limit left out or cut are not here, or not whole."""

    examples: int
    tokens_per_epoch: int
    supervised_per_epoch: int
    quantiles: dict[str, int]
    """min, p50, p90, p99, max of the lengths in tokens."""
    histogram: dict[str, int]
    """Upper bound, a power of two -> rows longer than the bound before and not longer than this one."""
    cuts: tuple[Cut, ...]
    """One for each limit of the ladder below the longest row, and the first that cuts nothing."""


def counted(lengths: NDArray[np.int64], taught: NDArray[np.bool_]) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Supervised tokens of examples (int32 [examples]), and those that each limit leaves (int32 [examples, limits]).

    `taught`: whether a label is (`labels != IGNORE`), bool [tokens], one example behind the other.
    """
    before = np.concatenate([[0], np.cumsum(taught)]).astype(np.int32)
    ends = np.cumsum(lengths)
    starts = ends - lengths
    # Cut to N tokens, places up to N - 2 keep their label; an example of N tokens keeps all.
    places = np.where(lengths[:, None] > _LIMITS, _LIMITS - 1, lengths[:, None]) + starts[:, None]
    return before[ends] - before[starts], before[places] - before[starts][:, None]


class LengthTotals:
    """Is shown the numbers of many examples at once, in any chunks; keeps one number for each different length."""

    def __init__(self) -> None:
        self._counts: Counter[int] = Counter()
        self._supervised = 0
        self._kept = np.zeros(len(LADDER), np.int64)
        self._untaught = np.zeros(len(LADDER), np.int64)

    def add_chunk(self, lengths: NDArray[np.integer], taught: NDArray[np.integer], left: NDArray[np.integer]) -> None:
        """Of each example: its tokens, those of them that are supervised, and what `counted` told."""
        values, counts = np.unique(lengths, return_counts=True)
        self._counts.update(dict(zip(values.tolist(), counts.tolist(), strict=True)))
        self._supervised += int(taught.sum(dtype=np.int64))
        self._kept += left.sum(axis=0, dtype=np.int64)
        self._untaught += ((left == 0) & (taught > 0)[:, None]).sum(axis=0)

    @property
    def facts(self) -> LengthFacts:
        """What was seen so far."""
        lengths = np.array(sorted(self._counts), np.int64)
        counts = np.array([self._counts[int(length)] for length in lengths], np.int64)
        longest = int(lengths[-1]) if len(lengths) else 0
        needed = int(np.searchsorted(_LIMITS, longest)) + 1
        return LengthFacts(
            examples=int(counts.sum()),
            tokens_per_epoch=int((lengths * counts).sum()),
            supervised_per_epoch=self._supervised,
            quantiles=quantiles(self._counts),
            histogram=self._histogram(),
            cuts=tuple(self._cut(number, lengths, counts) for number in range(min(needed, len(LADDER)))),
        )

    def _cut(self, number: int, lengths: NDArray[np.int64], counts: NDArray[np.int64]) -> Cut:
        limit = LADDER[number]
        rows = int(counts[lengths > limit].sum())
        supervised = self._supervised - int(self._kept[number])
        return Cut(
            max_length=limit,
            rows=rows,
            rows_share=rows / max(int(counts.sum()), 1),
            supervised=supervised,
            supervised_share=supervised / max(self._supervised, 1),
            rows_untaught=int(self._untaught[number]),
        )

    def _histogram(self) -> dict[str, int]:
        bins: Counter[int] = Counter()
        for length, count in self._counts.items():
            bins[1 << max(length - 1, 0).bit_length()] += count
        return {str(bound): bins[bound] for bound in sorted(bins)}


def quantiles(counts: Counter[int]) -> dict[str, int]:
    """Min, p50, p90, p99 and max of counted values: the least value that so many do not exceed. Empty for none."""
    if not counts:
        return {}
    names = {"min": 0.0, "p50": 0.5, "p90": 0.9, "p99": 0.99, "max": 1.0}
    return {name: quantile(counts, share) for name, share in names.items()}


def quantile(counts: Counter[int], share: float) -> int:
    """The least counted value that at least this share of all does not exceed."""
    values = sorted(counts)
    reached = np.cumsum([counts[value] for value in values])
    return values[int(np.searchsorted(reached, max(share * reached[-1], 1)))]
