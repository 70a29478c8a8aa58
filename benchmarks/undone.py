"""How much of what plain training forgot each cure undoes, paired by seed: the numbers, the table, the picture."""

import math
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.resources import files

from benchmarks import report
from benchmarks.cures import CURES, PLAIN
from benchmarks.trials import Measured
from fulltune.reporting.pareto import Point, drawing, front

CLAIM = "replay at 5 to 10% keeps at least 80% of what plain training lost, at less than 5% more target loss"
_KEPT, _WORSE = 0.8, 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class Spread:
    """A number from several seeds."""

    mean: float
    low: float
    high: float
    error: float
    """Standard error of the mean; not a number of one seed."""

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        """The mean of them, and how far they lie apart."""
        error = statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else math.nan
        return cls(mean=statistics.fmean(values), low=min(values), high=max(values), error=error)


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What a cure came to on one lesson."""

    cure: str
    target: Spread
    stories: Spread
    worse: Spread
    """By what part its target loss is larger than the plain run's of the same seed."""
    undone: Spread
    """1 - (rise of story loss with it) / (rise of the plain run of the same seed): 0 is plain, 1 forgets nothing."""
    updates: float
    cpu: float

    @property
    def as_claimed(self) -> bool:
        """Whether its means are inside of the claim."""
        return self.undone.mean >= _KEPT and self.worse.mean < _WORSE


def outcomes(measured: Sequence[Measured]) -> list[Outcome]:
    """Of every cure of one lesson, in the order of CURES. ValueError if plain training forgot nothing."""
    plain = {one.seed: one for one in measured if one.cure == PLAIN}
    if any(_rise(one) <= 0 for one in plain.values()):
        raise ValueError("plain training forgot nothing: there is nothing to undo; take more rows, or a higher rate")
    made = []
    for cure in CURES:
        found = [one for one in measured if one.cure == cure.name]
        if not found:
            continue

        def spread(value: Callable[[Measured], float], found: Sequence[Measured] = found) -> Spread:
            return Spread.of([value(one) for one in found])

        made.append(
            Outcome(
                cure=cure.name,
                target=spread(lambda one: one.after.target),
                stories=spread(lambda one: one.after.stories),
                worse=spread(lambda one: one.after.target / plain[one.seed].after.target - 1),
                undone=spread(lambda one: 1 - _rise(one) / _rise(plain[one.seed])),
                updates=statistics.fmean(one.updates for one in found),
                cpu=statistics.fmean(one.cpu for one in found),
            )
        )
    return made


def _rise(one: Measured) -> float:
    return one.after.stories - one.before.stories


def points(found: Sequence[Outcome]) -> list[Point]:
    """Their means, in the colours of their families."""
    kinds = {cure.name: cure.kind for cure in CURES}
    return [Point(one.cure, one.target.mean, one.stories.mean, kinds[one.cure]) for one in found]


def table(found: Sequence[Outcome]) -> str:
    """In Markdown: means, with the lowest and the highest of the seeds."""
    best = {point.name for point in front(points(found))}
    head = ["cure", "target loss", "more than plain's", "story loss", "of its rise undone", "nobody better in both"]
    lines = [
        [
            one.cure,
            _mean(one.target),
            "" if one.cure == PLAIN else _range(one.worse),
            _mean(one.stories),
            "" if one.cure == PLAIN else _range(one.undone),
            "yes" if one.cure in best else "",
        ]
        for one in found
    ]
    return report.table(
        [*head, "CPU seconds"], [[*line, f"{one.cpu:.0f}"] for line, one in zip(lines, found, strict=True)]
    )


def _mean(value: Spread) -> str:
    """With its standard error, if there is one."""
    return f"{value.mean:.3f}" if math.isnan(value.error) else f"{value.mean:.3f} ± {value.error:.3f}"


def _range(value: Spread) -> str:
    low, high = sorted((round(value.low * 100), round(value.high * 100)))
    return f"{value.mean * 100:.0f}% ({low} to {high})"


def verdicts(found: Sequence[Outcome]) -> Iterator[str]:
    """What the measurement says of the claim, of each share of replay."""
    for one in found:
        if one.cure in ("replay 5%", "replay 10%"):
            said = "as claimed" if one.as_claimed else "not as claimed"
            yield f"{one.cure}: {one.undone.mean:.0%} undone at {one.worse.mean:+.1%} target loss, {said}"


def picture(found: Sequence[Outcome], before: float) -> str:
    """The means as an SVG file of its own; `before`: the base's story loss."""
    style = (files("fulltune.reporting") / "style.css").read_text(encoding="utf-8")
    return drawing(points(found), target="target", base=before, style=style)
