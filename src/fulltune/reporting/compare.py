"""Several runs side by side: their scores with the best marked, and where their recipes differ."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fulltune.base.errors import RecipeError
from fulltune.recipe.changes import leaves
from fulltune.reporting.figures import duration, number
from fulltune.reporting.judge import falls
from fulltune.reporting.story import Story

_WIDEST = 28
"""Characters of a value in the terminal's table; what is longer is cut, and whole in the JSON and on the page."""


@dataclass(frozen=True, slots=True)
class Compared:
    """What there is to say of several runs; every list has a place for each of `names`."""

    names: tuple[str, ...]
    folders: tuple[str, ...]
    scores: Mapping[str, tuple[float | None, ...]]
    """Of each run's result, or of its last state that was measured."""
    intervals: Mapping[str, tuple[tuple[float, float] | None, ...]]
    before: Mapping[str, float]
    """Scores of the base, where all runs have the same."""
    best: Mapping[str, tuple[int, ...]]
    """Places of the best value; none where all are alike or fewer than two were measured."""
    facts: Mapping[str, tuple[str, ...]]
    recipes: Mapping[str, tuple[Any, ...]]
    """Fields that are not the same in all recipes; None where a recipe has no such field."""
    cautions: tuple[str, ...]

    def as_values(self) -> dict[str, Any]:
        """For programs; numbers that are not finite are None."""
        runs = {
            name: {
                "folder": self.folders[at],
                "scores": {score: _plain(values[at]) for score, values in self.scores.items()},
                "intervals": {score: values[at] for score, values in self.intervals.items() if values[at] is not None},
                "facts": {fact: values[at] for fact, values in self.facts.items()},
                "recipe": {key: values[at] for key, values in self.recipes.items()},
            }
            for at, name in enumerate(self.names)
        }
        best = {score: [self.names[at] for at in places] for score, places in self.best.items()}
        before = {score: _plain(value) for score, value in self.before.items()}
        return {"runs": runs, "before": before, "best": best, "cautions": list(self.cautions)}

    def as_text(self) -> str:
        """For a terminal: a column for each run, `*` behind the best."""
        base = bool(self.before)
        rows = [("", *(["base"] if base else []), *(f"{name}  " for name in self.names))]
        for score, values in self.scores.items():
            old = [number(self.before[score]) if score in self.before else ""] if base else []
            told = [
                "-" if value is None else number(value) + (" *" if at in self.best[score] else "  ")
                for at, value in enumerate(values)
            ]
            rows.append((score, *old, *told))
        for fact, texts in self.facts.items():
            rows.append((fact, *([""] if base else []), *(text + "  " for text in texts)))
        lines = [_columns(rows)]
        lines += ["* the best" if any(self.best.values()) else ""]
        if self.recipes:
            differing = [(key, *(_short(value) for value in values)) for key, values in self.recipes.items()]
            lines += ["", "where the recipes differ", _columns([("", *self.names), *differing])]
        else:
            lines += ["", "the recipes are the same"]
        return "\n".join([*filter(None, lines[:2]), *lines[2:], *(f"note: {each}" for each in self.cautions)])


def compared(stories: Sequence[Story]) -> Compared:
    """The runs side by side. RecipeError if there are fewer than two."""
    if len(stories) < 2:
        raise RecipeError("one run alone compares with nothing", where="compare", mend="fulltune compare RUN RUN...")
    reports = [story.after for story in stories]
    names = list(dict.fromkeys(name for report in reports if report for name in report.scores))
    scores = {name: tuple(report.scores.get(name) if report else None for report in reports) for name in names}
    better = {name: way for report in reports if report for name, way in report.better.items()}
    return Compared(
        names=_names(stories),
        folders=tuple(str(story.path) for story in stories),
        scores=scores,
        intervals={
            name: tuple(report.intervals.get(name) if report else None for report in reports)
            for name in names
            if any(report and name in report.intervals for report in reports)
        },
        before=_before(stories, names),
        best={name: _best(values, falls(name, better.get(name))) for name, values in scores.items()},
        facts=_facts(stories),
        recipes=_differing([story.recipe for story in stories]),
        cautions=tuple(_cautions(stories)),
    )


def _names(stories: Sequence[Story]) -> tuple[str, ...]:
    """What the folders are called; where two are called the same, with the folder above."""
    names = [story.name for story in stories]
    if len(set(names)) == len(names):
        return tuple(names)
    longer = [f"{story.path.resolve().parent.name}/{story.name}" for story in stories]
    if len(set(longer)) == len(longer):
        return tuple(longer)
    return tuple(f"{name} ({number})" for number, name in enumerate(longer, 1))


def _before(stories: Sequence[Story], names: Sequence[str]) -> dict[str, float]:
    made = {}
    for name in names:
        found = [story.baseline.scores.get(name) if story.baseline else None for story in stories]
        known = [value for value in found if value is not None]
        if len(known) == len(stories) and all(math.isclose(value, known[0], rel_tol=1e-6) for value in known):
            made[name] = known[0]
    return made


def _best(values: Sequence[float | None], down: bool) -> tuple[int, ...]:
    known = {at: value for at, value in enumerate(values) if value is not None and math.isfinite(value)}
    if len(known) < 2 or len(set(known.values())) == 1:
        return ()
    goal = (min if down else max)(known.values())
    return tuple(at for at, value in known.items() if value == goal)


def _facts(stories: Sequence[Story]) -> dict[str, tuple[str, ...]]:
    made = {
        "state": tuple("done" if story.ended and story.record else "not done" for story in stories),
        "updates": tuple(f"{story.last:,}" for story in stories),
        "result of update": tuple("-" if s.result_step is None else f"{s.result_step:,}" for s in stories),
        "tokens": tuple(f"{int(_sum(story, 'tokens')):,}" for story in stories),
        "time": tuple(duration(_sum(story, "seconds")) for story in stories),
    }
    hardware = tuple(str((story.record.get("machine") or {}).get("name", "-")) for story in stories)
    return made | ({"hardware": hardware} if len(set(hardware)) > 1 else {})


def _sum(story: Story, column: str) -> float:
    return math.fsum(value for value in story.columns[column] if math.isfinite(value))


def _differing(recipes: Sequence[Mapping[str, Any]]) -> dict[str, tuple[Any, ...]]:
    flat = [dict(leaves(recipe)) for recipe in recipes]
    keys = list(dict.fromkeys(key for leaf in flat for key in leaf))
    rows = {key: tuple(leaf.get(key) for leaf in flat) for key in keys}
    return {key: values for key, values in rows.items() if any(value != values[0] for value in values[1:])}


def _cautions(stories: Sequence[Story]) -> list[str]:
    made = []
    if len({story.data.get("fingerprint") for story in stories}) > 1:
        made.append(
            "the runs were prepared from other data, options or tokenizers: scores compare only over the same rows"
        )
    unfinished = [story.name for story in stories if not (story.ended and story.record)]
    if unfinished:
        made.append(f"not done, so its last measured state is shown: {', '.join(unfinished)}")
    if not any(report.intervals for story in stories for report in story.evaluations):
        made.append("losses have no intervals: of two that lie close either may be the better one")
    return made


def _plain(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def _short(value: Any) -> str:
    said = "-" if value is None else " ".join(str(value).split())
    return said if len(said) <= _WIDEST else "…" + said[-_WIDEST + 1 :]


def _columns(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if at == 0 else cell.rjust(width)
            for at, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )
