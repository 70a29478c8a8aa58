"""The contract of engines, on one device."""

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from fulltune.base.errors import CheckpointError, RecipeError
from fulltune.engine import launch
from tests import tiny
from tests.contract.ground import Ground


def weights(ground: Ground) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in ground.model.named_parameters()}


@pytest.fixture
def ground(tmp_path: Path) -> Ground:
    return Ground(tmp_path, tiny.model("llama-tied"), count=8)


def test_an_update_moves_the_weights_and_clears_the_gradients(ground: Ground) -> None:
    before = weights(ground)
    ground.gradients()
    update = ground.engine.update([1e-3, 1e-3])
    assert update.applied
    assert math.isfinite(update.grad_norm)
    assert any(not torch.equal(before[n], p) for n, p in ground.model.named_parameters())
    assert all(p.grad is None for p in ground.model.parameters())


def test_the_norm_is_that_of_all_gradients_before_clipping(tmp_path: Path) -> None:
    for clip in (None, 1e-3, 1e9):
        ground = Ground(tmp_path / str(clip), tiny.model("llama"), count=8, clip=clip, optimizer="sgd")
        grads = ground.gradients()
        norm = math.sqrt(sum(float(g.double().pow(2).sum()) for g in grads.values()))
        before = weights(ground)
        assert ground.engine.update([1.0, 1.0]).grad_norm == pytest.approx(norm, rel=1e-5)
        moved = math.sqrt(sum(float((before[n] - p).double().pow(2).sum()) for n, p in weights(ground).items()))
        decay = 0.01 * max(float(w.norm()) for w in before.values()) * len(before)
        assert moved == pytest.approx(min(norm, clip or math.inf), abs=decay)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_nothing_moves_if_one_gradient_is_not_finite(ground: Ground, bad: float) -> None:
    ground.gradients()
    ground.engine.update([1e-3, 1e-3])
    before, moments = weights(ground), _moments(ground)
    ground.gradients()
    next(iter(ground.model.parameters())).grad.view(-1)[0] = bad
    update = ground.engine.update([1e-3, 1e-3])
    assert not update.applied
    assert not math.isfinite(update.grad_norm)
    assert all(torch.equal(before[n], p) for n, p in ground.model.named_parameters())
    assert all(torch.equal(moments[key], value) for key, value in _moments(ground).items())
    assert all(p.grad is None for p in ground.model.parameters())


def _moments(ground: Ground) -> dict[str, Tensor]:
    state = ground.engine._optimizer.state
    return {f"{n}/{k}": v.clone() for n, (_, s) in enumerate(state.items()) for k, v in s.items()}


def test_a_group_at_rate_0_is_left_untouched_moments_too(ground: Ground) -> None:
    for rates in ([1e-3, 1e-3], [0.0, 1e-3]):
        ground.gradients()
        before, optimizer = weights(ground), ground.engine._optimizer
        groups = [list(group["params"]) for group in optimizer.param_groups]
        counts = [[float(optimizer.state[p]["step"]) if p in optimizer.state else 0.0 for p in g] for g in groups]
        ground.engine.update(rates)
        for group, rate, count in zip(groups, rates, counts, strict=True):
            after = [float(optimizer.state[p]["step"]) for p in group]
            assert after == [c + (rate > 0) for c in count]
    names = {p: n for n, p in ground.model.named_parameters()}
    assert all(torch.equal(before[names[p]], p) for p in groups[0])
    assert any(not torch.equal(before[names[p]], p) for p in groups[1])


def test_pulls_act_before_the_clipping_and_after_the_update_and_never_on_a_skipped_one(tmp_path: Path) -> None:
    class Counting:
        on_gradients = True

        def __init__(self) -> None:
            self.before_calls: list[str] = []
            self.after_calls: list[tuple[str, float]] = []

        def before(self, name: str, shard: Tensor, grad: Tensor) -> None:
            self.before_calls.append(name)
            grad.add_(100.0)

        def after(self, name: str, shard: Tensor, lr: float) -> None:
            self.after_calls.append((name, lr))
            shard.zero_()

    pull = Counting()
    ground = Ground(tmp_path, tiny.model("llama"), count=4, pulls=[pull], clip=1.0)
    plain = Ground(tmp_path / "p", tiny.model("llama"), count=4)
    plain.gradients()
    ground.gradients()
    assert ground.engine.update([1e-3, 1e-3]).grad_norm > 50 * plain.engine.update([1e-3, 1e-3]).grad_norm
    assert len(pull.before_calls) == len(pull.after_calls) == len(weights(ground))
    assert {lr for _, lr in pull.after_calls} == {1e-3}
    assert all((w == 0).all() for w in weights(ground).values())
    ground.gradients()
    ground.model.lm_head.weight.grad.fill_(math.nan)
    assert not ground.engine.update([1e-3, 1e-3]).applied
    assert len(pull.after_calls) == len(weights(ground))


def test_evaluating_switches_and_restores_the_mode(tmp_path: Path) -> None:
    ground = Ground(tmp_path, tiny.model("gpt2", resid_pdrop=0.5), count=4)
    assert ground.model.training
    batch = ground.batches()[0]
    with ground.engine.evaluating():
        assert not ground.model.training
        one, two = (ground.engine.forward(batch)["next_token"] for _ in range(2))
        assert not one.requires_grad
    assert torch.equal(one, two)
    assert ground.model.training
    assert not torch.equal(ground.engine.forward(batch)["next_token"], ground.engine.forward(batch)["next_token"])
    with pytest.raises(KeyError), ground.engine.evaluating():
        raise KeyError
    assert ground.model.training


def test_state_is_saved_and_read_back_to_the_bit(tmp_path: Path) -> None:
    one = Ground(tmp_path / "a", tiny.model("llama-tied"), count=8)
    for _ in range(2):
        one.gradients()
        one.engine.update([1e-3, 1e-3])
    (tmp_path / "c").mkdir()
    one.engine.capture({"start/x": torch.ones(3)}).write(tmp_path / "c")
    other = Ground(tmp_path / "b", tiny.model("llama-tied", seed=5), count=8)
    extra = other.engine.load(tmp_path / "c")
    assert torch.equal(extra["start/x"], torch.ones(3))
    for ground in (one, other):
        ground.gradients()
        ground.engine.update([1e-3, 1e-3])
    assert all(torch.equal(a, b) for a, b in zip(weights(one).values(), weights(other).values(), strict=True))
    assert other.model.lm_head.weight is other.model.model.embed_tokens.weight


def test_weights_alone_leave_the_optimizer(tmp_path: Path, ground: Ground) -> None:
    (tmp_path / "c").mkdir()
    ground.engine.capture({}).write(tmp_path / "c")
    ground.gradients()
    ground.engine.update([1e-3, 1e-3])
    moments = _moments(ground)
    ground.engine.load(tmp_path / "c", weights_only=True)
    assert all(torch.equal(moments[key], value) for key, value in _moments(ground).items())


def test_weights_of_another_model_are_refused(tmp_path: Path, ground: Ground) -> None:
    (tmp_path / "c").mkdir()
    ground.engine.capture({}).write(tmp_path / "c")
    with pytest.raises(CheckpointError, match="not the model's"):
        Ground(tmp_path / "b", tiny.model("llama"), count=4).engine.load(tmp_path / "c")


def test_full_weights_and_visits_name_every_weight_once(ground: Ground) -> None:
    names = [name for name, _ in ground.engine.full_weights()]
    assert len(names) == len(set(names)) == len(weights(ground))
    seen: list[str] = []
    ground.engine.visit(lambda name, shard: (seen.append(name), shard.zero_())[0])
    assert seen == list(weights(ground))
    assert all((w == 0).all() for w in weights(ground).values())


def test_bf16_keeps_float32_weights_moments_and_losses(tmp_path: Path) -> None:
    ground = Ground(tmp_path, tiny.model("llama"), count=8, precision="bf16-mixed")
    sums = ground.engine.forward(ground.batches()[0])
    assert sums["next_token"].dtype == torch.float32
    ground.gradients()
    ground.engine.update([1e-3, 1e-3])
    assert {p.dtype for p in ground.model.parameters()} == {torch.float32}
    assert {v.dtype for v in _moments(ground).values()} == {torch.float32}


def test_several_processes_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    assert launch.world().size == 1
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    with pytest.raises(RecipeError, match="one of 2 processes"):
        launch.world()


def test_the_machine_is_described() -> None:
    machine = launch.machine()
    assert machine.kind in ("cpu", "cuda")
    assert machine.bytes_per_device > 1 << 28
    assert machine.cores >= 1


def test_numbers_that_an_optimizer_keeps_in_its_groups_are_saved(tmp_path: Path) -> None:
    """As schedule-free optimizers and Prodigy do."""
    one, other = (Ground(tmp_path / name, tiny.model("llama"), count=4) for name in "ab")
    group = one.engine._optimizer.param_groups[1]
    group["k"], group["lr_max"], group["d"] = 7, 0.5, torch.tensor(0.25)
    (tmp_path / "c").mkdir()
    one.engine.capture({}).write(tmp_path / "c")
    other.engine.load(tmp_path / "c")
    found = other.engine._optimizer.param_groups[1]
    assert (found["k"], found["lr_max"], float(found["d"])) == (7, 0.5, 0.25)
    assert found["betas"] == group["betas"]
    assert isinstance(found["betas"], tuple)


def test_bf16_keeps_no_copy_of_the_weights(tmp_path: Path) -> None:
    """A cache of them would cost 2 bytes a parameter until the forward pass ends."""
    ground = Ground(tmp_path, tiny.model("llama"), count=4, precision="bf16-mixed")
    with ground.engine._autocast():
        assert not torch.is_autocast_cache_enabled()
