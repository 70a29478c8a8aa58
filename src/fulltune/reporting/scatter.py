"""Trials as dots: the value of one field against the score, on the scale on which the field was varied."""

import json
import math
from collections.abc import Sequence
from typing import Any

from fulltune.base.sweeps import Axis, Trial
from fulltune.reporting.figures import number, short
from fulltune.reporting.markup import Html, el, fold, table
from fulltune.reporting.scales import Scale, vertical

_WIDTH, _HEIGHT = 372, 200
_LEFT, _RIGHT, _TOP, _BELOW = 52, 14, 16, 26
_LONGEST = 12
"""Characters of a choice that are written below it."""


def scatter(axis: Axis, trials: Sequence[Trial], by: str) -> Html:
    """One figure. Filled: done; a ring: ended early; a mark at the top: failed, and so without a score."""
    across, ticks = _across(axis)
    shown = [trial for trial in trials if trial.score is not None and trial.state in ("done", "pruned")]
    upward = vertical([trial.score for trial in shown if trial.score is not None], _TOP, _HEIGHT - _BELOW)
    drawn = [*_grid(upward), *(_tick(across(place), name) for place, name in ticks)]
    for trial in trials:
        if trial.state == "failed":
            x = f"{across(_place(axis, trial)):.1f}"
            drawn.append(el("line", x1=x, x2=x, y1=2, y2=10, cls="odd"))
    for trial in sorted(shown, key=lambda one: one.rank == 1):  # the best lies over the others
        drawn.append(_dot(trial, across(_place(axis, trial)), upward))
    scales = " and ".join(name for name, log in (("values", axis.log), ("scores", upward.log)) if log)
    notes = [f"Logarithmic {scales}." if scales else ""]
    notes += ["Rings ended early."] if any(trial.state == "pruned" for trial in shown) else []
    notes += ["Marks at the top failed."] if any(trial.state == "failed" for trial in trials) else []
    picture = el("svg", *drawn, viewBox=f"0 0 {_WIDTH} {_HEIGHT}", role="img", aria_label=f"{by} by {axis.field}")
    rows = [(f"trial {one.number}", told(one.values[axis.field]), _score(one), one.state) for one in trials]
    numbers = fold("numbers", table(rows, ("", axis.field, by, "")))
    title = el("figcaption", el("b", axis.field), " ", el("span", by, cls="faint"))
    return el("figure", title, picture, el("p", " ".join(filter(None, notes)), cls="faint"), numbers, cls="chart")


def told(value: Any) -> str:
    """A value of a field, as short as it can be."""
    if isinstance(value, str):
        return value
    return f"{value:.4g}" if isinstance(value, float) else json.dumps(value)


def _across(axis: Axis) -> tuple[Scale, list[tuple[float, str]]]:
    """The scale of a field, and what stands below it where."""
    ends = (_LEFT, _WIDTH - _RIGHT)
    if axis.kind == "choice":
        names = [told(choice) for choice in axis.choices]
        short_names = [name if len(name) <= _LONGEST else name[: _LONGEST - 1] + "…" for name in names]
        return Scale(-0.5, len(names) - 0.5, *ends), list(enumerate(short_names))
    scale = Scale(axis.low, axis.high, *ends, log=axis.log)
    kept = [value for value in scale.ticks if axis.kind == "float" or float(value).is_integer()]
    return scale, [(value, short(value)) for value in kept]


def _place(axis: Axis, trial: Trial) -> float:
    value = trial.values[axis.field]
    return float(axis.choices.index(value) if axis.kind == "choice" else value)


def _grid(upward: Scale) -> list[Html]:
    made = []
    for value in upward.ticks:
        at = f"{upward(value):.1f}"
        made.append(el("line", x1=_LEFT, x2=_WIDTH - _RIGHT, y1=at, y2=at, cls="grid"))
        made.append(el("text", short(value), x=_LEFT - 6, y=f"{upward(value) + 3.5:.1f}", cls="tick end"))
    return made


def _tick(x: float, name: str) -> Html:
    return el("text", name, x=f"{x:.1f}", y=_HEIGHT - 8, cls="tick middle")


def _dot(trial: Trial, x: float, upward: Scale) -> Html:
    assert trial.score is not None
    cls = "ring c" if trial.state == "pruned" else "dot b" if trial.rank == 1 else "dot a"
    radius = 5 if trial.rank == 1 else 3.4
    return el("circle", cx=f"{x:.1f}", cy=f"{upward(trial.score):.1f}", r=radius, cls=cls)


def _score(trial: Trial) -> str:
    return number(trial.score) if trial.score is not None and math.isfinite(trial.score) else ""
