"""Preferences between two models -> who won how often, and how sure that is."""

import math
from collections import Counter
from collections.abc import Iterable
from statistics import NormalDist
from typing import Literal

from fulltune.base.results import Wins
from fulltune.evaluation.intervals import mcnemar

Verdict = Literal["one", "other", "tie"]


def counted(
    verdicts: Iterable[Verdict], *, suite: str, one: str, other: str, confidence: float, swayed: int = 0
) -> Wins:
    """Wins, ties, and each model's part of the prompts that are no ties.

    The interval is Wilson's (1927), which stays within [0, 1] and holds for few prompts; `p` is the sign test's.
    """
    found = Counter(verdicts)
    ours, theirs = found["one"], found["other"]
    decided = ours + theirs
    wins = {one: ours, other: theirs}
    return Wins(
        suite=suite,
        one=one,
        other=other,
        prompts=found.total(),
        one_wins=ours,
        other_wins=theirs,
        ties=found["tie"],
        swayed=swayed,
        shares={name: count / decided for name, count in wins.items()} if decided else {},
        intervals={name: wilson(count, decided, confidence) for name, count in wins.items()} if decided else {},
        p=mcnemar(ours, theirs),
        confidence=confidence,
    )


def wilson(count: int, of: int, confidence: float) -> tuple[float, float]:
    """Wilson's score interval of a proportion (Wilson 1927)."""
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    share, scale = count / of, 1 + z * z / of
    middle = (share + z * z / (2 * of)) / scale
    reach = z / scale * math.sqrt(share * (1 - share) / of + z * z / (4 * of * of))
    return max(0.0, middle - reach), min(1.0, middle + reach)
