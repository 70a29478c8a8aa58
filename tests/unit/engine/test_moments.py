"""Moments in 8 bits: near what they were, right on average, and never a step without bound."""

import math
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings, strategies
from torch import Tensor

from fulltune.base.errors import CheckpointError
from fulltune.base.formats import BLOCK
from fulltune.engine import moments, zero_state
from fulltune.engine.moments import decoded, encoded, narrow, widen
from tests import tiny
from tests.contract.ground import Ground

CPU = torch.device("cpu")
BOTH = pytest.mark.parametrize("second", [False, True])


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def again(value: Tensor, *, second: bool, seed: int = 0) -> Tensor:
    return decoded(*encoded(value, generator(seed), second=second), second=second)


def of_every_size(*shape: int, second: bool) -> Tensor:
    """Magnitudes from 1e-12 to 1e3, some of them 0; of either sign, if they are no second moments."""
    drawn = torch.rand((3, *shape), generator=generator(1))
    sizes = 10 ** (15 * drawn[0] - 12) * (drawn[1] > 0.1)
    return sizes if second else sizes * (2 * (drawn[2] > 0.5) - 1)


@BOTH
def test_the_code_is_256_numbers_in_order_from_nothing_to_1(second: bool) -> None:
    code = moments._code(second, CPU).double()
    assert len(code) == (256 if second else 255)
    assert bool((code.diff() > 0).all()) and float(code[-1]) == 1
    assert int((code == 0).sum()) == 1
    if second:
        assert float(code[1]) == pytest.approx(1e-14)
        apart = code[2:].sqrt() / code[1:-1].sqrt()
    else:
        assert torch.equal(code, -code.flip(0))
        assert float(code[128]) == pytest.approx(1e-6)
        apart = code[129:] / code[128:-1]
    assert float(apart[-63:].max()) < 1.13, "fine in the tenth where most moments lie"
    assert float(apart.max()) < 5.6, "coarse at the lower end"


@BOTH
@pytest.mark.parametrize("count", [1, 255, 256, 257, 1000])
def test_a_number_becomes_a_neighbour_and_the_largest_and_0_stay(second: bool, count: int) -> None:
    value = of_every_size(count, second=second)
    codes, scales = encoded(value, generator(), second=second)
    assert (codes.dtype, codes.shape, scales.shape) == (torch.uint8, value.shape, (math.ceil(count / BLOCK),))
    found, code = decoded(codes, scales, second=second), moments._code(second, CPU)
    for start in range(0, count, BLOCK):
        block, made = value[start : start + BLOCK], found[start : start + BLOCK]
        largest = block.abs().max()
        assert float(scales[start // BLOCK]) == float(largest)
        assert torch.equal(made[block.abs() == largest], block[block.abs() == largest])
        assert bool((made[block == 0] == 0).all())
        share, near = (block / largest).double(), (made / largest).double()
        place = torch.bucketize(share, code.double(), right=True).clamp(1, len(code) - 1)
        low, high = code.double()[place - 1], code.double()[place]
        slack = 1e-6 * high.abs() + 1e-6 * low.abs()
        assert bool(((near >= low - slack) & (near <= high + slack)).all()), "one of the two beside it"


@BOTH
def test_shape_and_order_are_kept_beyond_what_is_coded_at_once(second: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """In pieces of 2 blocks a matrix is coded block by block as it is in one piece; larger numbers stay larger."""
    value = of_every_size(37, 50, second=second)
    codes, scales = encoded(value, generator(), second=second)
    rising = again(torch.linspace(1e-3, 1, BLOCK), second=second)
    assert bool((rising.diff() >= -0.15 * rising[1:]).all()) and float(rising[-1]) == 1
    monkeypatch.setattr(moments, "CODED_AT_ONCE", 2 * BLOCK)
    pieces, same = encoded(value, generator(), second=second)
    assert torch.equal(same, scales)
    assert torch.equal(pieces, codes), "drawn in the same order too"
    assert torch.equal(decoded(pieces, same, second=second), decoded(codes, scales, second=second).view(37, 50))


@settings(max_examples=25)
@given(strategies.floats(1e-12, 1e3), strategies.floats(0, 1), strategies.booleans())
def test_the_expected_value_is_exact(largest: float, share: float, second: bool) -> None:
    value = torch.full((400, BLOCK), largest * share)
    value[:, 0] = largest
    code, found = moments._code(second, CPU).double(), again(value, second=second)[:, 1:].double() / largest
    place = int(torch.bucketize(torch.tensor(share).double(), code, right=True).clamp(1, len(code) - 1))
    low, high = float(code[place - 1]), float(code[place])
    if (
        second and float(value[0, 1]) > 0 and share < high == float(code[1])
    ):  # below the smallest code there is no choice
        assert bool((found - high).abs().max() <= 1e-6 * high)
    else:
        assert float(found.mean()) == pytest.approx(share, abs=5 * (high - low) / (2 * 102_000**0.5) + 1e-6 * high)


def test_a_second_moment_above_nothing_is_never_nothing() -> None:
    value = torch.tensor([1e3, 1e-12, 1e-30, 0.0]).repeat(64)
    found = again(value, second=True)
    assert bool((found[value > 0] > 0).all()) and bool((found[value == 0] == 0).all())
    assert float(again(torch.tensor([1e3, -1e-12]), second=False)[1]) in (0.0, -1e3 * 1e-6)


def test_what_is_not_finite_does_not_hide() -> None:
    """Nor does it reach further than its block; a checkpoint with such a scale is not written."""
    for bad in (math.nan, math.inf):
        value = torch.ones(2 * BLOCK)
        value[3] = bad
        codes, scales = encoded(value, generator(), second=True)
        assert not bool(scales[0].isfinite())
        found = decoded(codes, scales, second=True)
        assert not bool(found[:BLOCK].isfinite().any()) and torch.equal(found[BLOCK:], torch.ones(BLOCK))


def test_a_state_is_narrowed_and_widened_and_counters_are_left_alone() -> None:
    value = of_every_size(3, 300, second=True)
    state = {"step": torch.tensor(7.0), "exp_avg": -value, "exp_avg_sq": value, "count": 3}
    kept = dict(state)
    narrow(kept, "int8", generator())
    assert kept.keys() == {*state, "exp_avg.scales", "exp_avg_sq.scales"}
    assert {kept["exp_avg"].dtype, kept["exp_avg_sq"].dtype} == {torch.uint8}
    for number in ("int8", "bfloat16", "float32"):
        narrow(again := dict(state), number, generator())
        widen(again)
        assert list(again) == list(state) and (again["step"], again["count"]) == (state["step"], 3)
        assert again["exp_avg"].dtype == torch.float32
        assert torch.equal(again["exp_avg"] < 0, value > 0) or number == "int8"
    assert torch.equal(again["exp_avg_sq"], value), "float32 is as it was"


class Alike:
    """AdamW's moments of numbers whose gradients become a tenth, in blocks with others whose do not."""

    small = torch.arange(8 * BLOCK) % 2 == 0

    def __init__(self, *, code: bool = True) -> None:
        self.first, self.square = torch.zeros(8 * BLOCK), torch.zeros(8 * BLOCK)
        self._code, self._drawn, self._gradients = code, generator(1), generator(2)
        self.largest = 0.0

    def update(self, number: int) -> None:
        scale = torch.where(self.small & (number >= 200), 0.1, 1.0)
        gradient = torch.randn(8 * BLOCK, generator=self._gradients) * scale
        self.first = 0.9 * self.first + 0.1 * gradient
        self.square = 0.99 * self.square + 0.01 * gradient**2
        root = (self.square / (1 - 0.99 ** (number + 1))).sqrt()
        self.largest = max(self.largest, float((self.first / (1 - 0.9 ** (number + 1)) / root).abs().max()))
        if self._code:
            self.first = decoded(*encoded(self.first, self._drawn, second=False), second=False)
            self.square = decoded(*encoded(self.square, self._drawn, second=True), second=True)


def test_second_moments_come_down_as_they_do_in_float32() -> None:
    """Rounded to the nearest they would keep their place in the block: ten times too large here, for good."""
    coded, exact = Alike(), Alike(code=False)
    for number in range(600):
        coded.update(number)
        exact.update(number)
    for part in (Alike.small, ~Alike.small):
        assert float(coded.square[part].mean()) == pytest.approx(float(exact.square[part].mean()), rel=0.05)
    assert coded.largest < 1.5 * exact.largest, "and no update is far larger"


def losses(folder: Path, number: str, updates: int) -> list[float]:
    """Of updates of one small batch; gradients differ by powers of ten between seen and unseen tokens."""
    ground = Ground(folder, tiny.model("llama-tied"), count=4, precision="bf16-sr", moments=number, clip=1.0)
    found = []
    for update in range(updates):
        torch.manual_seed(update)
        found.append(ground.backward())
        ground.engine.update([1e-3, 1e-3])
    return found


def test_the_curve_is_that_of_float32_moments_but_not_to_the_bit(tmp_path: Path) -> None:
    exact, coded = (losses(tmp_path / number, number, 24) for number in ("float32", "int8"))
    assert exact[-1] < 0.85 * exact[0], "there is something to learn"
    assert coded == pytest.approx(exact, rel=0.01)
    half = losses(tmp_path / "bfloat16", "bfloat16", 4)
    assert coded[:4] != half != exact[:4] != coded[:4], "each is what it says"


def test_codes_are_read_by_bf16_sr_alone(tmp_path: Path) -> None:
    """In any of its formats; an engine with float32 weights says so, where it would take codes for moments."""
    made = Ground(tmp_path / "a", tiny.model("llama"), count=4, precision="bf16-sr", moments="int8")
    made.backward()
    made.engine.update([1e-3, 1e-3])
    (tmp_path / "c").mkdir()
    made.engine.capture({}).write(tmp_path / "c")
    for number in ("float32", "bfloat16"):
        other = Ground(tmp_path / number, tiny.model("llama"), count=4, precision="bf16-sr", moments=number)
        other.engine.load(tmp_path / "c")
        other.backward()
        other.engine.update([1e-3, 1e-3])
        kept = [value for state in other.engine._optimizer.state.values() for value in state.values() if value.ndim]
        assert {value.dtype for value in kept} == {getattr(torch, number)}
    whole = Ground(tmp_path / "b", tiny.model("llama"), count=4)
    with pytest.raises(CheckpointError, match="8 bits, which train.precision=bf16-sr alone reads"):
        whole.engine.load(tmp_path / "c")
    whole.engine.load(tmp_path / "c", weights_only=True)
    with pytest.raises(CheckpointError, match="alone reads"):
        zero_state.restore(tmp_path / "c", *([None] * 3))  # type: ignore[arg-type]
