"""What is kept of a sweep: which fields were varied, and what came of each trial."""

from dataclasses import dataclass
from typing import Any, Literal

State = Literal["done", "pruned", "failed", "open"]
"""Of a trial; `open` is one that was stopped and is taken up by the same command."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Axis:
    """One field of the recipe that is varied: between two ends, or over values that were listed."""

    field: str
    """Such as `optim.lr`."""
    kind: Literal["float", "int", "choice"]
    low: float = 0.0
    high: float = 0.0
    log: bool = False
    """Whether the ratio of two values counts in place of their difference."""
    choices: tuple[Any, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """One run of a sweep."""

    number: int
    """From 0, in the order in which they began."""
    state: State
    values: dict[str, Any]
    """By field."""
    rank: int | None = None
    """From 1, of those that are done; the others have none."""
    score: float | None = None
    """What trials are ranked by: of the result, or of the last state that was measured."""
    retention: float | None = None
    """Loss on `data.retention` of the same state."""
    tokens: int = 0
    seconds: float = 0.0
    """Of updates."""
    folder: str
    """Where its run lies."""
    reason: str = ""
    """Why it failed or was pruned."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sweep:
    """A sweep as it stands."""

    folder: str
    by: str
    """The score that trials are ranked by."""
    better: Literal["lower", "higher"]
    axes: tuple[Axis, ...]
    before: dict[str, float]
    """Scores of the base."""
    trials: tuple[Trial, ...]
    """By rank; behind them those that have none."""
    best: str | None
    """The file of the best recipe; None if no trial is done."""
    advice: tuple[str, ...]
    notes: tuple[str, ...]
    """What to know before believing it."""
