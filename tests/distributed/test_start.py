"""A model that no process has whole begins as one that was loaded whole, to the bit."""

import gc
import json
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from fulltune.engine.launch import joined
from fulltune.engine.native import NativeEngine
from fulltune.engine.sharded import Sharded
from fulltune.model.facts import blocks
from fulltune.model.load import load_model
from fulltune.objectives import NextToken
from fulltune.planning.precision import precision_plan
from fulltune.recipe.schema import ModelSection, OptimSection
from fulltune.starting import start
from tests import tiny
from tests.distributed.ranks import together

FILE = "model.safetensors"


def shards(path: Path, kind: str, dtype: torch.dtype, size: str = "50GB") -> None:
    tiny.model(kind).to(dtype).save_pretrained(path, max_shard_size=size)


def rewritten(path: Path, act: Any) -> None:
    tensors = act(load_file(path / FILE))
    save_file(tensors, path / FILE, metadata={"format": "pt"})


def started(folder: Path, size: int, replicas: int = 1) -> list[dict[str, Any]]:
    """By rank, what it found of each model folder."""
    together(size, "tests.distributed.starts", str(folder), str(replicas))
    return [json.loads((folder / f"rank-{rank}.json").read_text()) for rank in range(size)]


def same(found: dict[str, Any], name: str) -> None:
    """As loaded whole; the shape of what is said of it is `tests.distributed.starts.compared`'s."""
    assert found["without"], name
    assert found["differ"] == [], name
    assert found["ties"] and found["answers"] and found["attention"] and found["training"] and found["conversions"], (
        name
    )


PLAIN = ("llama", "llama-tied", "qwen3", "gpt2")
EMBEDDING, HEAD, PART = "model.embed_tokens.weight", "lm_head.weight", "model.layers.1.mlp.up_proj.weight"


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each of two processes found of models of every kind that the tests below ask about."""
    models = tmp_path_factory.mktemp("models")
    for kind in PLAIN:
        shards(models / f"{kind}-float32", kind, torch.float32)
        shards(models / f"{kind}-bf16-shards", kind, torch.bfloat16, "20KB")
        assert len(list((models / f"{kind}-bf16-shards").glob("*.safetensors"))) > 2
    shards(models / "experts", "mixtral", torch.float32)
    assert any("experts.3." in name for name in load_file(models / "experts" / FILE))
    kinds = {"bare": "gpt2", "twice": "llama-tied", "head": "llama-tied", "untied": "llama-tied"}
    for name in ("bare", "twice", "head", "untied", "more", "missing", "shorter", "broken", "none"):
        shards(models / name, kinds.get(name, "llama"), torch.float32)
    rewritten(models / "bare", lambda held: {k.removeprefix("transformer."): v for k, v in held.items()})
    rewritten(models / "twice", lambda held: {**held, HEAD: held[EMBEDDING].clone()})
    rewritten(models / "head", lambda held: {HEAD if k == EMBEDDING else k: v for k, v in held.items()})
    rewritten(models / "untied", lambda held: {**held, HEAD: held[EMBEDDING] + 1})
    rewritten(models / "more", lambda held: {**held, "model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)})
    rewritten(models / "missing", lambda held: {k: v for k, v in held.items() if k != PART})
    rewritten(models / "shorter", lambda held: {**held, PART: held[PART][:-4].clone()})
    rewritten(models / "broken", lambda held: {**held, PART: held[PART].index_fill(0, torch.tensor([60]), torch.inf)})
    (models / "none" / FILE).unlink()
    return started(models, 2)


@pytest.mark.parametrize("kind", PLAIN)
def test_it_begins_to_the_bit_as_one_that_was_loaded_whole(both: list[dict[str, Any]], kind: str) -> None:
    for found in both:
        for name in (f"{kind}-float32", f"{kind}-bf16-shards"):
            same(found[name], name)
            assert found[name]["cut"] and found[name]["isolates"] and found[name]["told"] == [], name


def test_what_no_rows_can_be_read_of_is_loaded_by_one_after_the_other(both: list[dict[str, Any]]) -> None:
    for found in both:
        for name in ("experts", "untied"):
            same(found[name], name)
        [of_experts], [of_untied] = found["experts"]["told"], found["untied"]["told"]
        assert "loaded whole, by one process of a machine after the other: transformers" in of_experts
        assert "makes model.layers.0.mlp.experts" in of_experts
        assert f"its config ties {EMBEDDING}, and its files have two values for it" in of_untied


def test_names_in_files_are_understood_as_transformers_does(both: list[dict[str, Any]]) -> None:
    """Without the prefix of the base model, tied weights twice or under the other name, and what no model asks for."""
    for found in both:
        for name in ("bare", "twice", "head", "more"):
            same(found[name], name)
            assert found[name]["told"] == [], name


def test_weights_that_are_missing_wrong_or_no_numbers_are_named_by_all(both: list[dict[str, Any]]) -> None:
    for found in both:
        assert f"missing: {PART}" in found["missing"]["fault"]
        assert f"{PART}: the file has shape (60, 32), the config wants (64, 32)" in found["shorter"]["fault"]
        assert f"{PART}: 32 values are not finite" in found["broken"]["fault"], "they are in the rows of the second"
        assert "cannot be loaded" in found["none"]["fault"]


@pytest.mark.slow
@pytest.mark.parametrize(("size", "replicas"), [(3, 1), (4, 2)])
def test_so_does_every_family_in_uneven_shards_and_in_replicas(tmp_path: Path, size: int, replicas: int) -> None:
    models = tmp_path / "models"
    for kind in tiny.KINDS:
        shards(models / kind, kind, torch.bfloat16, "20KB")
    for found in started(models, size, replicas):
        assert found.keys() == tiny.KINDS.keys()
        for name, one in found.items():
            same(one, name)
            assert one["told"] == [] or name == "mixtral", "none of the others had to be loaded whole"
            assert one["isolates"] == (name != "mamba")


def test_what_was_kept_of_a_model_that_was_loaded_whole_is_let_go(tmp_path: Path) -> None:
    """Its rows would stay on the host beside the engine's for as long as the run lasts."""
    shards(tmp_path / "model", "mixtral", torch.float32)
    with joined(60, grouped=True) as meeting:
        section = ModelSection(path=str(tmp_path / "model"))
        for act in ("fill", "forgo"):
            begun = start(section, meeting, "fsdp2", replicas=1, packed=False)
            assert begun.read is not None
            kept = weakref.ref(begun.read("lm_head.weight", None))
            layout = Sharded(meeting.world, meeting.crew, blocks(begun.model))
            objective = NextToken(begun.model, None, keeps_logits=False)
            plan = precision_plan("float32", OptimSection(), several=True)
            engine = NativeEngine(
                begun.model,
                objective,
                lambda named: torch.optim.SGD(dict(named).values()),
                layout,
                clip=None,
                precision=plan,
            )
            if act == "fill":
                begun.fill(engine)
            else:
                begun.forgo()
            gc.collect()
            assert kept() is None
            if act == "fill":
                whole = load_model(section).state_dict()
                assert all(torch.equal(value, whole[name]) for name, value in engine.full_weights())
