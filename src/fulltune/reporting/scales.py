"""From numbers to places in a picture, with ticks at round numbers."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

_SPREAD = 30.0
"""A curve whose largest value is so many times its smallest is drawn on a logarithmic scale, and says so."""


@dataclass(frozen=True, slots=True)
class Scale:
    """Numbers between `low` and `high` -> places between `start` and `stop`."""

    low: float
    high: float
    start: float
    stop: float
    log: bool = False

    def __call__(self, value: float) -> float:
        low, high = self.low, self.high
        if self.log:
            low, high, value = (math.log10(number) for number in (low, high, value))
        return self.start + (value - low) / (high - low) * (self.stop - self.start)

    @property
    def ticks(self) -> list[float]:
        """Three to seven round numbers between low and high."""
        if not self.log:
            return _ticks(self.low, self.high)
        first, last = math.floor(math.log10(self.low)), math.ceil(math.log10(self.high))
        every = max(1, (last - first) // 5)
        steps = (1, 2, 5) if last - first <= 2 else (1,)
        ladder = [step * 10.0**power for power in range(first, last + 1, every) for step in steps]
        return [value for value in ladder if self.low <= value * 1.0000001 and value <= self.high * 1.0000001]


def vertical(values: Iterable[float], top: float, bottom: float, *, zero: bool = False) -> Scale:
    """A scale for finite values, a little room around them; `zero`: it begins at zero, whatever the values."""
    kept = list(values) or [0.0, 1.0]
    low, high = min(kept), max(kept)
    if not zero and low > 0 and high / low > _SPREAD:
        return Scale(low / 1.15, high * 1.15, bottom, top, log=True)
    room = (high - low) * 0.06 or abs(high) * 0.1 or 1.0
    return Scale(0.0 if zero else max(low - room, 0.0) if low >= 0 else low - room, high + room, bottom, top)


def horizontal(values: Iterable[float], left: float, right: float) -> Scale:
    """A scale whose ends are the least and the greatest value."""
    kept = list(values) or [0.0, 1.0]
    low, high = min(kept), max(kept)
    return Scale(low, high if high > low else low + 1, left, right)


def _ticks(low: float, high: float) -> list[float]:
    raw = (high - low) / 4
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [round(step * n, 12) for n in range(first, math.floor(high / step + 1e-9) + 1)]
