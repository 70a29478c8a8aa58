"""Several runs on one page: curves over each other, scores, the Pareto picture, and where the recipes differ."""

import math
from collections.abc import Sequence
from dataclasses import replace

from fulltune.reporting.charts import Chart, Line, figure
from fulltune.reporting.compare import Compared
from fulltune.reporting.figures import interval, number
from fulltune.reporting.markup import Html, el, join, missing, table
from fulltune.reporting.page import footer, whole
from fulltune.reporting.pareto import Point, picture
from fulltune.reporting.results import COLOURS, section
from fulltune.reporting.series import smooth
from fulltune.reporting.story import Story

_TARGETS = ("test.loss", "heldout.loss")
"""What may stand for what was learned: the first of which at least two runs have both losses."""
_MEANS = 120
"""Training loss of each run is drawn as so many means: raw curves over each other hide each other."""


def page(found: Compared, stories: Sequence[Story]) -> Html:
    """The page as text."""
    head = el("header", el("h1", " · ".join(found.names)), el("p", f"{len(stories)} runs side by side.", cls="under"))
    notes = [note[:1].upper() + note[1:] + "." for note in found.cautions]
    told = el("ul", *(el("li", note) for note in notes), cls="cautions") if notes else None
    body = el("main", told, _scores(found), _recipes(found), _pareto(found, stories), _curves(found, stories))
    sources = "made from the cards and journals in " + ", ".join(found.folders)
    return whole(" · ".join(found.names), join([head, body, footer(sources)]))


def _heads(found: Compared) -> list[Html]:
    return [el("span", name, cls=colour(at)) for at, name in enumerate(found.names)]


def colour(at: int) -> str:
    """The class of a run by its place."""
    return COLOURS[at % len(COLOURS)]


def _scores(found: Compared) -> Html:
    base = bool(found.before)
    rows = []
    for score, values in found.scores.items():
        old = [number(found.before[score]) if score in found.before else ""] if base else []
        spans = found.intervals.get(score, (None,) * len(values))
        rows.append((score, *old, *(_cell(v, spans[at], at in found.best[score]) for at, v in enumerate(values))))
    heads = ["", *(["base"] if base else []), *_heads(found)]
    facts = table([(name, *texts) for name, texts in found.facts.items()], ["", *_heads(found)])
    if not rows:
        return section("Scores", "of each run's result", missing("Nothing was measured."), facts)
    note = el("p", "The best of a row is set in bold, and marked with a star.", cls="faint")
    return section("Scores", "of each run's result", table(rows, heads), note, facts)


def _cell(value: float | None, ends: tuple[float, float] | None, best: bool) -> Html:
    if value is None:
        return el("span", "not measured", cls="faint")
    span = el("span", f" {interval(ends)}", cls="interval") if ends else None
    return el("span", number(value), span, " ★" if best else None, cls="best" if best else None)


def _pareto(found: Compared, stories: Sequence[Story]) -> Html | None:
    for target in _TARGETS:
        points = [
            Point(name, after.scores[target], after.scores["retention.loss"], colour(at), _way(story, target))
            for at, (name, story) in enumerate(zip(found.names, stories, strict=True))
            if (after := story.after) is not None
            and all(math.isfinite(after.scores.get(score, math.nan)) for score in (target, "retention.loss"))
        ]
        if len(points) > 1:
            shown = {"test.loss": "test", "heldout.loss": "held-out"}[target]
            return section(
                "Gain and loss", "both at once", picture(points, target=shown, base=found.before.get("retention.loss"))
            )
    why = "It needs two runs that measured both held-out and retention loss."
    return section("Gain and loss", "both at once", missing(f"There is no picture of target against retention: {why}"))


def _way(story: Story, target: str) -> list[tuple[float, float]]:
    """Target and retention loss of the states before the result."""
    chosen = story.result_step
    return [
        (report.scores[target], report.scores["retention.loss"])
        for report in story.evaluations
        if report.step > 0
        and (chosen is None or report.step < chosen)
        and all(math.isfinite(report.scores.get(name, math.nan)) for name in (target, "retention.loss"))
    ]


def _curves(found: Compared, stories: Sequence[Story]) -> Html:
    reach = (0.0, float(max([1, *(story.last for story in stories)])))
    several = list(enumerate(zip(found.names, stories, strict=True)))

    def scored(score: str) -> list[Line]:
        return [Line(name, story.scored(score), colour(at), dots=True) for at, (name, story) in several]

    means = [Line(name, smooth(story.curve("loss"), _MEANS), colour(at)) for at, (name, story) in several]
    rates = [Line(name, story.curve("lr"), colour(at)) for at, (name, story) in several]
    before = found.before.get("retention.loss")
    level = ("before training", before) if before is not None and math.isfinite(before) else None
    loss = "nats per token"
    wide = Chart(title="", lines=(), width=800, height=280, named=True, reach=reach)
    charts = [
        replace(wide, title="Held-out loss", unit=loss, lines=scored("heldout.loss")),
        replace(wide, title="Retention loss", unit=loss, lines=scored("retention.loss"), level=level),
        replace(wide, title="Training loss", unit=loss, lines=means, note=f"Means of up to {_MEANS} stretches."),
        replace(wide, title="Learning rate", lines=rates, zero=True),
    ]
    return section("Curves", "by update", *(figure(chart) for chart in charts))


def _recipes(found: Compared) -> Html:
    about = "only what is not the same"
    if not found.recipes:
        return section("Recipes", about, el("p", "The recipes are the same."))
    rows = [(key, *("-" if value is None else str(value) for value in values)) for key, values in found.recipes.items()]
    return section("Recipes", about, table(rows, ("field", *_heads(found)), cls="texts"))
