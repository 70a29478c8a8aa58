"""The order of the data is a pure function of a position."""

import numpy as np
import pytest
from hypothesis import given, settings, strategies

from fulltune.data.order import Order

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
