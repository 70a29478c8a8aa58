"""The gate before a result is shipped: what must hold of it, and the verdict with its figures and words. Pure."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from fulltune.base.rule import RETENTION, Better, Bound, gain

Interval = tuple[float, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Moved:
    """One score of the base and of the result."""

    score: str
    before: float
    after: float
    gain: float
    """By how much it became better, whichever way is up."""
    interval: Interval | None
    """Of the gain, by drawing questions anew, the same ones of both; None: not known, as of a loss."""

    def __str__(self) -> str:
        return self._told(f"{self.gain:.4f}", self.interval)

    @property
    def lost(self) -> str:
        """The same of a score that should not become worse."""
        span = None if self.interval is None else (-self.interval[1], -self.interval[0])
        return self._told(f"{-self.gain:.4f}" if self.gain < 0 else "nothing", span)

    def _told(self, much: str, interval: Interval | None) -> str:
        span = "interval not known" if interval is None else f"{interval[0]:.4f}, {interval[1]:.4f}"
        return f"{much} [{span}] of {self.score} ({self.before:.4f} -> {self.after:.4f})"


@dataclass(frozen=True, slots=True, kw_only=True)
class Condition:
    """One thing that must hold."""

    what: str
    found: float | None
    """What was held against it; None: it was not measured."""
    kept: bool | None


@dataclass(frozen=True, slots=True, kw_only=True)
class GateVerdict:
    """Whether a result is to be shipped, and by what figures."""

    ship: bool | None
    """None: it could not be judged."""
    gained: Moved | None
    lost: Moved | None
    """Of retention loss, the gain of which is less than 0 where something was forgotten."""
    conditions: tuple[Condition, ...]
    asked: bool
    """Whether the recipe names the gate; if not, it is the one by default."""
    notes: tuple[str, ...] = ()
    """What must be known before believing it."""

    @property
    def word(self) -> str:
        """The verdict itself."""
        return {True: "SHIP", False: "DO NOT SHIP", None: "NOT JUDGED"}[self.ship]

    @property
    def headline(self) -> str:
        """Gained, lost, and the verdict, as one line."""
        got = "gain not measured" if self.gained is None else f"gained {self.gained}"
        gone = "loss of the old not measured" if self.lost is None else f"lost {self.lost.lost}"
        return f"{got}, {gone}: {self.word}"

    @property
    def reasons(self) -> tuple[str, ...]:
        """The conditions that failed or could not be judged, then what must be known."""
        return (*self.failures, *self.notes)

    @property
    def failures(self) -> tuple[str, ...]:
        """The conditions that failed or could not be judged."""
        lacking = [f"not measured: {one.what}" for one in self.conditions if one.found is None]
        failed = [f"failed: {one.what}, and it is {one.found:.4f}" for one in self.conditions if one.kept is False]
        return (*failed, *lacking)


@dataclass(frozen=True, slots=True, kw_only=True)
class Gate:
    """What must hold of a result."""

    score: str | None
    """What the gain is of; None: nothing says what was learned."""
    better: Better
    min_gain: float
    """It must be more."""
    bounds: tuple[Bound, ...]
    asked: bool

    def judge(
        self,
        before: Mapping[str, float],
        after: Mapping[str, float],
        *,
        interval: Callable[[str], Interval | None],
        notes: tuple[str, ...] = (),
    ) -> GateVerdict:
        """The verdict by the scores of base and result. `interval`: of the gain in a score, where one is known."""
        gained = None if self.score is None else _moved(self.score, self.better, before, after, interval)
        wanted = f"a gain of more than {self.min_gain:.12g} in {self.score or 'a score of test or held-out data'}"
        made = None if gained is None else gained.gain
        conditions = [Condition(what=wanted, found=made, kept=None if made is None else made > self.min_gain)]
        for bound in self.bounds:
            excess = bound.excess(after, before)
            kept = None if excess is None else excess <= 0
            conditions.append(Condition(what=str(bound), found=bound.found(after, before), kept=kept))
        held = [condition.kept for condition in conditions]
        return GateVerdict(
            ship=False if False in held else None if None in held else True,
            gained=gained,
            lost=_moved(RETENTION, "lower", before, after, interval),
            conditions=tuple(conditions),
            asked=self.asked,
            notes=(*_unsure(gained, self.min_gain), *notes),
        )


def _moved(
    score: str,
    better: Better,
    before: Mapping[str, float],
    after: Mapping[str, float],
    interval: Callable[[str], Interval | None],
) -> Moved | None:
    """None if it was not measured of both."""
    if score not in before or score not in after:
        return None
    made = gain(better, before[score], after[score])
    return Moved(score=score, before=before[score], after=after[score], gain=made, interval=interval(score))


def _unsure(gained: Moved | None, least: float) -> Iterator[str]:
    if gained is not None and gained.interval is not None and gained.interval[0] <= least < gained.gain:
        yield f"the interval of the gain reaches down to {gained.interval[0]:.4f}: with other questions it might fail"
