"""MLPs tile by tile: the same numbers, and only a tile of what they make."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

import fulltune
from fulltune.base.errors import RecipeError
from fulltune.base.records import ModelFacts
from fulltune.model import facts
from fulltune.model import tiled as module
from fulltune.model.facts import checkpoint_blocks
from fulltune.model.tiled import _require_apart, tile_mlps
from fulltune.planning.engine import Case, Crowd, choose_engine
from fulltune.planning.levers import deeper_than
from fulltune.planning.make import make_plan
from fulltune.planning.memory import forecast
from fulltune.planning.precision import precision_plan
from fulltune.planning.way import Pass, Way
from fulltune.recipe.load import load_recipe
from tests import tiny
from tests.contract.ground import Ground
from tests.unit.planning.test_make import CPU, MINIMAL, count, model
from tests.unit.planning.test_make import facts as data_facts


@pytest.mark.parametrize("kind", ["llama", "gemma2", "gpt2", "phi"])
def test_losses_and_gradients_are_those_of_the_whole(tmp_path: Path, kind: str) -> None:
    """Also where blocks are made again, in which each tile is made once more."""
    found = []
    for name in ("plain", "tiled", "checkpointed"):
        made = tiny.model(kind)
        if name != "plain":
            tile_mlps(made, 7)
        if name == "checkpointed":
            checkpoint_blocks(made)
        ground = Ground(tmp_path / name, made, count=8)
        loss = ground.backward()
        found.append((loss, {n: p.grad.clone() for n, p in made.named_parameters()}))
    for loss, gradients in found[1:]:
        assert loss == pytest.approx(found[0][0], abs=1e-6)
        for key, gradient in found[0][1].items():
            assert torch.allclose(gradients[key], gradient, rtol=1e-5, atol=1e-7), key


def kept(made: nn.Module, tokens: int) -> int:
    """Bytes that a forward pass leaves for the backward pass, each memory once."""
    places: dict[int, int] = {}
    held: list[Tensor] = []  # so that no memory is used twice

    def pack(tensor: Tensor) -> Tensor:
        held.append(tensor)
        places[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        made(input_ids=torch.arange(tokens)[None] % tiny.VOCAB, use_cache=False)
    return sum(places.values())


def test_what_the_mlps_make_is_not_kept() -> None:
    """Of a Llama the gate, what its activation gives, the other branch and their product: 4 * 64 numbers a token."""
    plain, made = tiny.model("llama"), tiny.model("llama")
    tile_mlps(made, 16)
    assert kept(plain, 128) - kept(made, 128) >= 2 * 4 * 64 * 128 * 4


def test_a_short_pass_is_made_whole() -> None:
    calls: list[int] = []
    made = tiny.model("llama")
    made.model.layers[0].mlp.gate_proj.register_forward_hook(lambda *given: calls.append(given[2].shape[1]))
    tile_mlps(made, 16)
    calls.clear()
    with torch.no_grad():
        made(input_ids=torch.arange(16)[None])
        assert calls == [16]
        made(input_ids=torch.arange(40)[None])
    assert calls == [16, 16, 16, 8]


@pytest.mark.parametrize("kind", ["mamba", "mixtral"])
def test_models_without_such_mlps_are_refused(kind: str) -> None:
    with pytest.raises(RecipeError, match="no MLP in each block"):
        tile_mlps(tiny.model(kind), 16)
    assert facts.facts(tiny.model(kind), tiny.model(kind).config, None).shape.mlps == 0


def test_an_mlp_that_looks_at_other_tokens_is_refused() -> None:
    class Shifted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.eye(3, 8))

        def forward(self, hidden: Tensor) -> Tensor:
            return (hidden + hidden.roll(1, 1)) @ self.weight @ self.weight.T

    with pytest.raises(RecipeError, match="looks at other tokens"):
        _require_apart(Shifted())


def case(name: Any = "auto", processes: int = 1, **memory: Any) -> Case:
    recipe = load_recipe({**MINIMAL, "memory": {"mlp_tile": 16, **memory}, "engine": {"name": name}})
    dtypes = precision_plan("float32", recipe.optim, several=False)
    load = Pass(rows=1, width=32, taught=20, several=False)
    crowd = Crowd(processes, processes)
    given: Any = {"recipe": recipe, "dtypes": dtypes, "layout": "padded", "crowd": crowd, "load": load}
    return Case(model=with_mlps(), machine=CPU, **given)


def with_mlps() -> ModelFacts:
    plain = model()
    return replace(plain, shape=replace(plain.shape, mlps=96), checkpoints=True)


def test_the_forecast_has_one_tile_of_one_block() -> None:
    """Two blocks of 60 inner numbers, 48 of them the MLP's, 16 the widest, 8 hidden; 32 tokens, 16 in a tile."""
    dtypes = precision_plan("float32", load_recipe(MINIMAL).optim, several=False)
    for way, base in (("none", 32 * 2 * (4 * 12 + 24 * 8)), ("full", 32 * 4 * 8 * 2 + 32 * (4 * 12 + 24 * 8))):
        found = forecast(
            Way(engine="single", processes=1, dtypes=dtypes, kind="cpu", tile=16, checkpointing=way),  # type: ignore[arg-type]
            with_mlps(),
            Pass(rows=1, width=32, taught=20, several=False),
        )
        (part,) = [part for part in found.parts if part.name == "activations"]
        assert part.high == base + 2 * 16 * 4 * (48 + 16)
    assert case().by("single").high < case(mlp_tile=32).by("single").high


def test_the_plan_offers_full_and_not_selective() -> None:
    assert deeper_than("none", case()) == ("full",)
    assert deeper_than("none", case(mlp_tile=None)) == ("selective", "full")


REFUSED = {
    "selective": {"memory": {"mlp_tile": 16, "checkpointing": "selective"}},
    "offload": {"memory": {"mlp_tile": 16, "offload": "activations"}},
    "compile": {"memory": {"mlp_tile": 16}, "train": {"compile": True}},
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_does_not_go_with_it_is_refused(name: str) -> None:
    with pytest.raises(RecipeError, match=r"memory\.mlp_tile"):
        load_recipe({**MINIMAL, **REFUSED[name]})


def test_shards_and_models_without_mlps_are_refused_by_the_plan() -> None:
    with pytest.raises(RecipeError, match="gathers weights for a whole block"):
        choose_engine(case("fsdp2", 2))
    choose_engine(case("ddp", 2))
    with pytest.raises(RecipeError, match="no MLP in each block"):
        make_plan(case().recipe, data_facts(), model(), CPU, count)


def test_the_setting_tiles_the_mlps_of_a_run(
    tmp_path: Path, llama: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []
    whole = module._tiled
    monkeypatch.setattr(module, "_tiled", lambda *given: sizes.append(given[1]) or whole(*given))
    asked = tiny.recipe(llama, data, train={"steps": 1}, memory={"mlp_tile": 8}, evaluate={"samples": 0})
    fulltune.train(asked, out=tmp_path / "run")
    assert set(sizes) == {8}
