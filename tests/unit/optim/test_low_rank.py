"""GaLore and APOLLO: beside their formulas and their authors' code, and what they keep."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fulltune.base.errors import RecipeError
from fulltune.engine.state import flatten, restore
from fulltune.model import facts
from fulltune.optim.groups import Parting, groups
from fulltune.optim.low_rank import Apollo, LowRankAdamW
from fulltune.optim.optimizers import make
from fulltune.planning.make import require_names
from fulltune.planning.memory import forecast
from fulltune.planning.precision import precision_plan
from fulltune.planning.way import Pass, Way
from fulltune.recipe.load import load_recipe
from fulltune.recipe.schema import OptimSection
from tests import tiny
from tests.contract.ground import Ground
from tests.unit.optim.test_optimizers import gradient

RATES = (0.01, 0.03, 0.02, 0.01, 0.01)
OPTIONS: dict[str, dict[str, Any]] = {
    "galore": {"rank": 2, "gap": 2},
    "apollo": {"rank": 2, "gap": 2, "scale": 4.0},
    "apollo_mini": {"gap": 2},
}
THEIRS = {
    ("galore", (3, 5)): (-0.9989878, -0.8647761, -0.7180362, -0.5654784),
    ("galore", (5, 3)): (-0.9915917, -0.8669391, -0.7091871, -0.5733187),
    ("apollo", (3, 5)): (-1.0, -0.8814138, -0.7157474, -0.5348705),
    ("apollo", (5, 3)): (-1.0, -0.9120833, -0.7302974, -0.5705706),
    ("apollo_mini", (3, 5)): (-1.0, -0.9406461, -0.7176844, -0.5495496),
    ("apollo_mini", (5, 3)): (-1.0, -0.905011, -0.7162744, -0.5572552),
}
"""The first numbers of the weight by galore-torch 1.0 and apollo-torch 1.0.3 in float64 on the same gradients without
decay. To APOLLO's its projections were given, since it draws them by other seeds.
"""


def start(shape: tuple[int, ...]) -> Tensor:
    return torch.linspace(-1, 1, math.prod(shape)).reshape(shape).double()


def made(name: str, weight: nn.Parameter, decay: float, **options: Any) -> Any:
    split = groups([("w", weight)], Parting(undecayed=(), matrices=("w",)))
    return make(name, split, lr=1, weight_decay=decay, options={**OPTIONS[name], **options})


def learn(optimizer: Any, weight: nn.Parameter, steps: range = range(5)) -> Tensor:
    for step in steps:
        optimizer.param_groups[0]["lr"] = RATES[step]
        weight.grad = gradient(step, tuple(weight.shape)).to(weight.dtype)
        optimizer.step()
    return weight.detach()


@pytest.mark.parametrize(("name", "shape"), THEIRS)
def test_it_gives_what_its_authors_code_gave(name: str, shape: tuple[int, int]) -> None:
    for dtype in (torch.float64, torch.float32):
        weight = nn.Parameter(start(shape).to(dtype))
        found = learn(made(name, weight, 0.0), weight).flatten()[:4].tolist()
        assert found == pytest.approx(THEIRS[name, shape], abs=3e-7)


@pytest.mark.parametrize("decay", [0.0, 0.1])
@pytest.mark.parametrize(("name", "shape"), THEIRS)
def test_it_equals_the_formula(name: str, shape: tuple[int, int], decay: float) -> None:
    weight = nn.Parameter(start(shape))
    optimizer = made(name, weight, decay)
    found, wide, rank = learn(optimizer, weight), shape[0] < shape[1], 1 if name == "apollo_mini" else 2
    value, first, second, last = start(shape), 0.0, 0.0, 0.0
    for step, rate in enumerate(RATES):
        g = gradient(step, shape).double()
        tall = g if wide else g.T  # so that the shorter side comes first
        if step % 2 == 0:
            drawn = optimizer._drawn(weight, step // 2, 3) if isinstance(optimizer, Apollo) else None
            left, _, right = torch.linalg.svd(g)  # of the gradient as it is: signs are arbitrary, and moments go on
            vectors = left[:, :rank] if wide else right[:rank].T
            projection = vectors if drawn is None else drawn
        r = projection.T @ tall
        first, second = 0.9 * first + 0.1 * r, 0.999 * second + 0.001 * r**2
        moved = first / (second.sqrt() + 1e-6)
        corrected = math.sqrt(1 - 0.999 ** (step + 1)) / (1 - 0.9 ** (step + 1))
        if name == "galore":
            direction = 0.25 * projection @ moved
        else:
            side = None if name == "apollo_mini" else 0
            longer = torch.linalg.vector_norm(moved, dim=side) / (torch.linalg.vector_norm(r, dim=side) + 1e-8)
            direction = tall * longer
            length = float(direction.norm())
            allowed = min(length, 1.01 * (last + 1e-8)) if last else length
            direction, last = direction * allowed / length, allowed
            direction = direction * math.sqrt(optimizer._scale)
        value = (1 - rate * decay) * value - rate * corrected * (direction if wide else direction.T)
    assert torch.allclose(found, value, rtol=0, atol=1e-9)


@pytest.mark.parametrize("name", OPTIONS)
def test_it_goes_on_with_the_same_bits_where_the_projection_has_changed(name: str) -> None:
    whole, first, second = (nn.Parameter(start((3, 5)).float()) for _ in range(3))
    learn(made(name, whole, 0.1), whole)
    before = made(name, first, 0.1)
    learn(before, first, range(3))
    after = made(name, second, 0.1)
    restore(after, {second: "w"}, *flatten(before, {first: "w"}))
    with torch.no_grad():
        second.copy_(first)
    learn(after, second, range(3, 5))
    assert torch.equal(whole, second)


def test_projections_of_weights_and_times_differ_and_a_pass_without_gradient_binds_nothing() -> None:
    one, other = (nn.Parameter(start((3, 5)).float()) for _ in range(2))
    split = groups([("a", one), ("b", other)], Parting(undecayed=(), matrices=("a", "b")))
    optimizer = make("apollo", split, lr=1, weight_decay=0, options={"rank": 2})
    assert isinstance(optimizer, Apollo)
    drawn = [optimizer._drawn(weight, times, 3) for weight in (one, other) for times in (0, 1)]
    assert all(not torch.equal(a, b) for n, a in enumerate(drawn) for b in drawn[:n])
    many = torch.cat([optimizer._drawn(one, times, 3).flatten() for times in range(500)])
    assert float(many.var()) == pytest.approx(1 / 2, rel=0.1)
    one.grad = torch.zeros(3, 5)
    optimizer.step()
    learn(optimizer, one, range(1))
    assert (one - start((3, 5)).float()).abs().max() > 1e-3, "else it would grow by a hundredth of nothing"


@pytest.mark.parametrize("name", OPTIONS)
def test_all_but_matrices_of_blocks_are_moved_by_adamw_and_the_forecast_is_what_is_kept(
    tmp_path: Path, name: str
) -> None:
    ground = Ground(tmp_path, tiny.model("llama-tied"), count=4, optimizer=name)
    model = ground.model
    plain = tiny.model("llama-tied")
    ground.backward()
    gradients = {n: p.grad.clone() for n, p in model.named_parameters()}
    ground.engine.update([1e-3, 1e-3])
    matrices = facts.matrices(model)
    others = [p for n, p in plain.named_parameters() if n not in matrices]
    for n, p in plain.named_parameters():
        p.grad = gradients[n]
    torch.optim.AdamW(others, lr=1e-3, weight_decay=0.0, eps=1e-6, fused=True).step()
    same = {n: torch.equal(p, model.get_parameter(n)) for n, p in plain.named_parameters()}
    assert same == {n: n not in matrices for n in same} and len(matrices) == 14
    optimizer = ground.engine._optimizer
    assert isinstance(optimizer, LowRankAdamW)
    held = sum(v.nbytes for s in optimizer.state.values() for v in s.values() if isinstance(v, Tensor) and v.ndim)
    dtypes = precision_plan("float32", OptimSection(name=name), several=False)
    way = Way(engine="single", processes=1, dtypes=dtypes, kind="cpu")
    parts = forecast(way, facts.facts(model, model.config, None), Pass(rows=1, width=8, taught=8, several=False)).parts
    (moments,) = [part for part in parts if part.name == "moments"]
    assert moments.low <= held <= moments.high
    if name == "apollo_mini":  # no side is as narrow as its rank, and it keeps no projection
        shorter = sum(min(model.get_parameter(n).shape) for n in matrices)
        assert held == moments.high - 4 * shorter


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "galore bf16-sr": ({"optim": {"name": "galore"}, "train": {"precision": "bf16-sr"}}, "and rounds it"),
    "int8": ({"optim": {"name": "apollo", "moments": "int8"}, "train": {"precision": "bf16-sr"}}, "in 8 bits"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_does_not_go_with_it_is_refused(case: str) -> None:
    sections, why = REFUSED[case]
    with pytest.raises(RecipeError, match=why):
        require_names(load_recipe({"model": {"path": "x"}, "data": {"train": "a"}, **sections}))


@pytest.mark.parametrize("options", [{"rank": 0}, {"gap": 0}, {"scale": 0.0}, {"scale": math.inf}, {"proj": "full"}])
def test_numbers_that_are_none_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(RecipeError, match=r"optim\.options"):
        made("galore", nn.Parameter(start((3, 5))), 0.0, **options)


def test_without_a_matrix_it_is_refused() -> None:
    split = groups([("w", nn.Parameter(start((3, 5))))], Parting(undecayed=(), matrices=()))
    with pytest.raises(RecipeError, match="no matrix inside of a block"):
        make("apollo", split, lr=1, weight_decay=0, options={})
