"""Landmines F and N: optimizer and schedule; what changed in the libraries below."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer

import fulltune
from fulltune.base.errors import RecipeError
from fulltune.model.facts import undecayed
from fulltune.optim.groups import Parting, groups
from fulltune.recipe.load import load_recipe
from fulltune.training.journal import read
from tests import tiny


def rates(folder: Path, recipe: dict[str, Any]) -> list[float]:
    fulltune.train(recipe, out=folder)
    return [line["lr"] for line in read(folder / "journal.jsonl", "step")]


def test_landmine_F2_and_F3_rates_count_updates_and_follow_the_closed_form(
    tmp_path: Path, llama: Path, data: Path
) -> None:
    """Whatever the micro-batches: warm-up in equal steps, then a straight line to the floor."""
    found = []
    for micro in (1, 8):
        asked = tiny.recipe(
            llama,
            data,
            data={"heldout": 0},
            train={"steps": 20, "micro_examples": micro},
            optim={"schedule": "linear", "warmup": 4, "floor": 0.5, "lr": 1e-3},
            evaluate={"samples": 0},
        )
        found.append(rates(tmp_path / str(micro), asked))
    wanted = [(u + 1) / 5 if u < 4 else 1 - 0.5 * (u - 4) / 15 for u in range(20)]
    assert found[0] == found[1] == pytest.approx([1e-3 * w for w in wanted])


def test_landmine_F5_past_the_end_the_rate_stays_at_the_floor() -> None:
    from fulltune.optim.schedules import SCHEDULES, factor

    for name in ("cosine", "linear", "wsd"):
        after = [factor(u, updates=20, warmup=2, floor=0.1, shape=SCHEDULES[name]) for u in range(19, 80)]
        assert after == pytest.approx([0.1] * 61)


@pytest.mark.parametrize(
    ("warmup", "wanted"), [(0, 0), (0.1, 1), (1, 1), (0.5, 5), (1.0, None), (10, None), (11, None)]
)
@pytest.mark.parametrize("schedule", ["cosine", "constant"])
def test_landmine_F6_warmup_edges(
    tmp_path: Path, llama: Path, data: Path, warmup: float, wanted: int | None, schedule: str
) -> None:
    """0 is no warm-up, 1 is one update, 0.1 a tenth; 1.0 could be either; constant honours it too."""
    asked = tiny.recipe(llama, data, train={"steps": 10}, optim={"warmup": warmup, "schedule": schedule})
    if wanted is None:
        with pytest.raises(RecipeError, match="warm-?up|neither a share"):
            fulltune.plan(asked, out=tmp_path / "run")
        return
    assert fulltune.plan(asked, out=tmp_path / "run").warmup_updates == wanted


@pytest.mark.parametrize("kind", ["llama", "gpt2", "gemma3", "mamba"])
def test_landmine_F8_no_vector_norm_or_embedding_is_decayed(kind: str) -> None:
    model = tiny.model(kind)
    spared = undecayed(model)
    for group in groups(model.named_parameters(), Parting(undecayed=spared)):
        for name, parameter in zip(group.names, group.parameters, strict=True):
            if parameter.ndim < 2:
                assert not group.decay, name
            if any(word in name for word in ("embed", "wte", "wpe", "A_log")):
                assert not group.decay, name

    names = {"ln_1.weight": 1, "norm1.weight": 1, "final_ln.weight": 1, "x.weight": 2}
    parameters = [(name, nn.Parameter(torch.ones([3] * ndim))) for name, ndim in names.items()]
    holder = nn.Module()
    for name, parameter in parameters:
        holder.register_parameter(name.replace(".", "_"), parameter)
    assert undecayed(holder) == {"ln_1_weight", "norm1_weight", "final_ln_weight"}


REMOVED = (
    "warmup_ratio",
    "evaluation_strategy",
    "logging_dir",
    "overwrite_output_dir",
    "group_by_length",
    "no_cuda",
    "save_safetensors",
    "include_tokens_per_second",
    "push_to_hub_token",
)


@pytest.mark.parametrize("name", REMOVED)
def test_landmine_N1_names_that_are_gone_elsewhere_are_answered(name: str) -> None:
    with pytest.raises(RecipeError, match="name in another tool") as caught:
        load_recipe({"model": {"path": "x"}, "data": {"train": "a"}, "train": {name: 1}})
    assert caught.value.faults[0].mend


def test_landmine_N3_rope_parameters_come_back_as_they_were(tmp_path: Path, data: Path) -> None:
    """Old configs say rope_theta, new ones rope_parameters; the result keeps the base's words and positions."""
    model = tiny.folder(tmp_path / "model", rope_parameters={"rope_type": "default", "rope_theta": 77_000.0})
    config = json.loads((model / "config.json").read_text())
    config["rope_theta"] = config.pop("rope_parameters")["rope_theta"]
    (model / "config.json").write_text(json.dumps(config))
    fulltune.train(tiny.recipe(model, data, optim={"lr": 1e-12}), out=tmp_path / "run")
    assert json.loads((tmp_path / "run/model/config.json").read_text())["rope_theta"] == 77_000.0
    base, found = (AutoModelForCausalLM.from_pretrained(f) for f in (model, tmp_path / "run/model"))
    assert base.config.rope_parameters["rope_theta"] == found.config.rope_parameters["rope_theta"] == 77_000.0
    ids = torch.arange(250)[None] % tiny.VOCAB
    with torch.no_grad():
        assert torch.allclose(base(input_ids=ids).logits, found(input_ids=ids).logits, atol=1e-4)


def test_landmine_N4_the_vendors_loader_reads_the_result(tmp_path: Path, llama: Path, data: Path) -> None:
    """AutoTokenizer, and the tokenizers library alone, as vLLM and others use it."""
    from tokenizers import Tokenizer

    fulltune.train(tiny.recipe(llama, data), out=tmp_path / "run")
    folder = tmp_path / "run/model"
    text = "the cat sat 12"
    raw = Tokenizer.from_file(str(folder / "tokenizer.json"))
    assert raw.encode(text).ids == AutoTokenizer.from_pretrained(folder)(text).input_ids
    assert {path.name for path in llama.iterdir()} <= {path.name for path in folder.iterdir()}


@pytest.mark.parametrize(
    ("name", "section"),
    [
        ("evaluation_strategy", "train"),
        ("warmup_ratio", "optim"),
        ("tokenizer", "model"),
        ("max_seq_length", "data"),
        ("dataset_text_field", "data"),
        ("fp16", "train"),
        ("pad_token", "model"),
    ],
)
def test_landmine_N5_what_old_guides_write_is_an_error_with_an_answer(name: str, section: str) -> None:
    """README's own examples are run by tests/docs; what guides of other tools say is refused, never ignored."""
    values: dict[str, Any] = {"model": {"path": "x"}, "data": {"train": "a"}, "train": {}, "optim": {}}
    values[section][name] = "x"
    with pytest.raises(RecipeError, match=f"{section}.{name}") as caught:
        load_recipe(values)
    assert caught.value.faults[0].mend
