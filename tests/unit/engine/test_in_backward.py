"""The optimizer in the backward pass: the same updates, and never more than one gradient."""

import math
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fulltune.base.errors import MachineError
from fulltune.base.records import Progress
from fulltune.engine.in_backward import InBackward
from fulltune.engine.native import NativeEngine
from fulltune.engine.rounded import RoundedWeights
from fulltune.engine.single import Single
from fulltune.model.facts import checkpoint_blocks
from fulltune.model.tiled import tile_mlps
from fulltune.optim.pulls import EWC
from fulltune.training.fisher import estimate
from fulltune.training.step import step
from tests import tiny
from tests.contract.ground import CPU, Ground
from tests.contract.updates import Updates

WAYS = {"off": None, "two_passes": True, "one_pass": False}
RATES = ([1e-2, 3e-3], [1e-2, 0.0], [1e-2, 3e-3])
"""Norms and embeddings rest for one update."""


def engine(way: str, model: Any, objective: Any, make_optimizer: Any, **named: Any) -> NativeEngine:
    if WAYS[way] is None:
        return NativeEngine(model, objective, make_optimizer, Single(CPU), **named)
    return InBackward(model, objective, make_optimizer, Single(CPU), two_passes=WAYS[way], **named)


def made(folder: Path, way: str, model: Any = None, *, clip: float | None = None, **named: Any) -> Ground:
    pulls = named.pop("pulls", ())
    maker = partial(engine, way, clip=clip, pulls=pulls)
    return Ground(folder / way, model or tiny.model("llama-tied"), count=8, micro=8, make_engine=maker, **named)


def learned(ground: Ground) -> list[tuple[float, float, bool]]:
    """Loss, norm, and whether weights moved, of some updates; seeded as the loop seeds them."""
    found = []
    for number, rates in enumerate(RATES):
        torch.manual_seed(number)
        outcome = step(ground.batches(), rates, engine=ground.engine, objective=ground.objective)
        found.append((outcome.loss, outcome.grad_norm, outcome.applied))
    return found


def state(ground: Ground) -> dict[str, Tensor]:
    found = {name: weight.detach().clone() for name, weight in ground.model.named_parameters()}
    for shard, name in ground.engine._names.items():
        found |= {f"{name}/{key}": value.clone() for key, value in ground.engine._optimizer.state[shard].items()}
    return found


def same(one: Ground, other: Ground) -> bool:
    ours, theirs = state(one), state(other)
    return ours.keys() == theirs.keys() and all(torch.equal(value, theirs[key]) for key, value in ours.items())


CASES: dict[str, dict[str, Any]] = {
    "adamw": {},
    "clipped": {"clip": 0.05},
    "muon": {"optimizer": "muon", "clip": 0.05},
    "adafactor": {"optimizer": "adafactor"},
    "bf16-mixed": {"precision": "bf16-mixed", "clip": 0.05},
    "own forward": {"cut": False},
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("way", ["two_passes", "one_pass"])
def test_landmine_A10_weights_moved_in_the_backward_pass_are_those_moved_behind_it(
    tmp_path: Path, way: str, case: str
) -> None:
    """To the bit: losses, norms, weights and moments; the loss is a mean before any gradient of it is made."""
    named = CASES[case] | ({"clip": None} if way == "one_pass" else {})
    plain, ours = (made(tmp_path, one, **named) for one in ("off", way))
    wanted, found = learned(plain), learned(ours)
    assert found == wanted and all(applied for *_, applied in found)
    assert found[-1][0] < found[0][0], "it learns"
    assert same(plain, ours)


@pytest.mark.parametrize("dropped", [False, True])
@pytest.mark.parametrize("selective", [False, True])
def test_the_second_pass_draws_as_the_first_and_blocks_are_made_again_in_both(
    tmp_path: Path, dropped: bool, selective: bool
) -> None:
    grounds = []
    for way in ("off", "two_passes"):
        model = tiny.model("gpt2", resid_pdrop=0.5 if dropped else 0.0, embd_pdrop=0.3 if dropped else 0.0)
        checkpoint_blocks(model, keep_products=selective)
        grounds.append(made(tmp_path, way, model, clip=0.05))
    assert learned(grounds[0]) == learned(grounds[1]) and same(*grounds)


def test_the_gradient_of_an_mlp_is_whole_behind_its_last_tile(tmp_path: Path) -> None:
    grounds = []
    for way in ("off", "one_pass"):
        model = tiny.model("llama-tied")
        tile_mlps(model, 16)
        grounds.append(made(tmp_path, way, model))
    assert learned(grounds[0]) == learned(grounds[1]) and same(*grounds)


def test_the_update_leaves_the_generators_as_it_found_them(tmp_path: Path) -> None:
    draws = []
    for way in ("off", "two_passes"):
        ground = made(tmp_path, way, tiny.model("gpt2", resid_pdrop=0.5))
        learned(ground)
        draws.append(torch.rand(3))
    assert torch.equal(*draws)


@pytest.mark.parametrize("way", ["two_passes", "one_pass"])
def test_there_is_never_more_than_one_gradient(tmp_path: Path, way: str) -> None:
    """Asked whenever a weight's gradient has come: of all weights together."""
    counts: list[int] = []
    ground = made(tmp_path, way, tiny.model("llama"))

    def look(_: Any) -> None:
        counts.append(sum(weight.grad is not None for weight in ground.model.parameters()))

    for weight in ground.model.parameters():
        weight.register_post_accumulate_grad_hook(look)
    with ground.engine.rehearsing():
        step(ground.batches(), RATES[0], engine=ground.engine, objective=ground.objective)
    learned(ground)
    assert len(counts) >= 3 * len(list(ground.model.parameters())) and set(counts) == {0}, "they are gone by then"


@pytest.mark.parametrize("name", ["model.embed_tokens.weight", "model.layers.0.mlp.up_proj.weight", "lm_head.weight"])
def test_a_gradient_that_is_not_finite_moves_nothing_with_two_passes(tmp_path: Path, name: str) -> None:
    """The loss is finite, so it is the gradient alone that tells."""
    ground = made(tmp_path, "two_passes", tiny.model("llama"), clip=1.0)
    learned(ground)
    before = state(ground)
    handle = ground.model.get_parameter(name).register_hook(lambda gradient: gradient * math.nan)
    outcome = step(ground.batches(), RATES[0], engine=ground.engine, objective=ground.objective)
    assert math.isfinite(outcome.loss) and not outcome.applied and math.isnan(outcome.grad_norm)
    assert outcome.why == "loss or gradient not finite" and outcome.suspects
    after = state(ground)
    assert all(torch.equal(value, after[key]) for key, value in before.items())
    handle.remove()
    assert step(ground.batches(), RATES[0], engine=ground.engine, objective=ground.objective).applied


def test_in_one_pass_the_run_goes_back_to_the_last_checkpoint(tmp_path: Path) -> None:
    """Weights behind the bad gradient have moved by then: half an update, which nobody may go on from."""
    given = {"make_engine": partial(engine, "one_pass", clip=None)}
    bed = Updates(tmp_path, ground=given, on_nonfinite="rollback")
    progress = bed.make(2)
    bed.save(progress)
    saved = bed.state()
    model = bed.ground.model
    first = model.get_parameter("model.layers.0.mlp.up_proj.weight")
    last = {n: w.detach().clone() for n, w in model.named_parameters()}
    handle = first.register_hook(lambda gradient: gradient * math.inf)
    torn: dict[str, bool] = {}
    back = bed.update.back

    def look(now: Progress) -> Progress:
        torn.update({n: not torch.equal(w, last[n]) for n, w in model.named_parameters()})
        return back(now)

    object.__setattr__(bed.update, "back", look)
    after = bed.update(progress)
    handle.remove()
    assert torn["lm_head.weight"] and not torn["model.embed_tokens.weight"], "half of it was made"
    found = bed.state()
    assert all(torch.equal(value, found[key]) for key, value in saved.items())
    assert (after.update, after.rollbacks, after.position) == (progress.update, 1, progress.position + 4)
    assert bed.make(1, after).update == progress.update + 1


def test_a_loss_that_is_not_finite_or_leaps_is_refused_before_any_weight_moves(tmp_path: Path) -> None:
    ground = made(tmp_path, "one_pass")
    learned(ground)
    before = state(ground)
    named: Any = {"engine": ground.engine, "objective": ground.objective}
    assert step(ground.batches(), RATES[0], refused=lambda _: True, **named).why == "loss spike"
    handle = ground.objective.register_forward_hook(lambda *given: {t: v * math.nan for t, v in given[2].items()})
    assert step(ground.batches(), RATES[0], **named).why == "loss or gradient not finite"
    handle.remove()
    after = state(ground)
    assert all(torch.equal(value, after[key]) for key, value in before.items())


@pytest.mark.parametrize("moments", ["float32", "int8"])
def test_bf16_weights_are_rounded_by_draws_of_their_own(
    tmp_path: Path, moments: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rounded to the nearest they are those moved behind the pass; drawn, each weight has draws that no other has."""
    named: dict[str, Any] = {"precision": "bf16-sr", "moments": "float32", "clip": 0.05}
    with monkeypatch.context() as patched:
        patched.setattr("fulltune.engine.rounded.stochastic", lambda value, _: value.to(torch.bfloat16))
        plain, ours = (made(tmp_path / "nearest", way, **named) for way in ("off", "two_passes"))
        assert learned(plain) == learned(ours) and same(plain, ours)
    one, again = (made(tmp_path / str(n), "two_passes", **named | {"moments": moments}) for n in range(2))
    assert learned(one) == learned(again) and same(one, again), "and they are the same each time"
    weights = one.engine._weights
    assert isinstance(weights, RoundedWeights)
    draws = []
    monkeypatch.setattr(
        "fulltune.engine.rounded.stochastic", lambda v, g: draws.append(torch.rand(1, generator=g)) or v
    )
    learned(one)
    assert len(set(map(float, draws[:9]))) == 9


@pytest.mark.parametrize("way", ["two_passes", "one_pass"])
def test_pulls_add_to_gradients_and_act_behind_each_move(tmp_path: Path, way: str) -> None:
    class Both:
        on_gradients = True

        def before(self, name: str, shard: Tensor, grad: Tensor) -> None:
            grad.add_(shard, alpha=0.1)

        def after(self, name: str, shard: Tensor, lr: float) -> None:
            shard.mul_(1 - lr)

    plain, ours = (made(tmp_path, one, pulls=[Both()]) for one in ("off", way))
    assert learned(plain) == learned(ours) and same(plain, ours)


@pytest.mark.parametrize("way", ["two_passes", "one_pass"])
def test_fisher_information_is_that_of_whole_gradients(tmp_path: Path, way: str) -> None:
    found = []
    for one in ("off", way):
        pull = EWC(strength=1.0)
        ground = made(tmp_path, one, pulls=[pull])
        ground.engine.visit(pull.begin)
        found.append(estimate(ground.engine, ground.objective, [ground.batches([n])[0] for n in range(3)]))
    assert found[0].keys() == found[1].keys() and len(found[0]) > 9
    assert all(torch.equal(value, found[1][name]) for name, value in found[0].items())


@pytest.mark.parametrize("way", ["two_passes", "one_pass"])
def test_a_rehearsal_makes_the_backward_pass_and_moves_nothing(tmp_path: Path, way: str) -> None:
    given = {"make_engine": partial(engine, way, clip=None)}
    bed = Updates(tmp_path, ground=given)
    before = bed.state()
    passed: list[nn.Parameter] = []
    for weight in bed.ground.model.parameters():
        weight.register_post_accumulate_grad_hook(passed.append)
    bed.update.rehearse(Progress())
    after = bed.state()
    assert before.keys() == after.keys() and all(torch.equal(value, after[key]) for key, value in before.items())
    assert len(passed) >= len(list(bed.ground.model.parameters()))


def test_where_it_does_not_fit_no_smaller_micro_batches_are_tried(tmp_path: Path) -> None:
    given = {"make_engine": partial(engine, "two_passes", clip=None)}
    bed = Updates(tmp_path, ground=given)
    bed.fill(lambda batch: len(batch.examples) < 3)
    with pytest.raises(MachineError, match="one micro-batch, and it does not fit"):
        bed.update.rehearse(Progress())


@pytest.mark.parametrize("way", ["two_passes", "one_pass"])
def test_what_goes_on_from_a_checkpoint_ends_with_the_same_bits(tmp_path: Path, way: str) -> None:
    whole, first, second = (made(tmp_path / name, way, tiny.model("llama")) for name in ("w", "a", "b"))
    (tmp_path / "c").mkdir()
    learned(whole), learned(first)
    first.engine.capture({}).write(tmp_path / "c")
    second.engine.load(tmp_path / "c")
    assert learned(whole) == learned(second) and same(whole, second)
