"""A sweep as one page: the best, what to do next, every trial, each field against the score, gained against kept."""

from collections.abc import Sequence
from pathlib import Path

from fulltune.base.sweeps import Sweep, Trial
from fulltune.reporting.figures import counted, duration, number
from fulltune.reporting.markup import Html, el, join, missing, table
from fulltune.reporting.page import footer, whole
from fulltune.reporting.pareto import Point, picture
from fulltune.reporting.results import section
from fulltune.reporting.scatter import scatter, told


def page(made: Sweep) -> Html:
    """The page as text."""
    name = Path(made.folder).resolve().name
    fields = ", ".join(axis.field for axis in made.axes)
    under = f"{counted(len(made.trials), 'trial')} over {fields}, ranked by {made.by}: {made.better} is better."
    notes = [note[:1].upper() + note[1:] + "." for note in made.notes]
    head = el("header", el("h1", name), el("p", under, cls="under"))
    body = el(
        "main",
        el("ul", *(el("li", note) for note in notes), cls="cautions") if notes else None,
        _best(made),
        section("Advice", "by what came out", el("ul", *(el("li", said + ".") for said in made.advice))),
        section("Fields", "each against the score", _charts(made)),
        _pareto(made),
        section("Trials", "the best first", _trials(made)),
    )
    return whole(name, join([head, body, footer(f"made from the runs in {made.folder}")]))


def _best(made: Sweep) -> Html:
    if made.best is None:
        return section("Best", "of all trials", missing("No trial is done yet."))
    best = made.trials[0]
    rows = [(field, told(value)) for field, value in best.values.items()]
    assert best.score is not None
    base = made.before.get(made.by)
    score = number(best.score) if base is None else f"{number(base)} → {number(best.score)}"
    rows.append((made.by, score))
    run = el("p", "Its recipe: ", el("code", f"fulltune train {Path(made.best).name}"), f" in {made.folder}")
    return section("Best", f"trial {best.number}", table(rows, ("", "")), run)


def _charts(made: Sweep) -> Html:
    if not any(trial.score is not None for trial in made.trials):
        return missing("Nothing was measured yet.")
    return el("div", *(scatter(axis, made.trials, made.by) for axis in made.axes), cls="charts")


def _pareto(made: Sweep) -> Html | None:
    """None unless two trials that are done have both losses."""
    points = [
        Point(str(trial.number), trial.score, trial.retention, cls="b" if trial.rank == 1 else "a")
        for trial in made.trials
        if trial.state == "done" and trial.score is not None and trial.retention is not None
    ]
    if len(points) < 2 or not made.by.startswith("heldout.") or not made.by.endswith("loss"):
        return None
    base = made.before.get("retention.loss")
    return section(
        "Gained and kept", "of trials that are done", picture(points, target="held-out", base=base, each="trial")
    )


def _trials(made: Sweep) -> Html:
    fields = [axis.field for axis in made.axes]
    kept = any(trial.retention is not None for trial in made.trials)
    heads = ["trial", "rank", made.by, *(["retention.loss"] if kept else []), *fields, "tokens", "time", "state", ""]
    return table([_row(trial, fields, kept=kept) for trial in made.trials], heads)


def _row(trial: Trial, fields: Sequence[str], *, kept: bool) -> list[str]:
    return [
        str(trial.number),
        "" if trial.rank is None else str(trial.rank),
        "" if trial.score is None else number(trial.score),
        *(["" if trial.retention is None else number(trial.retention)] if kept else []),
        *(told(trial.values[field]) if field in trial.values else "" for field in fields),
        f"{trial.tokens:,}",
        duration(trial.seconds),
        trial.state,
        trial.reason,
    ]
