"""The learning rate as a pure function: never 0 at first, at the floor at last, at the floor ever after."""

import math
from itertools import pairwise

import pytest
from hypothesis import given, strategies

from fulltune.optim.schedules import SCHEDULES, factor

shapes = strategies.sampled_from(sorted(SCHEDULES))


@given(shapes, strategies.integers(2, 400), strategies.floats(0, 1), strategies.floats(0, 0.99))
def test_first_peak_last_and_after(name: str, updates: int, floor: float, warm: float) -> None:
    warmup = min(round(warm * updates), updates - 2)
    if name == "constant":
        floor = 1.0
    at = [factor(u, updates=updates, warmup=warmup, floor=floor, shape=SCHEDULES[name]) for u in range(updates + 50)]
    assert at[0] > 0
    assert at[warmup] == pytest.approx(1.0), "the peak is reached"
    assert max(at) <= 1.0 + 1e-12
    assert at[updates - 1] == pytest.approx(floor)
    assert all(value == pytest.approx(floor) for value in at[updates:]), "never up again"
    assert all(a < b for a, b in pairwise(at[: warmup + 1])), "warm-up rises"
    assert all(a >= b - 1e-12 for a, b in pairwise(at[warmup:])), "then it falls"


@pytest.mark.parametrize(("name", "middle"), [("constant", 1.0), ("linear", 0.5), ("cosine", 0.5), ("wsd", 1.0)])
def test_shapes_by_their_closed_form(name: str, middle: float) -> None:
    shape = SCHEDULES[name]
    assert shape(0.0) == 1.0
    assert shape(0.5) == pytest.approx(middle)
    for done in (0.1, 0.3, 0.9):
        wanted = {
            "constant": 1.0,
            "linear": 1 - done,
            "cosine": (1 + math.cos(math.pi * done)) / 2,
            "wsd": min(1.0, (1 - done) * 5),
        }
        assert shape(done) == pytest.approx(wanted[name])


def test_very_short_runs() -> None:
    def at(update: int, updates: int, warmup: int) -> float:
        return factor(update, updates=updates, warmup=warmup, floor=0.1, shape=SCHEDULES["cosine"])

    assert at(0, 1, 0) == 1.0
    assert [at(u, 2, 0) for u in range(2)] == [1.0, pytest.approx(0.1)]
    assert [at(u, 2, 1) for u in range(2)] == [0.5, pytest.approx(0.1)]
