"""Curves are thinned so that nothing that stands out is lost."""

import math

from hypothesis import given
from hypothesis import strategies as st

from fulltune.reporting.series import buckets, smooth, thinned

VALUES = st.lists(st.floats(allow_nan=True, allow_infinity=True, width=32), max_size=300)


def test_few_points_stay_as_they_are() -> None:
    points = [(1.0, 3.0), (2.0, 1.0), (3.0, 2.0)]
    assert thinned(points, 3) == points


def test_a_spike_among_ten_thousand_stays() -> None:
    points = [(float(n), 1.0) for n in range(10_000)]
    points[6789], points[1234] = (6789.0, 50.0), (1234.0, -50.0)
    kept = thinned(points, 400)
    assert len(kept) <= 402
    assert {(6789.0, 50.0), (1234.0, -50.0), points[0], points[-1]} <= set(kept)
    assert kept == sorted(kept)


@given(VALUES, st.integers(2, 50))
def test_no_extreme_is_lost_and_nothing_is_made_up(values: list[float], most: int) -> None:
    points = list(enumerate(values))
    kept = thinned(points, most)
    finite = [y for y in values if math.isfinite(y)]
    assert len(kept) <= most + 2
    assert set(kept) <= {(x, y) for x, y in points if math.isfinite(y)}
    if finite:
        assert min(y for _, y in kept) == min(finite)
        assert max(y for _, y in kept) == max(finite)


@given(VALUES, st.integers(1, 50))
def test_buckets_hold_every_value_once(values: list[float], most: int) -> None:
    made = buckets(list(enumerate(values)), most)
    assert len(made) == min(most, len(values))
    covered = [n for bucket in made for n in range(int(bucket.first), int(bucket.last) + 1)]
    assert covered == list(range(len(values)))
    assert sum(bucket.odd for bucket in made) == sum(not math.isfinite(value) for value in values)
    for bucket in made:
        held = [y for y in values[int(bucket.first) : int(bucket.last) + 1] if math.isfinite(y)]
        if held:
            assert (bucket.low, bucket.high) == (min(held), max(held))
            assert math.isclose(bucket.mean, math.fsum(held) / len(held), rel_tol=1e-12)
        else:
            assert math.isnan(bucket.mean)


def test_means_stand_in_the_middle_of_what_they_are_of() -> None:
    assert smooth([(1, 1.0), (2, 3.0), (3, 10.0), (4, 20.0)], 2) == [(1.5, 2.0), (3.5, 15.0)]
