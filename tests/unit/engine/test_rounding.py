"""Stochastic rounding: one of the two neighbours, right on average, and never something else."""

import math

import pytest
import torch
from hypothesis import given, strategies

from fulltune.engine.rounding import generator_of_this_update, stochastic
from fulltune.training.step import reseed

LARGEST = torch.finfo(torch.bfloat16).max


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@given(strategies.floats(width=32, allow_nan=False, allow_infinity=False), strategies.integers(0, 1000))
def test_the_result_is_a_neighbour(value: float, seed: int) -> None:
    exact = torch.full((32,), value, dtype=torch.float32)
    found = stochastic(exact, generator(seed)).float()
    down = (exact.view(torch.int32) & -65536).view(torch.float32)
    up = ((exact.view(torch.int32) & -65536) + 65536).view(torch.float32).clamp(-LARGEST, LARGEST)
    assert bool(((found == down) | (found == up)).all())
    assert bool(found.isfinite().all())


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9, 0.999])
@pytest.mark.parametrize("start", [1.0, -1.0, 3.0e-30, -7.5e20])
def test_the_expected_value_is_exact(start: float, share: float) -> None:
    below = torch.tensor(start).bfloat16().float()
    step = (below.view(torch.int32) + 65536).view(torch.float32) - below
    found = stochastic((below + share * step).expand(200_000).contiguous(), generator())
    mean = float(((found.double() - below.double()) / step.double()).mean())
    assert mean == pytest.approx(share, abs=5e-3), "four standard deviations of 200,000 draws"


def test_what_bfloat16_holds_stays_as_it_is() -> None:
    values = torch.randn(10_000, generator=generator()).bfloat16()
    odd = torch.tensor([0.0, -0.0, LARGEST, -LARGEST, 1e-40, math.inf, -math.inf]).bfloat16()
    for exact in (values, odd):
        found = stochastic(exact.float(), generator(1))
        assert torch.equal(found.view(torch.int16), exact.view(torch.int16))


def test_nan_stays_nan_and_nothing_wraps_around() -> None:
    bits = torch.tensor([0x7FC00000, 0x7F800001, 0x7FFFFFFF, -1, -0x3FFFFF], dtype=torch.int32)  # NaNs of every kind
    for seed in range(50):
        assert bool(stochastic(bits.view(torch.float32), generator(seed)).isnan().all())
    beyond = torch.full((1000,), torch.finfo(torch.float32).max)
    assert bool((stochastic(beyond, generator()) == LARGEST).all())


def test_draws_depend_on_seed_and_position_and_on_nothing_that_was_drawn_meanwhile() -> None:
    value = torch.randn(1000, generator=generator())

    def rounded(position: int, drawn: int) -> torch.Tensor:
        reseed(0, position, 0)
        torch.rand(drawn)  # dropout, whose number of draws hangs on the layout
        return stochastic(value, generator_of_this_update(torch.device("cpu")))

    assert torch.equal(rounded(8, 0), rounded(8, 999))
    assert not torch.equal(rounded(8, 0), rounded(16, 0))
    reseed(0, 8, 0)
    dropout = torch.randint(1 << 16, (1000,), dtype=torch.int32)
    own = torch.randint(1 << 16, (1000,), dtype=torch.int32, generator=generator_of_this_update(torch.device("cpu")))
    assert not torch.equal(dropout, own)
