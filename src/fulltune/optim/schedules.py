"""SCHEDULES: the learning rate as a pure function of progress. Nothing to save, nothing to step."""

import math
from collections.abc import Callable

from fulltune.base.table import Table

Schedule = Callable[[float], float]
"""Share of the way after warm-up that is done, in [0, 1] -> part of the way from the floor (0) to the peak (1)."""


def constant(_done: float) -> float:
    """The peak all along."""
    return 1.0


def linear(done: float) -> float:
    """A straight line down."""
    return 1.0 - done


def cosine(done: float) -> float:
    """Half a cosine (Loshchilov and Hutter 2017, arXiv 1608.03983), without restarts."""
    return 0.5 * (1.0 + math.cos(math.pi * done))


def wsd(done: float) -> float:
    """Warm-up, stable, decay (Hu et al. 2024, arXiv 2404.06395): the peak, then a straight line over the last fifth."""
    return min(1.0, (1.0 - done) / 0.2)


SCHEDULES: Table[Schedule] = Table("schedule", {"constant": constant, "linear": linear, "cosine": cosine, "wsd": wsd})


def factor(update: int, *, updates: int, warmup: int, floor: float, shape: Schedule) -> float:
    """Part of the peak rate at an update, counted from 0.

    The first `warmup` updates rise in equal steps, none of them at 0 and none at the peak; the next stands at the
    peak, the last at the floor, and whatever comes after it too (a cosine would rise again). A single update stands
    at the peak.
    """
    if update < warmup:
        return (update + 1) / (warmup + 1)
    falling = updates - warmup - 1
    done = min(1.0, (update - warmup) / falling) if falling > 0 else float(warmup > 0)
    return floor + (1.0 - floor) * shape(done)
