"""The loss scale, and weights that are rounded, against torch's own in float32."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fulltune.engine import rounded as engine_rounded
from fulltune.engine.precision import LossScale
from fulltune.engine.rounded import RoundedWeights, weights_for
from fulltune.engine.weights import FullWeights
from fulltune.optim.groups import Parting, groups
from fulltune.optim.optimizers import make
from fulltune.planning.precision import precision_plan
from fulltune.recipe.schema import OptimSection
from tests import tiny
from tests.contract.ground import Ground


def test_the_loss_scale_moves_as_torchs_own() -> None:
    """Overflows at chosen updates: as long as a retry succeeds, both scales are the same at every moment."""
    parameter = nn.Parameter(torch.ones(3))
    theirs, ours = torch.amp.GradScaler("cpu", growth_interval=2000), LossScale()
    optimizer = torch.optim.SGD([parameter], lr=0.0)
    for number in range(4100):
        bad = number in (0, 1, 5, 700, 701, 702)
        theirs.scale(parameter.sum()).backward()
        if bad:
            parameter.grad[1] = math.inf
        theirs.step(optimizer)
        theirs.update()
        optimizer.zero_grad()
        assert ours.settle(applied=not bad) == bad
        assert ours.numbers()["scale"] == theirs.get_scale()
    assert ours.numbers() == {"scale": 2.0**11, "calm": 4100 - 703 - 2000}


def test_a_scale_that_overflows_down_to_1_is_as_before_when_the_update_is_given_up() -> None:
    scale = LossScale()
    for _ in range(5):
        scale.settle(applied=True)
    before = scale.numbers()
    tries = [scale.settle(applied=False) for _ in range(17)]
    assert tries == [True] * 16 + [False], "2^16 down to 1, each tried once"
    assert scale.numbers() == before
    assert [scale.settle(applied=False) for _ in range(17)] == tries, "and so the next one"


def test_the_scale_survives_a_checkpoint() -> None:
    one, other = LossScale(), LossScale()
    for applied in (False, True, True):
        one.settle(applied=applied)
    other.restore(one.numbers())
    assert other.numbers() == one.numbers() == {"scale": 2.0**15, "calm": 2}


def test_scaling_and_unscaling_lose_nothing() -> None:
    scale, gradient = LossScale(), torch.randn(1000)
    scaled = scale.scaled(gradient)
    assert torch.equal(scaled, gradient * 65536)
    scale.unscale([scaled])
    assert torch.equal(scaled, gradient)


class Net(nn.Module):
    """Two matrices, a norm and a frozen vector; weights that bfloat16 holds exactly."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.one, self.two, self.norm = nn.Linear(6, 5), nn.Linear(5, 4, bias=False), nn.LayerNorm(4)
        self.fixed = nn.Parameter(torch.ones(4), requires_grad=False)
        self.register_buffer("table", torch.linspace(0, 1, 7))
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.copy_(parameter.bfloat16())


def maker(name: str, **options: Any) -> Any:
    return lambda named: make(
        name, groups(named, Parting(undecayed=("one.bias", "norm.weight", "norm.bias"))), **options
    )


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("adamw", {}),
        ("adamw", {"betas": [0.8, 0.9], "amsgrad": True}),
        ("adamw", {"fused": False, "foreach": True}),
        ("lion", {}),
        ("adafactor", {}),
        ("sgd", {}),
        ("sgd", {"momentum": 0.9, "nesterov": True}),
    ],
)
def test_without_rounding_it_is_the_optimizer_in_float32(
    monkeypatch: pytest.MonkeyPatch, name: str, options: dict[str, Any]
) -> None:
    """Weights stay float32 here, so that nothing but rounding is taken away: what is left is torch's own update."""
    monkeypatch.setattr(engine_rounded, "stochastic", lambda value, generator: value)
    make_optimizer = maker(name, lr=0.01, weight_decay=0.1, options=options)
    plain, rounded = Net(), Net()
    ours = RoundedWeights(rounded, make_optimizer, moments="float32")
    for parameter in rounded.parameters():
        parameter.data = parameter.data.float()
    theirs = FullWeights(plain, make_optimizer)
    for step in range(6):
        for weights, net in ((theirs, plain), (ours, rounded)):
            generator = torch.Generator().manual_seed(step)
            for parameter in net.parameters():
                if parameter.requires_grad:
                    parameter.grad = torch.randn(parameter.shape, generator=generator)
            weights.step(weights.norm(), 1.5, ())
            weights.clear()
        for (which, wanted), found in zip(plain.named_parameters(), rounded.parameters(), strict=True):
            assert torch.allclose(found, wanted, rtol=1e-6, atol=1e-6), which


def test_weights_gradients_and_moments_are_what_the_plan_says_and_buffers_are_left_alone() -> None:
    for moments in ("float32", "bfloat16", "int8"):
        net = Net()
        weights = RoundedWeights(net, maker("adamw", lr=0.1, weight_decay=0.1, options={}), moments=moments)
        assert {p.dtype for p in net.parameters()} == {torch.bfloat16}
        assert net.table.dtype == torch.float32
        net.two(net.one(torch.ones(2, 6, dtype=torch.bfloat16))).sum().backward()
        assert {gradient.dtype for gradient in weights.gradients()} == {torch.bfloat16}
        weights.step(weights.norm(), math.inf, ())
        state = weights.optimizer.state
        tensors = [value for each in state.values() for value in each.values() if value.ndim > 0]
        wanted = {"float32": {torch.float32}, "bfloat16": {torch.bfloat16}, "int8": {torch.uint8, torch.float32}}
        assert {value.dtype for value in tensors} == wanted[moments]
        assert len(tensors) == 2 * 3 * (2 if moments == "int8" else 1), "two moments of each that had a gradient"
        held = sum(shard.untyped_storage().nbytes() for shard in weights.names)
        assert held == 4 * len(weights.names), "shards are outlines between updates"


def test_several_micro_batches_leave_no_16_bit_gradient_behind() -> None:
    net = Net()
    weights = RoundedWeights(net, maker("sgd", lr=0.1, weight_decay=0.0, options={}), moments="float32")
    for last in (False, False, True):
        weights.begin(last=last)
        net.two(net.one(torch.ones(2, 6, dtype=torch.bfloat16))).sum().backward()
        assert all(parameter.grad is None for parameter in net.parameters())
    assert {gradient.dtype for gradient in weights.gradients()} == {torch.float32}
    weights.clear()
    assert list(weights.gradients()) == []


def test_visits_see_float32_and_keep_what_is_changed_only() -> None:
    net = Net()
    weights = RoundedWeights(net, maker("sgd", lr=0.1, weight_decay=0.0, options={}), moments="float32")
    before = {name: parameter.clone() for name, parameter in net.named_parameters()}
    seen: dict[str, torch.dtype] = {}

    def look(name: str, shard: Tensor) -> None:
        seen[name] = shard.dtype
        if name == "one.weight":
            shard.fill_(2.5)

    weights.visit(look)
    assert list(seen) == list(before)
    assert set(seen.values()) == {torch.float32}
    after = dict(net.named_parameters())
    assert bool((after.pop("one.weight") == 2.5).all())
    assert all(torch.equal(before[name], value) for name, value in after.items())


class Toward:
    """A pull that adds to gradients and moves weights, by less than bfloat16 can hold."""

    def __init__(self) -> None:
        self.dtypes: set[torch.dtype] = set()

    on_gradients = True

    def before(self, name: str, shard: Tensor, grad: Tensor) -> None:
        self.dtypes |= {shard.dtype, grad.dtype}
        grad.add_(1e-6)

    def after(self, name: str, shard: Tensor, lr: float) -> None:
        self.dtypes.add(shard.dtype)
        shard.add_(1e-6)


def test_pulls_act_in_float32_and_are_not_rounded_away() -> None:
    """1e-6 a step is far below a bfloat16's distance; over 300 steps it is there on average."""
    net, pull = nn.Linear(100, 100, bias=False), Toward()
    weights = RoundedWeights(net, maker("sgd", lr=1e-30, weight_decay=0.0, options={}), moments="float32")
    start = net.weight.detach().clone()
    for seed in range(300):
        torch.manual_seed(seed)
        net.weight.grad = torch.zeros_like(net.weight)
        weights.pull([pull])
        assert weights.norm() == pytest.approx(1e-4, rel=1e-3), "10,000 of 1e-6"
        weights.step(weights.norm(), math.inf, [pull])
        weights.clear()
    assert pull.dtypes == {torch.float32}
    assert float((net.weight.detach().double() - start.double()).mean()) == pytest.approx(3e-4, rel=0.1)


@pytest.mark.parametrize("kind", sorted(tiny.KINDS))
@pytest.mark.parametrize("precision", ["fp16-mixed", "bf16-sr"])
def test_every_family_learns_in_every_precision(tmp_path: Path, kind: str, precision: str) -> None:
    ground = Ground(tmp_path, tiny.model(kind), count=4, precision=precision, clip=1.0)
    losses = []
    for position in range(4):
        again = True
        while again:
            torch.manual_seed(position)
            loss = ground.backward()
            update = ground.engine.update([1e-2, 1e-2])
            again = update.again
        assert update.applied
        losses.append(loss)
    assert losses[-1] < losses[0] - 0.1


@pytest.mark.parametrize(
    ("precision", "moments", "name", "options"),
    [
        ("float32", "float32", "adamw", {}),
        ("bf16-mixed", "float32", "adamw", {"amsgrad": True}),
        ("bf16-sr", "float32", "adamw", {}),
        ("bf16-sr", "bfloat16", "adamw", {"amsgrad": True}),
        ("bf16-sr", "bfloat16", "sgd", {"momentum": 0.9}),
        ("bf16-sr", "float32", "sgd", {}),
        ("bf16-mixed", "float32", "lion", {}),
        ("bf16-sr", "bfloat16", "lion", {}),
        ("bf16-sr", "int8", "adamw", {"amsgrad": True}),
        ("bf16-sr", "int8", "sgd", {"momentum": 0.9}),
        ("bf16-sr", "int8", "lion", {}),
    ],
)
def test_the_plans_bytes_are_those_that_are_held(precision: Any, moments: Any, name: str, options: Any) -> None:
    for several in (False, True):
        optim = OptimSection(name=name, moments=moments, options=options)
        made = precision_plan(precision, optim, several=several)
        net = nn.Linear(64, 64, bias=False)
        weights = weights_for(net, maker(name, lr=0.1, weight_decay=0.0, options=options), made)
        for last in (False, True) if several else (True,):
            weights.begin(last=last)
            net(torch.ones(1, 64, dtype=net.weight.dtype)).sum().backward()
        held = {"weights": [net.weight], "gradients": list(weights.gradients())}
        held["moments"] = []
        weights.step(weights.norm(), math.inf, ())
        for state in weights.optimizer.state.values():
            held["moments"] += [value for value in state.values() if isinstance(value, Tensor) and value.ndim > 0]
        sizes = {what: sum(v.numel() * v.element_size() for v in values) / 4096 for what, values in held.items()}
        assert sizes == made.bytes
