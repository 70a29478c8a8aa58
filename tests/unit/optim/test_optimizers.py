"""Every optimizer beside its formula, computed in float64, and going on from a checkpoint."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fulltune.base.errors import RecipeError
from fulltune.engine.native import NativeEngine
from fulltune.model import facts
from fulltune.optim.groups import Group, Parting, groups
from fulltune.optim.optimizers import make
from fulltune.planning.memory import forecast
from fulltune.planning.precision import precision_plan
from fulltune.planning.way import Pass, Way
from fulltune.recipe.schema import OptimSection
from tests import tiny
from tests.contract.ground import Ground

RATES = (0.01, 0.03, 0.0, 0.02, 0.01)


def gradient(step: int, shape: tuple[int, ...] = (3, 4)) -> Tensor:
    """Of every size and sign, and exactly 0 here and there."""
    numbers = torch.arange(float(torch.Size(shape).numel())).reshape(shape)
    return torch.sin(numbers * (step + 1)) * torch.cos(numbers) ** 3


def moved(name: str, start: Tensor, **options: Any) -> Tensor:
    """A weight behind updates at RATES with a decay of 0.1, by an entry of the table."""
    weight = nn.Parameter(start.clone())
    split = groups([("w", weight)], Parting(undecayed=(), matrices=("w",)))
    optimizer = make(name, split, lr=1, weight_decay=0.1, options=options)
    for step, rate in enumerate(RATES):
        optimizer.param_groups[0]["lr"] = rate
        weight.grad = gradient(step, tuple(start.shape))
        optimizer.step()
    return weight.detach().double()


START = torch.linspace(-1, 1, 12).reshape(3, 4)


@pytest.mark.parametrize(("seen", "kept"), [(0.9, 0.99), (0.95, 0.98)])
def test_lion_equals_the_formula(seen: float, kept: float) -> None:
    """Chen et al. 2023, algorithm 2: the sign of what one beta makes of the moment, which moves by the other."""
    weight, moment = START.double(), torch.zeros(3, 4).double()
    for step, rate in enumerate(RATES):
        now = gradient(step).double()
        weight = weight - rate * ((seen * moment + (1 - seen) * now).sign() + 0.1 * weight)
        moment = kept * moment + (1 - kept) * now
    options = {} if (seen, kept) == (0.9, 0.99) else {"betas": [seen, kept]}
    assert torch.allclose(moved("lion", START, **options), weight, atol=1e-6)


def test_lion_leaves_alone_what_has_no_gradient_and_treats_each_number_by_itself() -> None:
    whole = moved("lion", START)
    halves = torch.cat([_of_part(slice(0, 2)), _of_part(slice(2, 3))])
    assert torch.equal(halves, whole)
    still = nn.Parameter(torch.ones(3))
    optimizer = make("lion", groups([("w", still)], Parting(undecayed=())), lr=1, weight_decay=0.1, options={})
    optimizer.step()
    assert torch.equal(still, torch.ones(3)) and not optimizer.state


def _of_part(rows: slice) -> Tensor:
    weight = nn.Parameter(START[rows].clone())
    optimizer = make("lion", [Group(("w",), (weight,), 1.0, 1.0)], lr=1, weight_decay=0.1, options={})
    for step, rate in enumerate(RATES):
        optimizer.param_groups[0]["lr"] = rate
        weight.grad = gradient(step)[rows]
        optimizer.step()
    return weight.detach().double()


@pytest.mark.parametrize("options", [{}, {"beta2_decay": -0.5, "d": 2.0, "eps": [1e-4, 0.5]}])
@pytest.mark.parametrize("shape", [(3, 4), (12,)])
def test_adafactor_equals_the_formula(shape: tuple[int, ...], options: dict[str, Any]) -> None:
    """Shazeer and Stern 2018, algorithms 4 to 6: steps are relative to the weight, and capped by the rate."""
    start = START.reshape(shape) if options else 30 * START.reshape(shape)
    power, most, (tiny_root, least) = (
        options.get("beta2_decay", -0.8), options.get("d", 1.0), options.get("eps", (2.0**-23, 1e-3))
    )  # fmt: skip
    weight, rows, columns, whole = start.double(), torch.zeros(3, 1).double(), torch.zeros(1, 4).double(), 0.0
    for step, rate in enumerate(RATES):
        now, share = gradient(step, shape).double(), float(step + 1) ** power
        size = max(least, float(weight.square().mean().sqrt())) * min(rate, (step + 1) ** -0.5)
        if len(shape) == 2:
            rows = (1 - share) * rows + share * now.square().mean(1, keepdim=True)
            columns = (1 - share) * columns + share * now.square().mean(0, keepdim=True)
            second = rows @ columns / rows.mean()
        else:
            second = whole = (1 - share) * whole + share * now.square()
        update = now / second.clamp(min=tiny_root**2).sqrt()
        update = update / max(1.0, float(update.square().mean().sqrt()) / most)
        weight = (1 - 0.1 * rate) * weight - size * update
    assert torch.allclose(moved("adafactor", start, **options), weight, rtol=1e-5, atol=1e-6)


def test_adafactor_keeps_rows_and_columns() -> None:
    """What the plan says it keeps at most: of matrices of 80 rows and columns or more."""
    made = precision_plan("float32", OptimSection(name="adafactor"), several=False)
    assert (made.bytes["moments"], made.beside) == (0, 0.1)
    assert made.rows()["moments"] == "float32, 0 to 0.1 bytes"
    for rows, columns in ((80, 80), (320, 100)):
        weight = nn.Parameter(torch.ones(rows, columns))
        optimizer = make("adafactor", groups([("w", weight)], Parting(undecayed=())), lr=1, weight_decay=0, options={})
        weight.grad = torch.ones_like(weight)
        optimizer.step()
        kept = sum(value.nbytes for value in optimizer.state[weight].values() if value.ndim)
        assert kept == 4 * (rows + columns) <= made.beside * weight.numel()


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_sgd_equals_the_formula(momentum: float) -> None:
    """Its decay is the coupled one: part of the gradient."""
    weight, moment = START.double(), torch.zeros(3, 4).double()
    for step, rate in enumerate(RATES):
        moment = momentum * moment + gradient(step).double() + 0.1 * weight
        weight = weight - rate * moment
    assert torch.allclose(moved("sgd", START, momentum=momentum), weight, atol=1e-6)


def orthogonal(matrix: Tensor) -> Tensor:
    """Newton-Schulz of the fifth order, five times, with the authors' coefficients; in float64."""
    tall = matrix.shape[0] > matrix.shape[1]
    x = (matrix.T if tall else matrix) / matrix.norm()
    for _ in range(5):
        square = x @ x.T
        x = 3.4445 * x + (-4.7750 * square + 2.0315 * square @ square) @ x
    return x.T if tall else x


@pytest.mark.parametrize("shape", [(3, 4), (4, 3)])
@pytest.mark.parametrize("options", [{}, {"momentum": 0.8, "nesterov": False, "adjust_lr_fn": "original"}])
def test_muon_equals_the_formula(shape: tuple[int, int], options: dict[str, Any]) -> None:
    """Jordan et al. 2024, as large as AdamW's updates are (Liu et al. 2025); torch iterates in bfloat16."""
    weight, moment = START.reshape(shape).double(), torch.zeros(shape).double()
    kept, nesterov = options.get("momentum", 0.95), options.get("nesterov", True)
    large = (max(1, shape[0] / shape[1])) ** 0.5 if options else 0.2 * max(shape) ** 0.5
    for step, rate in enumerate(RATES):
        now = gradient(step, shape).double()
        moment = kept * moment + (1 - kept) * now
        seen = (1 - kept) * now + kept * moment if nesterov else moment
        weight = (1 - 0.1 * rate) * weight - rate * large * orthogonal(seen)
    found = moved("muon", START.reshape(shape), **options)
    assert torch.allclose(found, weight, atol=2e-2 * sum(RATES) * large)
    assert not torch.allclose(found, START.reshape(shape).double(), atol=2e-1 * sum(RATES) * large), (
        "it is small beside"
    )


def test_muon_moves_matrices_of_blocks_and_adamw_all_else() -> None:
    """Beside torch's two on the same gradients; the head is tied to the embedding, and the last layer is frozen."""
    model, plain = tiny.model("llama-tied"), tiny.model("llama-tied")
    by = Parting(undecayed=facts.undecayed(model), matrices=facts.matrices(model), freeze=(r"layers\.1\.",))
    made = make("muon", groups(model.named_parameters(), by), lr=1, weight_decay=0.1, options={"betas": [0.8, 0.9]})
    split = [group["params"] for group in made.param_groups]
    assert len(split) == 3, "decayed, spared and frozen"
    both = {name: parameter for name, parameter in plain.named_parameters() if "layers.1." not in name}
    matrices = [parameter for name, parameter in both.items() if name in by.matrices]
    decays = [{"params": [p for n, p in both.items() if n not in by.matrices and (n in by.undecayed) is spared],
               "weight_decay": 0.0 if spared else 0.1} for spared in (False, True)]  # fmt: skip
    alone = [
        torch.optim.Muon(matrices, weight_decay=0.1, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW([group for group in decays if group["params"]], betas=(0.8, 0.9), fused=True),
    ]
    assert len(matrices) == 7 and "model.embed_tokens.weight" not in by.matrices
    for step, rate in enumerate(RATES):
        for number, ours in enumerate(zip(model.parameters(), plain.parameters(), strict=True)):
            for parameter in ours:
                parameter.grad = gradient(step + number, tuple(parameter.shape))
        for group in made.param_groups:
            group["lr"] = rate
        for name, parameter in model.named_parameters():
            if "layers.1." in name:
                parameter.grad = None  # as the engine does where the rate is 0
        made.step()
        for each in alone:
            for group in each.param_groups:
                group["lr"] = rate
            each.step()
    for (name, found), wanted in zip(model.named_parameters(), plain.parameters(), strict=True):
        assert torch.equal(found, wanted), name
    kept = {len([v for v in made.state[p].values() if v.ndim]) for p in model.parameters() if p in made.state}
    assert kept == {1, 2}


def test_muon_without_a_matrix_and_options_that_nobody_takes_are_refused() -> None:
    split = groups([("w", nn.Parameter(torch.ones(3, 4)))], Parting(undecayed=(), matrices=()))
    with pytest.raises(RecipeError, match="no matrix inside of a block"):
        make("muon", split, lr=1, weight_decay=0.1, options={})
    for options in ({"amsgrad": True}, {"adjust_lr_fn": "none"}):
        with pytest.raises(RecipeError, match=r"optim\.options"):
            moved("muon", START, **options)


def test_the_forecast_of_what_muon_keeps_is_what_it_keeps(tmp_path: Path) -> None:
    ground = Ground(tmp_path, tiny.model("llama"), count=4, optimizer="muon")
    model = facts.facts(ground.model, ground.model.config, None)
    dtypes = precision_plan("float32", OptimSection(name="muon"), several=False)
    assert dtypes.rows()["moments"] == "float32, 4 to 8 bytes"
    way = Way(engine="single", processes=1, dtypes=dtypes, kind="cpu")
    made = forecast(way, model, Pass(rows=1, width=8, taught=8, several=False))
    ground.backward()
    ground.engine.update([1e-3, 1e-3])
    held = sum(v.nbytes for state in ground.engine._optimizer.state.values() for v in state.values() if v.ndim)
    assert [(part.low, part.high) for part in made.parts if part.name == "moments"] == [(held, held)]
    assert 4 * model.parameters < held < 8 * model.parameters


@pytest.mark.parametrize("betas", [[0.9], [0.9, 1.0], [-0.1, 0.9]])
def test_betas_that_are_none_are_refused(betas: list[float]) -> None:
    with pytest.raises(RecipeError, match="betas are two numbers"):
        moved("lion", START, betas=betas)


def learn(ground: Ground, updates: range) -> list[float]:
    losses = []
    for update in updates:
        torch.manual_seed(update)
        losses.append(ground.backward())
        rates = [1e-2, 0.0 if update == 1 else 1e-2]  # norms and embeddings rest for one update
        ground.engine.update(rates)
    return losses


def state(engine: NativeEngine) -> dict[str, Tensor]:
    found = {name: parameter.detach().clone() for parameter, name in engine._names.items()}
    for parameter, name in engine._names.items():
        kept = engine._optimizer.state.get(parameter, {})
        found |= {f"{name}/{key}": torch.as_tensor(value).clone() for key, value in kept.items()}
    return found


MODES = ("float32 float32", "bf16-sr float32", "bf16-sr bfloat16")
GOING_ON = [(name, mode) for name in ("lion", "adafactor", "muon", "apollo", "apollo_mini") for mode in MODES]


@pytest.mark.parametrize(("name", "mode"), [*GOING_ON, ("galore", "float32 float32")])
def test_what_goes_on_from_a_checkpoint_ends_with_the_same_bits(tmp_path: Path, name: str, mode: str) -> None:
    precision, moments = mode.split()

    def made(place: str) -> Ground:
        given: dict[str, Any] = {"optimizer": name, "precision": precision, "moments": moments, "clip": 1.0}
        return Ground(tmp_path / place, tiny.model("llama-tied"), count=4, **given)

    whole, first, second = made("whole"), made("first"), made("second")
    losses = learn(whole, range(4))
    assert losses[-1] < losses[0] - 0.03, "it learns"
    before = learn(first, range(2))
    (tmp_path / "c").mkdir()
    first.engine.capture({}).write(tmp_path / "c")
    second.engine.load(tmp_path / "c")
    assert before + learn(second, range(2, 4)) == losses
    wanted, found = state(whole.engine), state(second.engine)
    assert wanted.keys() == found.keys() and len(wanted) > len(list(whole.model.parameters()))
    assert all(torch.equal(value, found[key]) for key, value in wanted.items())


@pytest.mark.parametrize("name", ["lion", "adafactor", "muon", "apollo", "galore"])
def test_a_rehearsal_moves_nothing(tmp_path: Path, name: str) -> None:
    """A step at rate 0 by gradients of 0, before there is a moment; nothing of it may stay."""
    ground = Ground(tmp_path, tiny.model("llama-tied"), count=4, optimizer=name)
    before = state(ground.engine)
    with ground.engine.rehearsing():
        held = state(ground.engine)
    assert len(held) > len(before), "moments are there meanwhile"
    after = state(ground.engine)
    assert before.keys() == after.keys()
    assert all(torch.equal(value, after[key]) and torch.equal(value, held[key]) for key, value in before.items())
