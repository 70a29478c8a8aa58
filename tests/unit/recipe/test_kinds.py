"""Kinds of values: what is written is what is read again, and what no number or name can be is refused."""

import math
from typing import Any

import pytest
from hypothesis import example, given, strategies

from fulltune.base.records import Every, Unit
from fulltune.recipe.kinds import MOST, can_be_held, every, warmup


@given(
    strategies.sampled_from(("epochs", "minutes")),
    strategies.floats(1e-6, MOST) | strategies.integers(1, MOST).map(float),
)
@example("epochs", 0.00001)
@example("minutes", 1 / 3)
@example("epochs", 1234567.25)
def test_a_cadence_is_read_as_it_is_printed(unit: Unit, amount: float) -> None:
    assert every(str(Every(amount, unit))) == Every(amount, unit)


@given(strategies.integers(1, MOST))
@example(1_000_000)
@example(1_234_567)
def test_updates_are_printed_with_all_their_digits(updates: int) -> None:
    assert str(Every(updates, "updates")) == str(updates)
    assert every(str(updates)) == Every(updates, "updates")


@pytest.mark.parametrize("wrong", [0, -1, MOST + 1, 10**400, f"{10**400} epochs", "0.0000001 epochs", True, 1e3, "x"])
def test_no_cadence(wrong: Any) -> None:
    with pytest.raises(ValueError, match="write a number of updates"):
        every(wrong)


@pytest.mark.parametrize("wrong", [math.nan, math.inf, -0.1, MOST + 1, 10**400, True, "5", None])
def test_no_warmup(wrong: Any) -> None:
    with pytest.raises(ValueError, match="write a share of the run"):
        warmup(wrong)


@pytest.mark.parametrize(
    ("path", "held"),
    [
        ("", True),
        ("a" * 255, True),
        ("a" * 256, False),
        ("é" * 128, False),
        ("a/" * 2000, True),
        ("a/" * 2100, False),
        ("a\0b", False),
        ("\ud83d", False),
        ("\udcff", True),  # a name that is not UTF-8, as Python hands it over
    ],
)
def test_names_that_a_disk_can_hold(path: str, held: bool) -> None:
    assert can_be_held(path) is held
