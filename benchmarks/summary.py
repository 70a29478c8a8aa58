"""Several runs as a few numbers."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Spread:
    """The middle of several values, and how far they lie apart."""

    median: float
    low: float
    high: float

    @property
    def share(self) -> float:
        """From lowest to highest, as a part of the median."""
        return (self.high - self.low) / self.median if self.median else 0.0


def spread(values: Sequence[float]) -> Spread:
    """Of at least one value."""
    return Spread(statistics.median(values), min(values), max(values))


def ratios(theirs: Sequence[float], ours: Sequence[float]) -> Spread:
    """Of values that were taken in pairs, one of each in every round, so that a slow hour of the machine falls out."""
    return spread([other / own for other, own in zip(theirs, ours, strict=True)])


def growth(small: tuple[int, int], large: tuple[int, int]) -> float:
    """Bytes by which something grows with each row, from (rows, bytes) at two sizes."""
    return (large[1] - small[1]) / (large[0] - small[0])
