"""The examples of an update as forward passes: whole, once, within the budget, equally many on every rank."""

import random
import time

import numpy as np
import pytest
from hypothesis import given, strategies

from fulltune.data.lay import Budget, fullest, lay

lengths = strategies.lists(strategies.integers(1, 60), max_size=40)
budgets = strategies.builds(
    Budget, strategies.integers(1, 9), strategies.integers(1, 200), strategies.sampled_from(["padded", "packed"])
)


@given(lengths, budgets, strategies.integers(1, 4))
def test_every_example_is_laid_once_and_ranks_agree_on_the_count(lengths: list[int], budget: Budget, size: int) -> None:
    ranks = [lay(lengths, budget, rank=rank, size=size) for rank in range(size)]
    assert len({len(micros) for micros in ranks}) == 1
    assert sorted(i for micros in ranks for micro in micros for i in micro) == list(range(len(lengths)))


@given(lengths, budgets)
def test_micro_batches_keep_to_the_budget(lengths: list[int], budget: Budget) -> None:
    for micro in lay(lengths, budget):
        held = [lengths[i] for i in micro]
        if len(held) > 1:
            assert len(held) <= budget.examples
            size = len(held) * budget.width(max(held)) if budget.layout == "padded" else sum(held)
            assert size <= budget.tokens


def test_similar_lengths_lie_together() -> None:
    assert lay([5, 50, 6, 49], Budget(2, 1000, "padded")) == [[1, 3], [2, 0]]


def test_packing_fills_gaps() -> None:
    assert lay([60, 30, 40, 70], Budget(9, 100, "packed")) == [[3, 1], [0, 2]]


@given(lengths, strategies.integers(1, 9), strategies.integers(1, 200))
def test_packing_is_first_fit_longest_first(lengths: list[int], examples: int, tokens: int) -> None:
    """As the textbook has it, row after row; what is faster must give the same."""
    rows: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        for row in rows:
            if len(row) < examples and sum(lengths[i] for i in row) + lengths[index] <= tokens:
                row.append(index)
                break
        else:
            rows.append([index])
    assert lay(lengths, Budget(examples, tokens, "packed")) == rows


@pytest.mark.parametrize(("longest", "tokens"), [(60, 4096), (400, 512), (2000, 4096)])
def test_many_examples_are_packed_in_no_time(longest: int, tokens: int) -> None:
    """Row after row it took 11 s; a generous second still tells a square from n log n."""
    rng = random.Random(0)
    many = [rng.randint(5, longest) for _ in range(20_000)]
    begun = time.perf_counter()
    rows = lay(many, Budget(20_000, tokens, "packed"))
    assert time.perf_counter() - begun < 1
    assert sum(map(len, rows)) == 20_000
    assert len(rows) <= 11 / 9 * sum(many) / tokens + 1, "within 11/9 even of rows without any gap"


def test_work_is_dealt_evenly() -> None:
    loads = [
        sum(
            [9, 1, 1, 8, 1][i] for micro in lay([9, 1, 1, 8, 1], Budget(9, 99, "packed"), rank=r, size=2) for i in micro
        )
        for r in (0, 1)
    ]
    assert sorted(loads) == [10, 10]


def test_padded_widths_are_few() -> None:
    budget = Budget(9, 999, "padded")
    assert {budget.width(n) for n in range(1, 65)} == {16, 32, 48, 64}
    assert Budget(9, 999, "packed").width(7) == 7


def test_rows_are_not_padded_beyond_the_models_positions() -> None:
    budget = Budget(9, 999, "padded", context=250)
    assert [budget.width(tokens) for tokens in (240, 241, 250)] == [240, 250, 250]
    assert budget.width(7) == 16


def test_halving_stops_at_one_example() -> None:
    budget = Budget(9, 999, "padded", context=250)
    assert budget.halved(0) == budget
    assert budget.halved(1) == Budget(4, 499, "padded", context=250)
    assert budget.halved(64) == Budget(1, 1, "padded", context=250)
    assert lay([60, 30], budget.halved(64)) == [[0], [1]]


@given(strategies.lists(strategies.integers(1, 60), min_size=1, max_size=40), budgets, strategies.integers(1, 6))
def test_no_micro_batch_is_fuller_than_the_fullest(lengths: list[int], budget: Budget, most: int) -> None:
    found = fullest(np.array(lengths, np.int32), budget, lambda tokens: most)
    assert len(found) == len(set(found.tolist()))
    assert len(lay([lengths[i] for i in found], budget)) == 1, "it is one micro-batch"
    if budget.layout == "padded":
        full = len(found) * budget.width(lengths[found[0]])
        for count in range(1, min(most, len(lengths)) + 1):
            for start in range(len(lengths) - count + 1):
                longest = sorted(lengths, reverse=True)[start]
                if count == 1 or budget.fits(count, longest):
                    assert count * budget.width(longest) <= full


def test_the_fullest_is_not_the_longest() -> None:
    lengths = np.array([1000, 2100, 1000, 1000, 1000, 2100], np.int32)
    assert fullest(lengths, Budget(9, 4096, "padded"), lambda tokens: 9).tolist() == [0, 2, 3, 4]
    assert fullest(lengths, Budget(9, 4096, "padded"), lambda tokens: 3000 // tokens).tolist() == [0, 2, 3]
    assert fullest(lengths, Budget(1, 4096, "packed"), lambda tokens: 9).tolist() == [1]


def test_long_examples_count_for_more_than_their_tokens() -> None:
    """One of 2,000 tokens is more work than two of 1,000 where attention is half of it all at 1,000 tokens."""
    lengths = [2000, 1000, 1000, 500, 500]

    def dealt(even: float) -> list[list[int]]:
        budget = Budget(1, 4000, "padded", even=even)
        return [sorted(lengths[i] for micro in lay(lengths, budget, rank=r, size=2) for i in micro) for r in range(2)]

    assert dealt(float("inf")) == [[500, 2000], [500, 1000, 1000]]
    assert dealt(1000) == [[2000], [500, 500, 1000, 1000]]
