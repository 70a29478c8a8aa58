"""What a sweep teaches about each of its axes, in words: widen here, anything goes there, others were worse."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from fulltune.base.sweeps import Axis, Trial

_EDGE = 0.08
"""A best value nearer to an end than this part of the range lies at it."""
_ENOUGH = 6
"""Trials that a noise can be told from."""
_FEW = 3
"""Trials below which nothing is said."""
_BETTER_PART = 2 / 3
"""Of the trials by score, through which the curve is drawn: it is flat near its end, and steep where rates are wild."""


def advice(axes: Sequence[Axis], trials: Sequence[Trial], *, falls: bool) -> list[str]:
    """A sentence or two for each axis, by the trials that are done."""
    done = sorted(
        (trial for trial in trials if trial.state == "done" and trial.score is not None),
        key=lambda trial: _loss(trial, falls),
    )
    if len(done) < _FEW:
        return [f"{len(done)} trials are done: too few to say more than which is best"]
    failed = [trial for trial in trials if trial.state == "failed"]
    return [
        f"{axis.field}: {said}"
        for axis in axes
        for said in [_choice(axis, done) if axis.kind == "choice" else _number(axis, done, failed, falls)]
    ]


def _loss(trial: Trial, falls: bool) -> float:
    assert trial.score is not None
    return trial.score if falls else -trial.score


def _choice(axis: Axis, done: Sequence[Trial]) -> str:
    return "; ".join(
        f"{value}: best {trials[0].score:.4f} of {len(trials)}" if trials else f"{value}: none is done"
        for value, trials in ((choice, _with(axis, choice, done)) for choice in axis.choices)
    )


def _with(axis: Axis, choice: Any, done: Sequence[Trial]) -> list[Trial]:
    return [trial for trial in done if trial.values[axis.field] == choice]


def _number(axis: Axis, done: Sequence[Trial], failed: Sequence[Trial], falls: bool) -> str:
    best = done[0].values[axis.field]
    share = part(axis, best)
    upper = [trial for trial in failed if trial.values[axis.field] > best]
    if share <= _EDGE:
        lower = axis.low / 10 if axis.log else axis.low - (axis.high - axis.low) / 2
        return f"the best value, {best:g}, lies at the lower end of the range; widen it, to {lower:g} say"
    if share >= 1 - _EDGE:
        higher = axis.high * 10 if axis.log else axis.high + (axis.high - axis.low) / 2
        return f"the best value, {best:g}, lies at the upper end of the range; widen it, to {higher:g} say"
    above = f"; {len(upper)} above it failed" if upper else ""
    noise = noise_of(axis, done, falls=falls)
    if noise is None:
        return f"best at {best:g}, inside the range{above}; noise is told from {_ENOUGH} trials with values that differ"
    flat = [trial.values[axis.field] for trial in done if _loss(trial, falls) <= _loss(done[0], falls) + noise]
    if min(flat) == max(flat):
        return f"best at {best:g}, and better than all others by more than their noise of {noise:.2g}{above}"
    wide = part(axis, max(flat)) - part(axis, min(flat))
    whole = " - that is most of the range, so it matters little here" if wide > _BETTER_PART else ""
    return (
        f"best at {best:g}; within noise ({noise:.2g}) between {min(flat):g} and {max(flat):g}, where any will do"
        f"{whole}{above}"
    )


def part(axis: Axis, value: float) -> float:
    """Where a value lies between the ends of its axis, from 0 to 1."""
    if axis.log:
        return (math.log(value) - math.log(axis.low)) / (math.log(axis.high) - math.log(axis.low))
    return (value - axis.low) / (axis.high - axis.low)


def noise_of(axis: Axis, done: Sequence[Trial], *, falls: bool) -> float | None:
    """What a parabola through the better trials leaves unexplained (standard deviation); None of too few of them.

    It holds all that differs between trials besides this field: the other fields too. `done`: best first.
    """
    kept = done[: max(_ENOUGH, math.ceil(len(done) * _BETTER_PART))]
    places = np.array([part(axis, trial.values[axis.field]) for trial in kept])
    if len(kept) < _ENOUGH or len(np.unique(places)) < _ENOUGH - 1:
        return None
    losses = np.array([_loss(trial, falls) for trial in kept])
    left = losses - np.polyval(np.polyfit(places, losses, 2), places)
    return float(np.sqrt(np.sum(left**2) / (len(kept) - 3)))
