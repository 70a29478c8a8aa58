"""The memory of a sweep: the same trials however often it stops, ends early what lies behind, avoids what failed."""

import itertools
from pathlib import Path
from typing import Any

import pytest

from fulltune.base.errors import CheckpointError
from fulltune.base.sweeps import Axis
from fulltune.sweeping.study import Study, spread

pytest.importorskip("optuna")
LR = Axis(field="optim.lr", kind="float", low=1e-6, high=1e-2, log=True)
EPOCHS = Axis(field="train.epochs", kind="choice", choices=(1, 2, [3]))


def study(folder: Path, *axes: Axis, falls: bool = True, prune: Any = "none") -> Study:
    return Study(folder / "trials.db", axes or (LR,), falls=falls, prune=prune, seed=0)


def score(values: dict[str, Any]) -> float:
    return abs(values["optim.lr"] - 3e-4)


def made(folder: Path, count: int, *, anew: int) -> list[dict[str, Any]]:
    folder.mkdir()
    one = study(folder)
    for n in range(count):
        one = study(folder) if n == anew else one
        number = one.next(count)
        assert number is not None
        one.done(number, score(one.values(number)))
    return [values for _, _, values, _ in one.states()]


def test_stopping_changes_no_trial(tmp_path: Path) -> None:
    whole, stopped = (made(tmp_path / name, 8, anew=anew) for name, anew in (("whole", 0), ("stopped", 7)))
    assert whole == stopped
    assert len({values["optim.lr"] for values in whole}) == 8
    before = sorted(values["optim.lr"] for values in whole[:6])
    assert all(later > earlier * 1.5 for earlier, later in itertools.pairwise(before)), "spread evenly"


def test_a_trial_that_began_is_open_and_keeps_its_values(tmp_path: Path) -> None:
    one = study(tmp_path)
    number = one.next(5)
    again = study(tmp_path)
    assert list(again.states()) == [(number, "open", one.values(0), "")]
    assert again.next(1) is None, "it counts"
    again.failed(0, "no luck")
    assert list(study(tmp_path).states()) == [(0, "failed", one.values(0), "no luck")]


def test_few_combinations_are_made_once_each(tmp_path: Path) -> None:
    seen = []
    one = study(tmp_path, EPOCHS)
    while (number := one.next(10)) is not None:
        seen.append(one.values(number)["train.epochs"])
        one.done(number, 1.0)
    assert seen == [1, 2, [3]]


def test_what_lies_behind_the_others_is_ended_early(tmp_path: Path) -> None:
    one = study(tmp_path, falls=False, prune="median")
    way = -1.0  # more is better
    for n in range(4):
        number = one.next(9)
        assert number is not None
        assert not one.hear(number, 1, way * (2.0 + n)), "too few to compare with"
        one.done(number, way * (1.0 + n))
    fine = one.next(9)
    assert fine is not None
    assert not one.hear(fine, 1, way * 2.1)
    one.done(fine, 1.0)
    behind = one.next(9)
    assert behind is not None
    assert one.hear(behind, 1, way * 9.0)
    assert one.hear(behind, 1, 0.0), "measured again after a stop: no news"
    one.pruned(behind, "behind")
    assert [state for _, state, _, _ in one.states()][-1] == "pruned"


def test_where_trials_failed_no_more_are_sought(tmp_path: Path) -> None:
    """Whatever lies above 1e-4 fails, and what is below it is better the nearer it comes."""
    one = study(tmp_path)
    tried = []
    for _ in range(6):
        number = one.next(6)
        assert number is not None
        tried.append(one.values(number)["optim.lr"])
        if tried[-1] > 1e-4:
            one.failed(number, "diverged")
        else:
            one.done(number, 1e-4 - tried[-1])
    assert sum(lr > 1e-4 for lr in tried) == 3
    drawn = [one.sampled(n)["optim.lr"] for n in range(30)]
    assert drawn == [one.sampled(n)["optim.lr"] for n in range(30)], "of its number alone"
    assert sum(lr > 1e-4 for lr in drawn) <= 11, "of 30; at random it would be half of them"


def test_a_damaged_file_is_said_to_be_one(tmp_path: Path) -> None:
    (tmp_path / "trials.db").write_bytes(b"not a database" * 500)
    with pytest.raises(CheckpointError, match="cannot be read"):
        study(tmp_path)


def test_points_fill_the_space_wherever_one_stops() -> None:
    square = [Axis(field="a.b", kind="float", low=0.0, high=1.0), Axis(field="c.d", kind="float", low=0.0, high=1.0)]
    points = [tuple(spread(square, n).values()) for n in range(16)]
    quarters = [(a >= 0.5, b >= 0.5) for a, b in points]
    assert all(quarters.count((x, y)) >= 3 for x in (True, False) for y in (True, False)), quarters
