"""The order of the data is a pure function of a position."""

import time
from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings, strategies

from fulltune.data.order import Order, Replay

sizes = strategies.lists(strategies.integers(0, 300), min_size=1, max_size=4).filter(lambda s: sum(s) > 0)


@given(sizes, strategies.integers(0, 3))
@settings(deadline=None, max_examples=60)
def test_each_epoch_holds_every_example_once(sizes: list[int], seed: int) -> None:
    order, total = Order(sizes, shares=None, seed=seed), sum(sizes)
    for epoch in range(3):
        assert sorted(order.at(epoch * total, (epoch + 1) * total)) == list(range(total))


@given(sizes, strategies.integers(0, 20_000), strategies.integers(0, 9000))
@settings(deadline=None, max_examples=60)
def test_any_piece_is_the_same_piece_of_the_whole(sizes: list[int], start: int, length: int) -> None:
    for shares in (None, [3.0, 1.0, 2.0, 0.5][: len(sizes)]):
        whole = Order(sizes, shares=shares, seed=1).at(0, start + length)
        assert np.array_equal(whole[start:], Order(sizes, shares=shares, seed=1).at(start, start + length))


def test_shares_hold_in_every_stretch_and_sources_repeat_or_wait() -> None:
    order = Order([1000, 50], shares=[9, 1], seed=0)
    for start in (0, 5000, 40_000):
        drawn = order.at(start, start + 10_000)
        assert abs((drawn >= 1000).mean() - 0.1) < 0.01
    small = order.at(0, 10_000)
    small = small[small >= 1000]
    for epoch in range(19):
        assert sorted(small[epoch * 50 : epoch * 50 + 50]) == list(range(1000, 1050)), "whole before it comes again"


def test_epochs_seeds_and_sources_are_shuffled_differently() -> None:
    order = Order([64, 64], shares=[1, 1], seed=0)
    first, second = order.at(0, 128), order.at(128, 256)
    assert not np.array_equal(first, second)
    assert not np.array_equal(first, np.sort(first))
    assert not np.array_equal(first, Order([64, 64], shares=[1, 1], seed=1).at(0, 128))
    a, b = first[first < 64], first[first >= 64] - 64
    assert not np.array_equal(a, b)


def test_the_order_is_pinned() -> None:
    """A change here changes every curve: mark it **numerics** in the changelog."""
    assert Order([10], shares=None, seed=0).at(0, 12).tolist() == [7, 1, 2, 5, 6, 9, 4, 8, 0, 3, 9, 3]
    assert Order([4, 3], shares=[1, 2], seed=5).at(4090, 4102).tolist() == [6, 4, 6, 5, 4, 3, 5, 6, 0, 5, 2, 1]


def test_an_empty_source_is_skipped() -> None:
    assert set(Order([0, 3, 0], shares=None, seed=0).at(0, 6)) == {0, 1, 2}
    with pytest.raises(AssertionError):
        Order([0], shares=None, seed=0)


parts = strategies.fractions(Fraction(1, 100), Fraction(99, 100), max_denominator=1000).map(float)
shared = strategies.booleans()


def replayed(sizes: list[int], again: list[int], part: float, *, mixed: bool = False, seed: int = 1) -> Order:
    shares = [3.0, 1.0, 2.0, 0.5]
    replay = Replay.of(again, shares[: len(again)] if mixed else None, part)
    return Order(sizes, shares=shares[: len(sizes)] if mixed else None, seed=seed, replay=replay)


@given(sizes, sizes, parts, shared, strategies.integers(0, 10**9), strategies.integers(1, 500))
@settings(deadline=None, max_examples=80)
def test_every_stretch_has_its_part_of_replay(
    sizes: list[int], again: list[int], part: float, mixed: bool, start: int, length: int
) -> None:
    """Exact to within one example, wherever an update begins and however small it is."""
    drawn = replayed(sizes, again, part, mixed=mixed).at(start, start + length)
    assert abs(int((drawn >= sum(sizes)).sum()) - length * part) < 1
    assert drawn.min() >= 0
    assert drawn.max() < sum(sizes) + sum(again)


@given(sizes, sizes, parts, shared, strategies.integers(0, 20_000), strategies.lists(strategies.integers(0, 900)))
@settings(deadline=None, max_examples=60)
def test_replay_is_a_function_of_the_position_too(
    sizes: list[int], again: list[int], part: float, mixed: bool, start: int, cuts: list[int]
) -> None:
    """However the positions are cut into updates, and whatever was asked before."""
    places = start + np.cumsum([0, *cuts])
    order = replayed(sizes, again, part, mixed=mixed)
    whole = replayed(sizes, again, part, mixed=mixed).at(start, int(places[-1]))
    for begin, end in reversed(list(pairwise(places.tolist()))):
        assert np.array_equal(order.at(begin, end), whole[begin - start : end - start])


@given(sizes, sizes, parts, strategies.integers(0, 3))
@settings(deadline=None, max_examples=60)
def test_with_replay_each_epoch_holds_every_example_once(
    sizes: list[int], again: list[int], part: float, seed: int
) -> None:
    """The main examples come as they would come alone; those of replay have epochs of their own."""
    order, own = replayed(sizes, again, part, seed=seed), sum(sizes)
    replay = Replay.of(again, None, part)
    drawn = order.at(0, replay.positions(3 * own))
    assert np.array_equal(drawn[drawn < own], Order(sizes, shares=None, seed=seed).at(0, 3 * own))
    assert drawn[-1] < own, "no replay behind the last example"
    seen = drawn[drawn >= own] - own
    for epoch in range(len(seen) // sum(again)):
        assert sorted(seen[epoch * sum(again) : (epoch + 1) * sum(again)]) == list(range(sum(again)))


@given(parts, strategies.integers(1, 10**12))
def test_positions_are_the_fewest_that_hold_so_many_others(part: float, others: int) -> None:
    replay = Replay.of([1], None, part)
    positions = replay.positions(others)
    assert positions - replay.before(positions) == others
    assert positions - 1 - replay.before(positions - 1) == others - 1


def test_a_tenth_is_a_tenth() -> None:
    """As floats 3 * 0.1 is more than 0.3, and floor(10 * 0.7) would be 6 or 7 as rounding has it."""
    for part, of, wanted in ((0.1, 10, 1), (0.7, 10, 7), (0.29, 100, 29), (1 / 3, 3, 1)):
        drawn = replayed([50], [7], part).at(0, 200 * of).reshape(200, of)
        assert set((drawn >= 50).sum(1).tolist()) == {wanted}


def test_far_positions_take_no_longer() -> None:
    order = replayed([1000, 500], [300], 0.15, mixed=True)
    begun = time.perf_counter()
    order.at(10**14, 10**14 + 32)
    assert time.perf_counter() - begun < 0.5


def test_the_order_of_replay_is_pinned() -> None:
    """A change here changes every curve with replay: mark it **numerics** in the changelog."""
    assert replayed([6], [3], 0.25, seed=0).at(0, 12).tolist() == [1, 2, 5, 7, 4, 0, 3, 8, 3, 2, 5, 6]
    assert (replayed([8], [8], 0.5).at(0, 16).reshape(8, 2)[:, 1] >= 8).all()
    first = replayed([8], [8], 0.5).at(0, 16).reshape(8, 2) % 8
    assert not np.array_equal(first[:, 0], first[:, 1]), "replay has an order of its own"
