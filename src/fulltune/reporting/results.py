"""The first half of a report: the verdict, what was gained and lost, curves, answers before and after."""

import math
from collections.abc import Iterator, Mapping
from typing import Any

from fulltune.reporting.charts import Chart, Line, figure
from fulltune.reporting.figures import change, counted, interval, number
from fulltune.reporting.judge import Score, Verdict, cautions, fitted, gained, kept, scores
from fulltune.reporting.markup import Html, el, join, missing, table
from fulltune.reporting.story import Story

_SAMPLES = 24
"""Samples that are shown."""
_CHARACTERS = 3000
"""Of a text that are shown."""
_MORE_CHARTS = 12
"""Scores besides losses that get a chart."""
COLOURS = ("a", "b", "d", "e", "c", "f", "g", "h")
"""Classes of lines, in the order in which they are given away."""


def section(title: str, about: str, *inside: Html | None) -> Html:
    """A part of the page: its title and what it is about, beside what it holds."""
    anchor = title.lower().replace(" ", "-")
    return el("section", el("div", el("h2", title), el("p", about)), el("div", *inside), id=anchor)


def verdict(story: Story) -> Html:
    """Whether to ship it; gained, kept, overfitted, each in a word, two figures and a sentence; what must be known."""
    told = [_told(answer) for answer in (gained(story), kept(story), fitted(story))]
    notes = cautions(story)
    return join(
        [
            _gate(story),
            el("div", *told, cls="verdict"),
            el("ul", *(_note(*note) for note in notes), cls="cautions") if notes else None,
        ]
    )


def _gate(story: Story) -> Html | None:
    """Whether the result is to be shipped, and why not."""
    found = story.verdict
    if found is None:
        return None
    tone = {True: "good", False: "bad", None: ""}[found.ship]
    reasons = el("ul", *(el("li", reason) for reason in found.reasons)) if found.reasons else None
    line = el("p", el("b", found.word, cls=f"said {tone}".strip()), " ", el("span", found.headline.rpartition(":")[0]))
    return el("div", line, reasons, cls="gate")


def _note(said: str, command: str) -> Html:
    return el("li", said, " " if command else None, el("code", command) if command else None)


def _told(answer: Verdict) -> Html:
    figures = None
    if answer.before:
        figures = el("p", answer.before, " ", el("span", "→"), " ", el("b", answer.after), cls="pair")
    return el(
        "div",
        el("div", answer.asked, cls="asked"),
        el("div", answer.said, cls=f"said {answer.tone}".strip()),
        figures,
        el("p", answer.words),
    )


def measured(story: Story) -> Html:
    """Every score of the base beside that of the result."""
    found = scores(story)
    if not found:
        return section("Gained and lost", "every score", missing("Nothing was measured: no evaluation was made."))
    rows = [
        (
            score.name,
            _scored(score.before, score.before_interval),
            _scored(score.after, score.after_interval),
            "" if score.before is None or score.after is None else change(score.before, score.after),
            _judged(score),
            "" if score.counted is None else f"{score.counted:,}",
        )
        for score in found
    ]
    step = story.after.step if story.after else None
    heads = ("score", "before", f"after update {step:,}" if step is not None else "after", "change", "", "measured on")
    note = "Measured on: tokens of a split, or questions of a suite."
    if any(score.before_interval or score.after_interval for score in found):
        note += " In brackets the interval of a score, by drawing its questions anew."
    lines = [table(rows, heads), el("p", note, cls="faint")]
    lines += [missing("Nothing was measured before training.")] if story.baseline is None else []
    lines += [missing("Nothing was measured after training.")] if story.after is None else []
    return section("Gained and lost", "the base model beside the result", *lines)


def _scored(value: float | None, span: tuple[float, float] | None) -> Html:
    if value is None:
        return el("span", "not measured", cls="faint")
    if span is None:
        return el("span", number(value))
    return el("span", number(value), " ", el("span", interval(span), cls="interval"))


def _judged(score: Score) -> Html:
    if score.better is None:
        return el("span", "")
    unsure = " (intervals overlap)" if score.sure is False else ""
    return el("span", ("better" if score.better else "worse") + unsure, cls="good" if score.better else "bad")


def curves(story: Story) -> Html:
    """Loss first, then all else that the journal has."""
    if not story.steps and not story.evaluations:
        return section("Curves", "by update", missing("No update was made."))
    reach = (0.0, float(max([story.last, *(report.step for report in story.evaluations), 1])))
    mark = None if story.result_step is None else float(story.result_step)
    losses = [
        Line("training", story.curve("loss"), "c"),
        Line("held-out", story.scored("heldout.loss"), "a", dots=True),
    ]
    notes = (
        "Held-out loss is over all held-out tokens, at each evaluation; training loss is that of one update's examples."
    )
    if not story.scored("heldout.loss"):
        losses, notes = losses[:1], "Nothing was held out, so there is no held-out loss beside it."
    main = Chart(
        title="Loss",
        unit="nats per token",
        lines=losses,
        note=notes,
        width=800,
        height=300,
        mark=mark,
        named=True,
        reach=reach,
    )
    charts = [_retention(story, mark, reach), *_apart(story, mark, reach)]
    rates = [
        ("Learning rate", "", "lr", True),
        ("Gradient norm", "before clipping", "grad_norm", False),
    ]
    for title, unit, column, zero in rates:
        lines = [Line(title.lower(), story.curve(column), "c")]
        charts.append(Chart(title=title, unit=unit, lines=lines, mark=mark, zero=zero, reach=reach))
    charts.append(Chart(title="Speed", unit="tokens/s", lines=[_speed(story)], mark=mark, zero=True, reach=reach))
    charts += _others(story, mark, reach)
    resumed = [f"{step:,}" for step in story.resumed]
    note = el("p", f"The run went on after a stop at update {', '.join(resumed)}.", cls="faint") if resumed else None
    about = "by update; the dotted line is the result"
    return section("Curves", about, figure(main), el("div", *map(figure, charts), cls="charts"), note)


def _by_source(story: Story, score: str) -> list[Line]:
    """A score of all retention data, and of each of its sources."""
    names = [name for name in story.scores if name.startswith("retention.") and name.endswith(score)]
    return [
        Line(name.removesuffix(score).removeprefix("retention").lstrip(".") or "all", story.scored(name), colour, True)
        for name, colour in zip(names, ("b", "e", "d", "c"), strict=False)
    ]


def _apart(story: Story, mark: float | None, reach: tuple[float, float]) -> Iterator[Chart]:
    """How far predictions went from the base's, if that was measured."""
    if lines := _by_source(story, ".kl"):
        title, unit = "KL from the base", "nats per token of retention data"
        yield Chart(title=title, unit=unit, lines=lines, mark=mark, zero=True, named=len(lines) > 1, reach=reach)


def _retention(story: Story, mark: float | None, reach: tuple[float, float]) -> Chart:
    lines = _by_source(story, ".loss")
    before = story.baseline.scores.get("retention.loss") if story.baseline else None
    return Chart(
        title="Retention loss",
        unit="nats per token",
        lines=lines,
        mark=mark,
        level=("before training", before) if before is not None and math.isfinite(before) else None,
        named=len(lines) > 1,
        reach=reach,
    )


def _speed(story: Story) -> Line:
    columns = zip(story.steps, story.columns["tokens"], story.columns["seconds"], strict=True)
    return Line("tokens/s", [(step, tokens / took) for step, tokens, took in columns if took > 0], "c")


def _others(story: Story, mark: float | None, reach: tuple[float, float]) -> list[Chart]:
    """Scores of other kinds, and losses of single sources, that were measured more than once."""
    shown = {"heldout.loss", "retention.loss"}
    names = [
        name
        for name in story.scores
        if name not in shown
        and not name.endswith(".perplexity")
        and not (name.startswith("retention.") and name.endswith((".loss", ".kl")))
        and len(story.scored(name)) > 1
    ]
    return [
        Chart(title=name, lines=[Line(name, story.scored(name), "d", dots=True)], mark=mark, reach=reach)
        for name in names[:_MORE_CHARTS]
    ]


def samples(story: Story) -> Html:
    """What the model said before and after, side by side."""
    about = "greedy answers to held-out prompts"
    found = story.record.get("samples") or []
    if found:
        more = len(found) - _SAMPLES
        rest = el("p", f"{counted(more, 'more sample')} in record.json", cls="faint") if more > 0 else None
        return section("Before and after", about, *(_sample(each) for each in found[:_SAMPLES]), rest)
    if story.answers:
        note = missing("There are no answers after training: the run has no result yet.")
        answers = [el("div", _words("before", answer), cls="sample") for answer in story.answers[:_SAMPLES]]
        return section("Before and after", about, note, *answers)
    return section(
        "Before and after", about, missing("No answers were kept: nothing is held out, or evaluate.samples is 0.")
    )


def _sample(sample: Mapping[str, Any]) -> Html:
    told = {name: str(sample.get(name, "")) for name in ("prompt", "expected", "before", "after")}
    sides = el("div", _words("before", told["before"]), _words("after", told["after"]), cls="sides")
    expected = el("div", _words("expected", told["expected"]), cls="right")
    return el("div", el("div", _words("asked", told["prompt"]), cls="asked-of"), sides, expected, cls="sample")


def _words(who: str, said: str) -> Html:
    rest = len(said) - _CHARACTERS
    more = el("span", f" … and {counted(rest, 'more character')}", cls="faint") if rest > 0 else None
    text = said[:_CHARACTERS] if said else el("span", "(nothing)", cls="faint")
    return el("div", el("p", who, cls="who"), el("p", text, more, cls="words", dir="auto"))
