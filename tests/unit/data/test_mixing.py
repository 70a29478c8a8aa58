"""Shares as asked -> what an order takes: in examples or in tokens, with replay."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings, strategies

from fulltune.base.errors import DataError
from fulltune.base.records import SplitFacts
from fulltune.data.mixing import Mixture, mixture
from fulltune.recipe.load import load_recipe


def mixed(sizes: Sequence[int], tokens: Sequence[int] | None = None, **data: Any) -> Mixture:
    """`sizes`: examples of each source, those of replay last; one token each unless said."""
    held = tuple(tokens or sizes)
    facts = SplitFacts(
        examples=sum(sizes),
        tokens=sum(held),
        supervised_tokens=sum(held),
        lengths={},
        by_source=tuple(sizes),
        tokens_by_source=held,
    )
    return mixture(load_recipe({"model": {"path": "x/y"}, "data": data}).data, facts)


def sources(*shares: float | None) -> list[dict[str, Any]]:
    return [{"path": f"{n}.jsonl", **({} if share is None else {"share": share})} for n, share in enumerate(shares)]


def counted(made: Mixture, positions: int) -> list[int]:
    """How many of these positions each source has."""
    drawn = made.order(0).at(0, positions)
    ends = np.cumsum(made.sizes)
    return np.bincount(np.searchsorted(ends, drawn, side="right"), minlength=len(ends)).tolist()


def test_without_shares_sizes_decide() -> None:
    made = mixed([300, 100], train=sources(None, None))
    assert made.shares is None
    assert made.parts == pytest.approx((0.75, 0.25))
    assert counted(made, 400) == [300, 100]
    assert made.positions(400) == 400


def test_replay_has_its_part_and_the_rest_is_as_it_was() -> None:
    made = mixed([300, 100, 50], train=sources(None, None), replay={"sources": "general.jsonl", "share": 0.2})
    assert made.parts == pytest.approx((0.6, 0.2, 0.2))
    assert made.positions(400) == 499, "400 of their own and 99 between them"
    assert counted(made, 499) == [300, 100, 99]
    (one, two, again) = made.seen(500)
    assert (again.replay, again.examples, again.share) == (True, 50, 0.2)
    assert (one.passes, two.passes, again.passes) == pytest.approx((1, 1, 2))
    assert str(again).endswith("general.jsonl (replay): 20.0% of the examples, each of its 50 seen 2.00 times")


def test_shares_of_tokens_allow_for_the_length_of_examples() -> None:
    """Half of the tokens from answers of 10 tokens, half from documents of 90: nine examples to one."""
    made = mixed([900, 200], [9000, 18_000], train=sources(1.0, 1.0), share_by="tokens")
    assert made.parts == pytest.approx((0.9, 0.1))
    assert counted(made, 4096) == pytest.approx([3686.4, 409.6], abs=1), (
        "sources take turns at random inside 4096 positions"
    )
    assert made.tokens_per_example == pytest.approx(18)


@given(
    strategies.lists(strategies.tuples(strategies.integers(1, 99), strategies.integers(1, 50)), min_size=2, max_size=5),
    strategies.integers(1, 3),
    strategies.floats(0.05, 0.9),
    strategies.booleans(),
)
@settings(deadline=None, max_examples=60)
def test_by_tokens_the_tokens_have_the_shares(
    given_: list[tuple[int, int]], own: int, part: float, shared: bool
) -> None:
    """Of replay among all, and of each source among its own kind."""
    own = min(own, len(given_) - 1)
    sizes, lengths = [size for size, _ in given_], [length for _, length in given_]
    shares = [float(n + 1) if shared else None for n in range(len(given_))]
    asked = sources(*shares)
    replay = {"sources": asked[own:], "share": part}
    tokens = [size * length for size, length in given_]
    made = mixed(sizes, tokens, train=asked[:own], replay=replay, share_by="tokens")
    seen = [p * length for p, length in zip(made.parts, lengths, strict=True)]
    assert sum(seen[own:]) / sum(seen) == pytest.approx(part, abs=1e-6)
    assert sum(seen) == pytest.approx(made.tokens_per_example)
    for kind in (slice(own), slice(own, None)):
        wanted = np.array([n + 1 for n in range(len(given_))][kind] if shared else tokens[kind], float)
        assert np.array(seen[kind]) / sum(seen[kind]) == pytest.approx(wanted / wanted.sum(), abs=1e-6)


def test_a_source_of_which_nothing_is_left_never_comes() -> None:
    """It may be held out whole, and the store counts no sources behind its last example."""
    for share_by in ("examples", "tokens"):
        made = mixed([0, 30], [0, 90], train=sources(1.0, 1.0, 1.0), share_by=share_by)
        assert made.sizes == (0, 30, 0)
        assert made.parts == (0, 1, 0)
        assert counted(made, 60) == [0, 60, 0]
        assert [source.passes for source in made.seen(60)] == [0, 2, 0]


def test_nothing_to_mix_is_an_error() -> None:
    with pytest.raises(DataError, match=r"no example of data\.replay is left"):
        mixed([5], train="a.jsonl", replay="g.jsonl")
    with pytest.raises(DataError, match=r"no example of data\.train is left"):
        mixed([0, 5], train="a.jsonl", replay="g.jsonl")
