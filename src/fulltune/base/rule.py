"""By what states of a run are judged: the score that counts, and what must hold besides. Pure."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

Better = Literal["higher", "lower"]
"""Which way is up. A metric says it itself; nothing here guesses it from a name."""

RETENTION = "retention.loss"
"""The score that says what was forgotten."""
DIVERGENCE = "retention.kl"
"""The score that says how far the model's predictions lie from the base's, there."""


@dataclass(frozen=True, slots=True)
class Bound:
    """A score that must be so good at least, or not worse than the base's by more than so much."""

    score: str
    better: Better
    limit: float
    over_base: bool = False
    """Whether the limit counts from what the base scored before the first update."""

    def excess(self, scores: Mapping[str, float], base: Mapping[str, float]) -> float | None:
        """By how much the bound is broken, in the score's own unit; up to 0 it is kept. None: it was not measured."""
        found = self.found(scores, base)
        if found is None:
            return None
        return found - self.limit if self.over_base or self.better == "lower" else self.limit - found

    def found(self, scores: Mapping[str, float], base: Mapping[str, float]) -> float | None:
        """What is held against the limit: the score, or how much worse than the base's it is."""
        if self.score not in scores or (self.over_base and self.score not in base):
            return None
        if not self.over_base:
            return scores[self.score]
        return -gain(self.better, base[self.score], scores[self.score])

    def __str__(self) -> str:
        if self.over_base:
            return f"{self.score} at most {self.limit:.12g} worse than the base's"
        return f"{self.score} at {'least' if self.better == 'higher' else 'most'} {self.limit:.12g}"


@dataclass(frozen=True, slots=True)
class Standing:
    """How one state stands by a rule. The least `order` goes first."""

    score: float
    excesses: tuple[float, ...]
    """Of each bound, how far it is broken; 0 where it is kept."""
    order: tuple[float, ...]
    """The number of broken bounds, how far each is broken in the rule's order, then the score: less is better."""

    @property
    def kept(self) -> bool:
        """Whether all bounds are."""
        return not any(self.excesses)


@dataclass(frozen=True, slots=True)
class Rule:
    """The best score among states that keep every bound."""

    score: str
    better: Better
    bounds: tuple[Bound, ...] = ()

    @property
    def scores(self) -> tuple[str, ...]:
        """All scores that it looks at."""
        return (self.score, *(bound.score for bound in self.bounds))

    def stands(self, scores: Mapping[str, float], base: Mapping[str, float]) -> Standing | None:
        """How a state of these scores stands; None where something was not measured, or its score is no number."""
        found = [bound.excess(scores, base) for bound in self.bounds]
        broken = tuple(_beyond(excess) for excess in found if excess is not None)
        score = scores.get(self.score, math.nan)
        if math.isnan(score) or len(broken) < len(found):
            return None
        merit = score if self.better == "lower" else -score
        return Standing(score, broken, (float(sum(map(bool, broken))), *broken, merit))

    def __str__(self) -> str:
        best = f"the {'highest' if self.better == 'higher' else 'lowest'} {self.score}"
        return f"{best} with {' and '.join(map(str, self.bounds))}" if self.bounds else best


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """By what rule the result was chosen among the states of its run, and whether it keeps that rule."""

    rule: str
    kept: bool
    """False: no state that was measured keeps it, and the result is the one that breaks it least."""
    broken: tuple[str, ...] = ()
    """The bounds that the result breaks, with what was found."""


def _beyond(excess: float) -> float:
    """How far a bound is broken; what is no number breaks it altogether."""
    return math.inf if math.isnan(excess) else max(0.0, excess)


def gain(better: Better, before: float, after: float) -> float:
    """By how much a score became better, whichever way is up; less than 0 if it became worse."""
    return after - before if better == "higher" else before - after
