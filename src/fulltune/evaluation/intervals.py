"""How sure a score is, and whether two models differ: bootstrap, McNemar's test, permutation of pairs."""

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from fulltune.base.results import Compared
from fulltune.evaluation.answers import Items

Total = Callable[[Items], float]


def bootstrap(items: Items, total: Total, *, resamples: int, confidence: float, seed: int) -> tuple[float, float]:
    """Percentile interval: what `total` gives of as many questions drawn with replacement (Efron 1979)."""
    draws = np.random.default_rng(seed)
    found = [total(items[draws.integers(len(items), size=len(items))]) for _ in range(resamples)]
    return _percentiles(found, confidence)


def compared(one: Items, other: Items, total: Total, *, resamples: int, confidence: float, seed: int) -> Compared:
    """The difference `one - other` over the same questions in the same order, its interval, and a test of it.

    Pass or fail: McNemar's exact test of the questions that only one of the two has right (McNemar 1947). Else pairs
    are swapped at random, and `p` is how often the totals then lie as far apart (Noreen 1989); never below
    1 / (resamples + 1). The interval is that of pairs drawn with replacement.
    """
    assert one.shape == other.shape
    draws = np.random.default_rng(seed)
    size = len(one)
    difference = total(one) - total(other)
    found = []
    for _ in range(resamples):
        drawn = draws.integers(size, size=size)
        found.append(total(one[drawn]) - total(other[drawn]))
    wins, losses = int((one[:, 0] > other[:, 0]).sum()), int((one[:, 0] < other[:, 0]).sum())
    passes = one.shape[1] == 1 and bool(np.isin(np.concatenate([one, other]), (0.0, 1.0)).all())
    p = mcnemar(wins, losses) if passes else _permuted(one, other, total, difference, draws, resamples)
    return Compared(
        difference=difference,
        interval=_percentiles(found, confidence),
        p=p,
        test="McNemar exact" if passes else "permutation of pairs",
        questions=size,
        higher=wins,
        lower=losses,
    )


def mcnemar(wins: int, losses: int) -> float:
    """Two-sided p that a fair coin gives a split at least as uneven: exact, from the binomial distribution."""
    tossed, fewer = wins + losses, min(wins, losses)
    if 2 * fewer == tossed:
        return 1.0
    logs = [_log_choose(tossed, k) - tossed * math.log(2) for k in range(fewer + 1)]
    return min(1.0, 2 * math.fsum(map(math.exp, logs)))


def _log_choose(n: int, k: int) -> float:
    return math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)


def _permuted(
    one: Items, other: Items, total: Total, difference: float, draws: np.random.Generator, resamples: int
) -> float:
    as_far = 0
    for _ in range(resamples):
        swapped = draws.integers(2, size=(len(one), 1), dtype=np.int8).astype(bool)
        apart = total(np.where(swapped, other, one)) - total(np.where(swapped, one, other))
        as_far += abs(apart) >= abs(difference) - 1e-12  # the same sum in another order
    return (as_far + 1) / (resamples + 1)


def _percentiles(found: list[float], confidence: float) -> tuple[float, float]:
    values: NDArray[np.float64] = np.array(found)
    tail = (1 - confidence) / 2
    low, high = np.quantile(values, [tail, 1 - tail], method="linear")
    return float(low), float(high)
