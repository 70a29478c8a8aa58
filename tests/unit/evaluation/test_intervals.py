"""Intervals that cover what they say, and tests that agree with scipy."""

import numpy as np
import pytest

from fulltune.evaluation.answers import Mean
from fulltune.evaluation.intervals import bootstrap, compared, mcnemar
from fulltune.evaluation.metrics import metric
from fulltune.evaluation.overlap import ChrF

total = Mean(lambda text, right: 0.0).total
HOW = {"resamples": 1000, "confidence": 0.95, "seed": 0}


def test_the_bootstrap_is_seeded_and_is_scipys() -> None:
    from scipy.stats import bootstrap as theirs

    values = np.random.default_rng(2).exponential(size=200)
    low, high = bootstrap(values[:, None], total, resamples=20_000, confidence=0.9, seed=1)
    found = theirs((values,), np.mean, confidence_level=0.9, n_resamples=20_000, method="percentile", rng=1)
    assert (low, high) == pytest.approx(found.confidence_interval, abs=0.01)
    assert bootstrap(values[:, None], total, **HOW) == bootstrap(values[:, None], total, **HOW)
    assert bootstrap(values[:, None], total, **HOW) != bootstrap(values[:, None], total, **{**HOW, "seed": 1})


def test_an_interval_covers_the_truth_as_often_as_it_says() -> None:
    draws = np.random.default_rng(0)
    covered = 0
    for number in range(300):
        sample = (draws.random((120, 1)) < 0.3).astype(float)
        low, high = bootstrap(sample, total, resamples=300, confidence=0.9, seed=number)
        covered += low <= 0.3 <= high
    assert 0.84 <= covered / 300 <= 0.95


def test_an_interval_of_a_total_that_is_no_mean() -> None:
    """Of token sums: one long text weighs more than many short ones in every resample too."""
    made = metric("loss", {}, "text", where="x")
    rows = np.array([[2.0, 20.0, 10.0, 0.0, 1.0], [5.0, 5000.0, 1000.0, 0.0, 1.0]])
    low, high = bootstrap(rows, made.total, **HOW)
    assert (low, high) == pytest.approx((2.0, 5.0))


@pytest.mark.parametrize(("wins", "losses"), [(0, 0), (5, 5), (10, 2), (2, 10), (0, 6), (400, 350), (1, 0)])
def test_mcnemar_is_the_binomial_test(wins: int, losses: int) -> None:
    from scipy.stats import binomtest

    wanted = binomtest(wins, wins + losses, 0.5).pvalue if wins + losses else 1.0
    assert mcnemar(wins, losses) == pytest.approx(wanted, abs=1e-12)


def test_pass_or_fail_is_told_from_measures() -> None:
    one, other = np.array([[1.0]] * 8 + [[0.0]] * 4), np.array([[0.0]] * 7 + [[1.0]] * 2 + [[0.0]] * 3)
    found = compared(one, other, total, **HOW)
    assert found.test == "McNemar exact"
    assert (found.higher, found.lower, found.questions) == (7, 1, 12)
    assert found.p == pytest.approx(mcnemar(7, 1))
    assert found.difference == pytest.approx(0.5)
    assert found.interval[0] < 0.5 < found.interval[1]
    assert compared(one * 0.5, other, total, **HOW).test == "permutation of pairs"
    wide = np.hstack([one, one]), np.hstack([other, other])
    assert compared(*wide, total, **HOW).test == "permutation of pairs", "the total may be no mean of the first column"


def test_the_permutation_test_is_scipys() -> None:
    from scipy.stats import permutation_test

    draws = np.random.default_rng(4)
    one = draws.normal(0.2, 1, size=(40, 1))
    other = draws.normal(0.0, 1, size=(40, 1))
    found = compared(one, other, total, resamples=20_000, confidence=0.95, seed=0)
    theirs = permutation_test(
        (one[:, 0], other[:, 0]),
        lambda a, b: a.mean() - b.mean(),
        permutation_type="samples",
        n_resamples=20_000,
        rng=0,
    )
    assert found.p == pytest.approx(theirs.pvalue, abs=0.015)
    assert compared(one, one, total, **HOW).p == 1.0
    far = compared(one + 5, other, total, **HOW)
    assert far.p == pytest.approx(1 / 1001), "never below what so many draws can show"


def test_a_corpus_metric_is_compared_by_its_total() -> None:
    from fulltune.evaluation.answers import Answer, Reference

    right = [Reference((f"a sentence of number {n} that is right",)) for n in range(30)]
    good = ChrF().items([Answer(r.texts[0]) for r in right], right)
    bad = ChrF().items([Answer(r.texts[0][::-1]) for r in right], right)
    found = compared(np.asarray(good), np.asarray(bad), ChrF().total, resamples=300, confidence=0.95, seed=0)
    assert found.test == "permutation of pairs"
    assert found.p < 0.01
    assert found.difference == pytest.approx(100 - ChrF().total(np.asarray(bad)))
