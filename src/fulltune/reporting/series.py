"""Long curves made short without hiding anything: of each stretch the lowest and the highest value stay."""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

Points = Sequence[tuple[float, float]]


@dataclass(frozen=True, slots=True)
class Bucket:
    """Neighbouring values of a curve."""

    first: float
    last: float
    low: float
    mean: float
    """Of the finite ones; NaN if there are none."""
    high: float
    odd: int
    """Values that are not finite."""


def finite(points: Points) -> list[tuple[float, float]]:
    """Points whose value can be drawn."""
    return [(x, y) for x, y in points if math.isfinite(y)]


def thinned(points: Points, most: int) -> list[tuple[float, float]]:
    """At most about `most` of the finite points: of each stretch the lowest and the highest, where they stood.

    All of them if there are no more. The first and the last point stay, and so does every spike.
    """
    kept = finite(points)
    if len(kept) <= most:
        return kept
    chosen = {0, len(kept) - 1}
    for start, stop in _stretches(len(kept), max(most // 2, 1)):
        stretch = range(start, stop)
        chosen.add(min(stretch, key=lambda at: kept[at][1]))
        chosen.add(max(stretch, key=lambda at: kept[at][1]))
    return [kept[at] for at in sorted(chosen)]


def buckets(points: Points, most: int) -> list[Bucket]:
    """The curve in at most `most` stretches of equally many points, each with what it holds."""
    made = []
    for start, stop in _stretches(len(points), most):
        values = [y for _, y in points[start:stop] if math.isfinite(y)]
        low, high = (min(values), max(values)) if values else (math.nan, math.nan)
        mean = math.fsum(values) / len(values) if values else math.nan
        made.append(Bucket(points[start][0], points[stop - 1][0], low, mean, high, stop - start - len(values)))
    return made


def smooth(points: Points, most: int) -> list[tuple[float, float]]:
    """The mean of each of at most `most` stretches, at its middle."""
    return [
        ((bucket.first + bucket.last) / 2, bucket.mean)
        for bucket in buckets(points, most)
        if math.isfinite(bucket.mean)
    ]


def _stretches(count: int, most: int) -> list[tuple[int, int]]:
    pieces = min(count, most)
    borders = [count * piece // pieces for piece in range(pieces + 1)] if pieces else [0]
    return list(itertools.pairwise(borders))
