"""What is decayed, for models of several families; and what optimizers take."""

import pytest
import torch
from torch import nn

from fulltune.base.errors import RecipeError
from fulltune.model.facts import undecayed
from fulltune.optim.groups import groups
from fulltune.optim.optimizers import OPTIMIZERS, make
from tests import tiny


def decayed(model: nn.Module) -> set[str]:
    return {n for g in groups(model.named_parameters(), undecayed(model)) if g.decayed for n in g.names}


@pytest.mark.parametrize("kind", sorted(tiny.KINDS))
def test_only_matrices_that_are_no_embeddings_are_decayed(kind: str) -> None:
    model = tiny.model(kind)
    found = decayed(model)
    shapes = {name: p.ndim for name, p in model.named_parameters()}
    assert found
    assert all(shapes[name] >= 2 for name in found)
    assert not any(word in name for name in found for word in ("norm", "bias", "embed", "wte", "wpe", "A_log"))
    linear = {f"{n}.weight" for n, m in model.named_modules() if isinstance(m, nn.Linear) and "lm_head" not in n}
    assert linear & shapes.keys() <= found


def test_a_head_is_decayed_unless_it_is_the_embedding() -> None:
    assert "lm_head.weight" in decayed(tiny.model("llama"))
    assert not any("embed" in name or "lm_head" in name for name in decayed(tiny.model("llama-tied")))


def test_norms_of_any_name_are_spared() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.ln_1, self.norm1, self.final_ln = nn.LayerNorm(4), nn.RMSNorm(4), nn.LayerNorm(4)
            self.gamma, self.dense = nn.Parameter(torch.ones(4)), nn.Linear(4, 4)

    assert decayed(Odd()) == {"dense.weight"}


def test_frozen_parameters_are_in_no_group() -> None:
    model = tiny.model("llama")
    model.lm_head.weight.requires_grad_(False)
    assert not any("lm_head.weight" in g.names for g in groups(model.named_parameters(), ()))


@pytest.mark.parametrize("name", sorted(OPTIMIZERS))
def test_every_optimizer_has_a_group_for_each_group(name: str) -> None:
    model = tiny.model("llama")
    split = groups(model.named_parameters(), undecayed(model))
    optimizer = make(name, split, lr=0.1, weight_decay=0.3, options={})
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.3, 0.0]
    model.lm_head.weight.grad = torch.ones_like(model.lm_head.weight)
    before = model.lm_head.weight.clone()
    optimizer.step()
    assert not torch.equal(before, model.lm_head.weight)


def test_options_reach_the_optimizer_and_wrong_ones_are_refused() -> None:
    split = groups(tiny.model("llama").named_parameters(), ())
    optimizer = make("adamw", split, lr=0.1, weight_decay=0.0, options={"betas": [0.5, 0.6]})
    assert list(optimizer.param_groups[0]["betas"]) == [0.5, 0.6]
    for options in ({"beta": 1}, {"betas": [2.0, 0.9]}):
        with pytest.raises(RecipeError, match="adamw"):
            make("adamw", split, lr=0.1, weight_decay=0.0, options=options)
    with pytest.raises(RecipeError, match="did you mean 'adamw'"):
        make("adam", split, lr=0.1, weight_decay=0.0, options={})


def test_adamw_equals_the_formula() -> None:
    """Loshchilov and Hutter 2019, algorithm 2, in float64 against our float32."""
    weight = nn.Parameter(torch.linspace(-1, 1, 12).reshape(3, 4))
    optimizer = make("adamw", groups([("w", weight)], ()), lr=0.01, weight_decay=0.1, options={})
    x, m, v = weight.detach().double(), torch.zeros(3, 4).double(), torch.zeros(3, 4).double()
    for step in range(1, 6):
        grad = torch.sin(torch.arange(12.0).reshape(3, 4) * step)
        weight.grad = grad.clone()
        optimizer.step()
        g = grad.double()
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
        x = x - 0.01 * 0.1 * x - 0.01 * (m / (1 - 0.9**step)) / ((v / (1 - 0.999**step)).sqrt() + 1e-8)
    assert torch.allclose(weight.double(), x, atol=1e-6)


def test_vectors_and_biases_of_any_shape_are_spared() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gate_up_proj_bias, self.time_mix = nn.Parameter(torch.ones(4, 8)), nn.Parameter(torch.ones(1, 1, 8))
            self.dense = nn.Linear(4, 4)

    assert decayed(Odd()) == {"dense.weight"}


@pytest.mark.parametrize("options", [{"foreach": True}, {"betas": [0.9]}, {"betas": [2, 3]}, {"nonsense": 1}])
def test_whatever_torch_says_of_options_is_a_fault_of_the_recipe(options: dict) -> None:
    with pytest.raises(RecipeError, match=r"optim\.options"):
        make("adamw", groups(tiny.model("llama").named_parameters(), ()), lr=1, weight_decay=0, options=options)
