"""Weights that are moved part by part: what a whole one would be."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fulltune.base.formats import MomentFormat
from fulltune.base.memory import MOVED_AT_ONCE
from fulltune.engine import rounded
from fulltune.engine.moments import SCALES, widen
from fulltune.engine.parts import in_parts
from fulltune.engine.rounded import RoundedWeights
from fulltune.optim.groups import Parting, groups
from fulltune.optim.optimizers import OPTIMIZERS, make
from fulltune.optim.pulls import L2SP
from fulltune.planning.precision import precision_plan, rounds
from fulltune.recipe.schema import OptimSection
from tests.contract.updates import Updates

SHAPE = (40, 33)
"""1,320 numbers: five parts of 256, and one of 40."""


def weights(moments: MomentFormat, *, parts: bool, name: str = "adamw", **options: Any) -> RoundedWeights:
    net = nn.Linear(SHAPE[1], SHAPE[0], bias=False)
    generator = torch.Generator().manual_seed(7)
    net.weight.data = torch.randn(SHAPE, generator=generator)

    def make_optimizer(named: Any) -> Any:
        parted = groups(named, Parting(undecayed=set(), matrices=set()))
        return make(name, parted, lr=0.01, weight_decay=0.1, options=options)

    return RoundedWeights(net, make_optimizer, moments=moments, parts=parts)


def moved(made: RoundedWeights, updates: int, pulls: Any = ()) -> tuple[Tensor, dict[str, Any]]:
    """The weight after so many updates, and the optimizer's state."""
    ((shard, weight),) = made._weights.items()
    for seed in range(updates):
        torch.manual_seed(seed)
        weight.grad = torch.empty_like(weight).copy_(torch.randn(SHAPE))  # laid as the weight is, as autograd does
        made.step(made.norm(), 1.5, pulls)
        made.clear()
    return weight.detach(), made.optimizer.state[shard]


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(MOVED_AT_ONCE, "cpu", 256)


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize(
    ("name", "options"),
    [("adamw", {}), ("adamw", {"amsgrad": True}), ("lion", {}), ("sgd", {}), ("sgd", {"momentum": 0.9})],
)
def test_a_weight_in_parts_is_moved_as_a_whole_one(
    monkeypatch: pytest.MonkeyPatch, name: str, options: dict[str, Any]
) -> None:
    """But for draws, and for last digits where a kernel ends."""
    monkeypatch.setattr(rounded, "stochastic", lambda value, generator: value.to(torch.bfloat16))
    seen: list[int] = []
    monkeypatch.setattr(rounded, "in_parts", lambda *given: (seen.append(1) or part for part in in_parts(*given)))
    assert precision_plan("bf16-sr", OptimSection(name=name), several=False).parts
    (whole, kept), (found, left) = (
        moved(weights("float32", parts=parts, name=name, **options), 4) for parts in (False, True)
    )
    assert len(seen) == 4 * 6
    assert torch.equal(whole, found)
    assert kept.keys() == left.keys()
    for key, value in kept.items():
        assert left[key].shape == value.shape
        assert torch.allclose(left[key], value, rtol=1e-6, atol=1e-9), key


def test_optimizers_that_see_a_whole_weight_are_given_one() -> None:
    known = [name for name in OPTIMIZERS if rounds(name)]
    parts = {name for name in known if precision_plan("bf16-sr", OptimSection(name=name), several=False).parts}
    assert parts == {"adamw", "lion", "sgd"} and parts < set(known)
    assert not precision_plan("float32", OptimSection(), several=False).parts, "which is moved in its place"


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("moments", ["float32", "bfloat16", "int8"])
def test_moments_are_left_in_their_format_whatever_the_parts(moments: MomentFormat) -> None:
    """Of the first update, and of later ones; scales are those of the whole, since parts end where scales do."""
    for updates in (1, 3):
        (_, kept), (_, left) = (moved(weights(moments, parts=parts), updates) for parts in (False, True))
        assert {key: (value.shape, value.dtype) for key, value in kept.items()} == {
            key: (value.shape, value.dtype) for key, value in left.items()
        }
        assert float(left["step"]) == updates
        if updates == 1:
            for key in kept if moments == "int8" else ():
                assert not key.endswith(SCALES) or torch.equal(kept[key], left[key])
        for state in (kept, left):
            widen(state)
        for key in ("exp_avg", "exp_avg_sq"):
            apart = (kept[key] - left[key]).norm() / kept[key].norm()
            assert apart < {"float32": 1e-3, "bfloat16": 1e-2, "int8": 0.1}[moments], (key, apart)


@pytest.mark.usefixtures("small")
def test_a_state_in_another_format_is_taken_over() -> None:
    """A run that goes on with moments in another format: the parts of the first update find the old one."""
    made = weights("float32", parts=True)
    moved(made, 2)
    for format_ in ("int8", "bfloat16", "float32"):
        made._moments = format_  # type: ignore[assignment]
        _, state = moved(made, 1)
        kind = {"int8": torch.uint8, "bfloat16": torch.bfloat16, "float32": torch.float32}[format_]
        assert state["exp_avg"].dtype == kind and state["exp_avg"].shape == SHAPE
        assert (f"exp_avg{SCALES}" in state) == (format_ == "int8")


@pytest.mark.usefixtures("small")
def test_pulls_are_shown_the_whole_weight() -> None:
    shapes = []

    class Look(L2SP):
        def after(self, name: str, shard: Tensor, lr: float) -> None:
            shapes.append(tuple(shard.shape))

    moved(weights("float32", parts=True), 1, [Look(alpha=0.1)])
    assert shapes == [SHAPE]


@pytest.mark.usefixtures("small")
def test_a_weight_that_lies_transposed_in_memory_is_moved_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rounded, "stochastic", lambda value, generator: value.to(torch.bfloat16))
    made, plain = weights("float32", parts=True), weights("float32", parts=False)
    for weight in made._weights.values():
        weight.data = weight.data.t().contiguous().t()
    (found, _), (whole, _) = moved(made, 2), moved(plain, 2)
    assert not found.is_contiguous() and torch.equal(found, whole)


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("moments", ["float32", "int8"])
def test_what_goes_on_from_a_checkpoint_has_the_same_bits(tmp_path: Path, moments: str) -> None:
    ground = {"precision": "bf16-sr", "moments": moments}
    whole, resumed = (Updates(tmp_path / name, ground=ground) for name in "ab")
    progress = whole.make(2)
    whole.save(progress)
    whole.make(2, progress)
    assert any(weight.numel() > 256 for weight in whole.ground.model.parameters())
    loaded, _, _ = whole.checkpoints.load(2, resumed.ground.engine)
    resumed.make(2, loaded)
    assert resumed.losses() == whole.losses()[2:]
    ours, theirs = state(resumed), state(whole)
    assert ours.keys() == theirs.keys() and all(torch.equal(value, ours[key]) for key, value in theirs.items())


def state(made: Updates) -> dict[str, Tensor]:
    """Weights and moments."""
    engine, found = made.ground.engine, dict(made.ground.model.named_parameters())
    for shard, name in engine._names.items():
        found |= {f"{name}/{key}": value for key, value in engine._optimizer.state[shard].items()}
    return found
