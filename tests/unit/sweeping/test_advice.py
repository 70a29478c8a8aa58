"""What a sweep says to do next."""

import math

import pytest

from fulltune.base.sweeps import Axis, State, Trial
from fulltune.sweeping.advice import advice, noise_of

LR = Axis(field="optim.lr", kind="float", low=1e-6, high=1e-2, log=True)


def trial(number: int, lr: float, score: float | None, state: State = "done") -> Trial:
    return Trial(number=number, state=state, values={"optim.lr": lr}, score=score, folder="")


def bowl(best: float, *, depth: float = 1.0, noise: float = 0.0) -> list[Trial]:
    rates = [10 ** (-6 + 4 * n / 8) for n in range(9)]
    return [
        trial(n, lr, 2 + depth * (math.log10(lr) - math.log10(best)) ** 2 + noise * (-1) ** n)
        for n, lr in enumerate(rates)
    ]


@pytest.mark.parametrize(
    ("best", "said"),
    [(1e-6, "lower end of the range; widen it, to 1e-07"), (1e-2, "upper end of the range; widen it, to 0.1")],
)
def test_the_best_at_a_border_says_to_widen(best: float, said: str) -> None:
    (told,) = advice([LR], bowl(best), falls=True)
    assert said in told


def test_flat_is_told_from_sharp_by_what_a_curve_does_not_explain() -> None:
    (sharp,) = advice([LR], bowl(1e-4, noise=0.001), falls=True)
    assert "better than all others by more than their noise" in sharp
    (flat,) = advice([LR], bowl(1e-4, depth=0.01, noise=0.02), falls=True)
    assert "within noise" in flat
    assert "matters little" in flat
    up = [trial(one.number, one.values["optim.lr"], -(one.score or 0)) for one in bowl(1e-4, noise=0.001)]
    assert advice([LR], up, falls=False) == [sharp], "whichever way is up"


def test_noise_is_that_of_the_trials() -> None:
    done = sorted(bowl(1e-4, noise=0.1), key=lambda one: one.score or 0)
    found = noise_of(LR, done, falls=True)
    assert found is not None
    assert 0.05 < found < 0.2
    assert noise_of(LR, done[:5], falls=True) is None


def test_failures_above_and_too_few_trials_are_told() -> None:
    (told,) = advice([LR], [*bowl(1e-4), trial(20, 9e-3, None, "failed")], falls=True)
    assert "1 above it failed" in told
    assert advice([LR], bowl(1e-4)[:2], falls=True) == ["2 trials are done: too few to say more than which is best"]


def test_a_choice_is_told_by_the_best_of_each() -> None:
    kinds = Axis(field="optim.schedule", kind="choice", choices=("cosine", "linear", "wsd"))
    trials = [
        Trial(number=n, state="done", values={"optim.schedule": name}, score=score, folder="")
        for n, (name, score) in enumerate([("cosine", 1.0), ("linear", 2.0), ("cosine", 3.0)])
    ]
    assert advice([kinds], trials, falls=True) == [
        "optim.schedule: cosine: best 1.0000 of 2; linear: best 2.0000 of 1; wsd: none is done"
    ]
