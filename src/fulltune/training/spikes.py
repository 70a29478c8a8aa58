"""Spikes: losses far above those before them, found by a robust score."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Literal

_FEWEST = 16
"""Losses before any is judged: the spread of fewer says little."""
_DEVIATION = 1.4826
"""Standard deviations in a median absolute deviation of the normal distribution."""
_LEAST_SPREAD = 0.02
"""Of the median: where losses hardly differ, a rise of a tenth of them is no spike."""


def score(loss: float, losses: Sequence[float]) -> float:
    """How many robust standard deviations a loss lies above the median of others; 0 while there are too few.

    The modified z-score of Iglewicz and Hoaglin (1993): one spike among the others moves it hardly.
    """
    if len(losses) < _FEWEST:
        return 0.0
    middle = median(losses)
    spread = _DEVIATION * median(abs(other - middle) for other in losses)
    spread = max(spread, _LEAST_SPREAD * abs(middle))
    if spread == 0:
        return math.inf if loss > middle else 0.0
    return (loss - middle) / spread


@dataclass(frozen=True, slots=True, kw_only=True)
class Spikes:
    """Which losses are spikes, and what is done about them."""

    policy: Literal["off", "warn", "rollback"]
    window: int
    """How many losses the next one is compared with."""
    limit: float
    """The score from which a loss is a spike."""

    def found(self, loss: float, losses: Sequence[float]) -> bool:
        """Whether the loss is one."""
        return self.policy != "off" and score(loss, losses) >= self.limit

    def refused(self, loss: float, losses: Sequence[float]) -> bool:
        """Whether it is one that must not be learned from."""
        return self.policy == "rollback" and self.found(loss, losses)

    def remembered(self, loss: float, losses: Sequence[float]) -> tuple[float, ...]:
        """The losses by which the next is judged; a spike is not among them, or the next would be none."""
        if self.policy == "off" or self.found(loss, losses):
            return tuple(losses)
        return (*losses, loss)[-self.window :]
