"""Schedule-free AdamW: beside its formula and its authors' code; what is measured and written is the average."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

import fulltune
from fulltune.base.errors import RecipeError
from fulltune.engine.crew import Alone
from fulltune.engine.in_backward import InBackward
from fulltune.engine.native import NativeEngine
from fulltune.engine.single import Single
from fulltune.optim.groups import Parting, groups
from fulltune.optim.optimizers import make
from fulltune.optim.pulls import ScheduleFreeAverage
from fulltune.planning.make import require_names
from fulltune.planning.precision import precision_plan
from fulltune.recipe.load import load_recipe
from fulltune.recipe.schema import OptimSection
from fulltune.training.pulling import Pulling
from tests import tiny
from tests.contract.ground import CPU, Ground
from tests.unit.optim.test_optimizers import START, gradient

NAME = "schedule_free_adamw"
RATES = (0.002, 0.006, 0.01, 0.01, 0.01, 0.01, 0.01, 0.01)
"""A warm-up, then constant."""
THEIRS = {
    (0.9, 0.999): (-0.9959287, -0.8121949, -0.6356897, -0.4519624, -0.272003, -0.0941835),
    (0.95, 0.98): (-0.9959286, -0.8121857, -0.6357413, -0.4519601, -0.2720143, -0.0941909),
}
"""The first numbers of the average by `AdamWScheduleFree` of schedulefree 1.4.1, in float64, on the same gradients."""


def moved(dtype: torch.dtype, betas: tuple[float, float]) -> tuple[Tensor, Tensor]:
    """The weight y and its average x behind updates at RATES, with a decay of 0.1."""
    weight, average = nn.Parameter(START.clone().to(dtype)), ScheduleFreeAverage()
    options = {"average": average, "betas": betas}
    made = make(NAME, groups([("w", weight)], Parting(undecayed=())), lr=1, weight_decay=0.1, options=options)
    for step, rate in enumerate(RATES):
        made.param_groups[0]["lr"] = rate
        weight.grad = gradient(step).to(dtype)
        made.step()
    return weight.detach(), average.kept["w/average"]


@pytest.mark.parametrize("betas", THEIRS)
def test_it_equals_the_formula_and_what_its_authors_code_gave(betas: tuple[float, float]) -> None:
    """Algorithm 1 with z written out, which is not kept here."""
    z = x = y = START.double()
    second, total = torch.zeros(3, 4).double(), 0.0
    for step, rate in enumerate(RATES):
        now = gradient(step).double()
        second = betas[1] * second + (1 - betas[1]) * now**2
        ahead = now / ((second / (1 - betas[1] ** (step + 1))).sqrt() + 1e-8) + 0.1 * y
        total += rate**2
        z = z - rate * ahead
        x = (1 - rate**2 / total) * x + rate**2 / total * z
        y = (1 - betas[0]) * z + betas[0] * x
    exact, single = moved(torch.float64, betas), moved(torch.float32, betas)
    assert torch.allclose(exact[0], y, rtol=0, atol=1e-13) and torch.allclose(exact[1], x, rtol=0, atol=1e-13)
    assert torch.allclose(single[0].double(), y, rtol=0, atol=2e-6)
    assert torch.allclose(single[1].double(), x, rtol=0, atol=2e-6)
    assert exact[1].flatten()[:6].tolist() == pytest.approx(THEIRS[betas], abs=1e-7)
    assert (x - y).abs().max() > 1e-3, "they differ"


@pytest.mark.parametrize("betas", [[0.9], [0.0, 0.9], [0.9, 1.0]])
def test_betas_that_are_none_are_refused(betas: list[float]) -> None:
    weight = nn.Parameter(START.clone())
    with pytest.raises(RecipeError, match="betas are two numbers"):
        make(NAME, groups([("w", weight)], Parting(undecayed=())), lr=1, weight_decay=0, options={"betas": betas})


class Bed:
    """An engine that keeps its average as a run does."""

    def __init__(self, folder: Path, average: ScheduleFreeAverage | None = None) -> None:
        self.average = ScheduleFreeAverage() if average is None else average

        def engine(model: Any, objective: Any, make_optimizer: Any, **named: Any) -> NativeEngine:
            def ours(parameters: Any) -> Any:
                split = groups(parameters, Parting(undecayed=()))
                return make(NAME, split, lr=1, weight_decay=0.01, options={"average": self.average})

            return NativeEngine(model, objective, ours, Single(CPU), clip=1.0, pulls=[self.average], **named)

        self.ground = Ground(folder, tiny.model("llama-tied"), count=4, make_engine=engine)
        self.engine = self.ground.engine
        self.pulling = Pulling(
            pulls={NAME: self.average}, engine=self.engine, crew=Alone(), files={}, file=folder, estimate=lambda _: {}
        )

    def learn(self, updates: range) -> list[float]:
        losses = []
        for update in updates:
            torch.manual_seed(update)
            losses.append(self.ground.backward())
            self.engine.update([1e-2])
        return losses

    def weights(self) -> dict[str, Tensor]:
        return {name: weight.detach().clone() for name, weight in self.ground.model.named_parameters()}


def test_it_goes_on_with_the_same_bits_and_a_look_at_the_average_changes_nothing(tmp_path: Path) -> None:
    whole, first, second = (Bed(tmp_path / name) for name in ("whole", "first", "second"))
    whole.pulling.begin()
    losses = whole.learn(range(5))
    first.pulling.begin()
    before = first.learn(range(3))
    kept = first.weights()
    seen = first.pulling.instead(first.weights)
    assert all(torch.equal(kept[name], value) for name, value in first.weights().items())
    assert all(torch.equal(first.average.kept[f"{name}/average"], value) for name, value in seen.items())
    assert any((kept[name] - value).abs().max() > 1e-3 for name, value in seen.items())
    (tmp_path / "c").mkdir()
    first.engine.capture(first.pulling.remembered()).write(tmp_path / "c")
    second.pulling.recall(second.engine.load(tmp_path / "c"))
    assert before + second.learn(range(3, 5)) == losses
    for one, other in ((whole.weights(), second.weights()), (whole.average.kept, second.average.kept)):
        assert one.keys() == other.keys() and all(torch.equal(value, other[key]) for key, value in one.items())


def test_two_tensors_stand_beside_the_weights_and_the_plan_says_so(tmp_path: Path) -> None:
    made = precision_plan("float32", OptimSection(name=NAME, schedule="constant"), several=False)
    bed = Bed(tmp_path)
    bed.pulling.begin()
    bed.learn(range(1))
    size = sum(weight.nbytes for weight in bed.ground.model.parameters())
    state = [value for each in bed.engine._optimizer.state.values() for value in each.values()]
    assert sum(value.nbytes for value in state if isinstance(value, Tensor)) == size
    assert sum(value.nbytes for value in bed.average.kept.values()) == size
    assert (made.bytes["moments"], made.bytes["pulls"]) == (4, 4)


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "schedule": ({"optim": {"name": NAME}}, "stays where it is"),
    "ema": ({"optim": {"name": NAME, "schedule": "constant", "pulls": "ema"}}, "makes another model of them"),
    "bf16-sr": ({"optim": {"name": NAME, "schedule": "constant"}, "train": {"precision": "bf16-sr"}}, "rounds it"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_does_not_go_with_it_is_refused(case: str) -> None:
    sections, why = REFUSED[case]
    with pytest.raises(RecipeError, match=why):
        require_names(load_recipe({"model": {"path": "x"}, "data": {"train": "a"}, **sections}))
    require_names(load_recipe({"model": {"path": "x"}, "data": {"train": "a"},
                               "optim": {"name": NAME, "schedule": "constant", "pulls": []}}))  # fmt: skip


def test_the_result_of_a_run_is_the_average_and_so_is_what_is_measured(
    tmp_path: Path, llama: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights are moved in the backward pass besides: both by their settings alone."""
    moved_so: list[Any] = []
    update = InBackward.update
    monkeypatch.setattr(InBackward, "update", lambda self, rates: moved_so.append(rates) or update(self, rates))
    optim = {"name": NAME, "schedule": "constant", "warmup": 2, "lr": 1e-2, "in_backward": "two_passes"}
    asked = tiny.recipe(llama, data, optim=optim, checkpoint={"best_by": "heldout.loss"}, evaluate={"samples": 0})
    record = fulltune.train(asked, out=tmp_path / "run")
    assert len(moved_so) == 6
    checkpoint = tmp_path / f"run/checkpoints/step-{record.result_step:08d}"
    name = "model.layers.0.mlp.up_proj.weight"
    average = load_file(checkpoint / "extra.safetensors")[f"{name}/{NAME}.average"]
    assert torch.equal(load_file(tmp_path / "run/model/model.safetensors")[name], average)
    assert not torch.equal(load_file(checkpoint / "weights.safetensors")[name], average)
    told = next(one.scores for one in record.evaluations if one.step == record.result_step)
    found = fulltune.evaluate(tmp_path / "run")["result"].scores
    assert found["heldout.loss"] == pytest.approx(told["heldout.loss"], abs=1e-5)
