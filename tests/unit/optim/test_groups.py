"""What is decayed, for models of several families; and what optimizers take."""

from typing import Any

import pytest
import torch
from torch import nn

from fulltune.base.errors import RecipeError
from fulltune.engines import grouped, parting
from fulltune.model.facts import facts, matrices, undecayed
from fulltune.optim.groups import Group, Parting, groups
from fulltune.optim.optimizers import OPTIMIZERS, make
from fulltune.recipe.load import load_recipe
from fulltune.recipe.schema import OptimSection
from tests import tiny


def decayed(model: nn.Module) -> set[str]:
    return {
        n for g in groups(model.named_parameters(), Parting(undecayed=undecayed(model))) if g.decay for n in g.names
    }


@pytest.mark.parametrize("kind", sorted(tiny.KINDS))
def test_only_matrices_that_are_no_embedzings_are_decayed(kind: str) -> None:
    model = tiny.model(kind)
    found = decayed(model)
    shapes = {name: p.ndim for name, p in model.named_parameters()}
    assert found
    assert all(shapes[name] >= 2 for name in found)
    assert not any(word in name for name in found for word in ("norm", "bias", "embed", "wte", "wpe", "A_log"))
    linear = {f"{n}.weight" for n, m in model.named_modules() if isinstance(m, nn.Linear) and "lm_head" not in n}
    assert linear & shapes.keys() <= found


def test_a_head_is_decayed_unless_it_is_the_embedzing() -> None:
    assert "lm_head.weight" in decayed(tiny.model("llama"))
    assert not any("embed" in name or "lm_head" in name for name in decayed(tiny.model("llama-tied")))


@pytest.mark.parametrize("kind", sorted(tiny.KINDS))
def test_matrices_of_blocks_are_no_embedding_no_head_and_no_vector(kind: str) -> None:
    model = tiny.model(kind)
    found, named = matrices(model), dict(model.named_parameters())
    assert found and all(named[name].ndim == 2 for name in found)
    assert not any(word in name for name in found for word in ("norm", "bias", "embed", "wte", "wpe", "head", "A_log"))
    blocks = {f"{n}.weight" for n, m in model.named_modules() if isinstance(m, nn.Linear) and ".0." in n}
    assert blocks & named.keys() <= found
    split = groups(model.named_parameters(), Parting(undecayed=undecayed(model), matrices=found))
    assert frozenset().union(*(group.matrices for group in split)) == found
    assert facts(model, model.config, None).shape.matrices == sum(named[name].numel() for name in found)


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
    assert not any("lm_head.weight" in g.names for g in groups(model.named_parameters(), Parting(undecayed=())))


@pytest.mark.parametrize("name", sorted(OPTIMIZERS))
def test_every_optimizer_has_a_group_for_each_group(name: str) -> None:
    model = tiny.model("llama")
    split = groups(model.named_parameters(), Parting(undecayed=undecayed(model), matrices=matrices(model)))
    optimizer = make(name, split, lr=0.1, weight_decay=0.3, options={})
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.3, 0.0]
    model.lm_head.weight.grad = torch.ones_like(model.lm_head.weight)
    before = model.lm_head.weight.clone()
    optimizer.step()
    assert not torch.equal(before, model.lm_head.weight)


def test_options_reach_the_optimizer_and_wrong_ones_are_refused() -> None:
    split = groups(tiny.model("llama").named_parameters(), Parting(undecayed=()))
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
    optimizer = make("adamw", groups([("w", weight)], Parting(undecayed=())), lr=0.01, weight_decay=0.1, options={})
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
        make(
            "adamw",
            groups(tiny.model("llama").named_parameters(), Parting(undecayed=())),
            lr=1,
            weight_decay=0,
            options=options,
        )


def parted(kind: str, **optim: Any) -> dict[str, Group]:
    """The group of each weight of a model."""
    model = tiny.model(kind)
    section = OptimSection(**optim)
    made = groups(model.named_parameters(), parting(section, model))
    return {name: group for group in made for name in group.names}


def test_each_layer_is_slower_than_the_one_above_it() -> None:
    """ULMFiT (arXiv 1801.06146) and ELECTRA (arXiv 2003.10555): rate of layer l = lr * decay^(L - l)."""
    found = parted("llama", layer_decay=0.5)
    assert {name: group.rate for name, group in found.items() if ".layers." not in name} == {
        "model.embed_tokens.weight": 0.5**3,
        "model.norm.weight": 1.0,
        "lm_head.weight": 1.0,
    }
    assert {group.rate for name, group in found.items() if ".layers.0." in name} == {0.5**2}
    assert {group.rate for name, group in found.items() if ".layers.1." in name} == {0.5}
    assert found["model.layers.1.mlp.up_proj.weight"].decay == 1
    assert found["model.layers.1.input_layernorm.weight"].decay == 0


def test_position_embedzings_and_a_head_that_is_the_embedzing_are_lowest() -> None:
    found = parted("gpt2", layer_decay=0.5)
    assert found["transformer.wte.weight"].rate == found["transformer.wpe.weight"].rate == 0.5**3
    assert found["transformer.ln_f.weight"].rate == 1
    assert parted("llama-tied", layer_decay=0.5)["model.embed_tokens.weight"].rate == 0.5**3


def test_the_first_rule_that_matches_counts_and_multiplies_the_rate_of_the_layer() -> None:
    rules = ({"match": r"layers\.0\..*up_proj", "rate": 0.25}, {"match": r"layers\.0\.", "rate": 3, "weight_decay": 2})
    found = parted("llama", layer_decay=0.5, groups=rules)
    assert found["model.layers.0.mlp.up_proj.weight"].rate == 0.25 * 0.5**2
    assert found["model.layers.0.mlp.up_proj.weight"].decay == 1
    assert found["model.layers.0.mlp.down_proj.weight"].rate == 3 * 0.5**2
    assert found["model.layers.0.mlp.down_proj.weight"].decay == 2
    assert found["model.layers.0.input_layernorm.weight"].decay == 0, "never decayed"


def test_what_is_frozen_has_rate_0() -> None:
    assert {n for n, group in parted("llama", freeze="embed").items() if not group.rate} == {
        "model.embed_tokens.weight"
    }
    assert {n for n, group in parted("llama", train_only=["lm_head"]).items() if group.rate} == {"lm_head.weight"}
    both = parted("llama", train_only=r"layers\.1\.", freeze=["mlp"])
    assert {name for name, group in both.items() if group.rate} == {
        name for name in both if ".layers.1." in name and "mlp" not in name
    }


def test_layers_begin_one_after_the_other_the_highest_first() -> None:
    """Howard and Ruder 2018, arXiv 1801.06146, section 3.3."""
    found = parted("llama", unfreeze=0.6)
    starts = {name: group.start for name, group in found.items()}
    assert starts["lm_head.weight"] == starts["model.norm.weight"] == 0
    assert starts["model.layers.1.mlp.up_proj.weight"] == pytest.approx(0.2)
    assert starts["model.layers.0.mlp.up_proj.weight"] == pytest.approx(0.4)
    assert starts["model.embed_tokens.weight"] == pytest.approx(0.6)


def test_a_plan_shows_them_and_refuses_what_has_no_effect() -> None:
    model = tiny.model("llama")
    shown = grouped(OptimSection(lr=0.1, freeze=("embed",), unfreeze=0.6), model, 10)
    assert [str(group) for group in shown] == [
        "rate 0.1, decay 0.01: 9,600 parameters of 1, such as lm_head.weight",
        "rate 0.1 from update 2 on, decay 0.01: 9,216 parameters of 7, such as model.layers.1.self_attn.q_proj.weight",
        "rate 0.1 from update 4 on, decay 0.01: 9,216 parameters of 7, such as model.layers.0.self_attn.q_proj.weight",
        "rate 0.1, decay 0: 32 parameters of 1, such as model.norm.weight",
        "rate 0.1 from update 2 on, decay 0: 64 parameters of 2, such as model.layers.1.input_layernorm.weight",
        "rate 0.1 from update 4 on, decay 0: 64 parameters of 2, such as model.layers.0.input_layernorm.weight",
        "frozen: 9,600 parameters of 1, such as model.embed_tokens.weight",
    ]
    with pytest.raises(RecipeError, match=r"no weight has 'embedz' in its name(.|\n)*no weight has 'hed'"):
        grouped(OptimSection(freeze=("embedz",), train_only=("hed", "norm")), model, 10)
    with pytest.raises(RecipeError, match="all weights are frozen"):
        grouped(OptimSection(freeze=(".",)), model, 10)
    with pytest.raises(RecipeError, match="nothing is trained before update 2"):
        grouped(OptimSection(unfreeze=0.6, freeze=("norm.weight", "lm_head")), model, 10)


def test_what_is_no_regular_expression_is_refused() -> None:
    values = {"model": {"path": "./m"}, "data": {"train": "/d.jsonl"}, "optim": {"freeze": ["(", "ok"]}}
    with pytest.raises(RecipeError, match="'\\(' is no regular expression"):
        load_recipe(values)
