"""Which rows are kept back: by content, stable as rows come, capped, stratified."""

import hashlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from fulltune.data.split import HELDOUT, TEST, TRAIN, place, sides
from fulltune.recipe.data import KeptBack


def hashes(names: list[str]) -> NDArray[np.uint64]:
    return np.array([int(hashlib.sha256(name.encode()).hexdigest()[:16], 16) for name in names], np.uint64)


def ones(count: int) -> NDArray[np.int64]:
    return np.ones(count, np.int64)


def test_a_place_is_the_first_32_bits() -> None:
    assert place(np.array([0, 1 << 63, (1 << 64) - 1], np.uint64)).tolist() == [0.0, 0.5, 1 - 2**-32]


@given(st.integers(1, 300), st.floats(0.01, 0.6), st.floats(0.01, 0.39))
def test_a_row_keeps_its_side_when_others_come(count: int, heldout: float, test: float) -> None:
    at = place(hashes([f"row {n}" for n in range(count)]))
    both = KeptBack(share=heldout), KeptBack(share=test)
    whole = sides(at, ones(count), *both)
    half = count // 2
    assert (sides(at[:half], ones(half), *both) == whole[:half]).all()
    # Neither share moves what the other one keeps back.
    assert ((sides(at, ones(count), both[0], None) == HELDOUT) == (whole == HELDOUT)).all()
    assert ((sides(at, ones(count), None, both[1]) == TEST) == (whole == TEST)).all()


def test_shares_are_kept_within_chance() -> None:
    at = place(hashes([f"row {n}" for n in range(20_000)]))
    made = sides(at, ones(20_000), KeptBack(share=0.1), KeptBack(share=0.05))
    counts = np.bincount(made, minlength=3) / 20_000
    assert counts[[TRAIN, HELDOUT, TEST]] == pytest.approx([0.85, 0.1, 0.05], abs=0.007)


@given(st.integers(1, 400), st.integers(1, 50), st.sampled_from(["heldout", "test"]))
def test_never_more_than_asked_for_and_rows_only_leave(count: int, most: int, which: str) -> None:
    at = place(hashes([f"row {n}" for n in range(count)]))
    part, side = KeptBack(share=0.5, max_examples=most), HELDOUT if which == "heldout" else TEST

    def kept(rows: int) -> set[int]:
        args = (part, None) if which == "heldout" else (None, part)
        return set(np.flatnonzero(sides(at[:rows], ones(rows), *args) == side).tolist())

    whole = kept(count)
    uncapped = KeptBack(share=0.5)
    free = sides(at, ones(count), *((uncapped, None) if which == "heldout" else (None, uncapped))) == side
    assert len(whole) == min(most, int(free.sum()))
    # A row that was taught is never held out later: with more rows, of the old ones only fewer are kept back.
    assert whole & set(range(count // 2)) <= kept(count // 2)


def test_a_group_stays_whole_also_where_it_is_larger_than_asked_for() -> None:
    at = np.repeat([0.01, 0.02, 0.9], [5, 5, 90])
    assert (sides(at, ones(100), KeptBack(share=0.5, max_examples=7), None) == HELDOUT).sum() == 5
    assert (sides(at, ones(100), KeptBack(share=0.5, max_examples=3), None) == HELDOUT).sum() == 5


def test_rows_that_make_several_examples_count_as_so_many() -> None:
    at = np.array([0.01, 0.02, 0.03, 0.9])
    made = sides(at, np.array([4, 4, 4, 4]), KeptBack(share=0.5, max_examples=8), None)
    assert made.tolist() == [HELDOUT, HELDOUT, TRAIN, TRAIN]


def test_strata_are_kept_back_in_just_their_share() -> None:
    names = [f"row {n}" for n in range(1000)]
    strata = np.array([7 if n % 10 else 3 for n in range(1000)])
    at, part = place(hashes(names)), KeptBack(share=0.1, stratify_by="label")
    made = sides(at, ones(1000), part, part, strata)
    for side in (HELDOUT, TEST):
        assert [int(((made == side) & (strata == which)).sum()) for which in (3, 7)] == [10, 90]
    plain = sides(at, ones(1000), KeptBack(share=0.1), None)
    assert [int(((plain == HELDOUT) & (strata == which)).sum()) for which in (3, 7)] != [10, 90]
