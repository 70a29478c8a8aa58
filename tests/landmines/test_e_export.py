"""Landmines E: what is written at the end, and whether it is what was trained."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

import fulltune
from fulltune.base.errors import DataError
from tests import tiny

TURNS = [{"role": "user", "content": "the cat"}, {"role": "assistant", "content": "sat"}]


@pytest.fixture
def run(tmp_path: Path, data: Path) -> Path:
    """A run over a tied model."""
    fulltune.train(tiny.recipe(tiny.folder(tmp_path / "model", "llama-tied"), data), out=tmp_path / "run")
    return tmp_path / "run"


def test_landmine_E1_tied_weights_are_written_once_and_come_back_tied(run: Path) -> None:
    written = load_file(run / "model/model.safetensors")
    again = AutoModelForCausalLM.from_pretrained(run / "model")
    assert again.lm_head.weight is again.model.embed_tokens.weight
    assert sum(t.numel() for t in written.values()) == sum(p.numel() for p in again.parameters())


def test_landmine_E2_tied_weights_stay_tied_through_loading_training_and_checkpoints(run: Path) -> None:
    saved = load_file(sorted((run / "checkpoints").iterdir())[-1] / "weights.safetensors")
    assert ("lm_head.weight" in saved) + ("model.embed_tokens.weight" in saved) == 1
    tuned, base = (AutoModelForCausalLM.from_pretrained(f) for f in (run / "model", run.parent / "model"))
    assert tuned.lm_head.weight is tuned.model.embed_tokens.weight
    assert not torch.equal(tuned.lm_head.weight, base.lm_head.weight)


def test_landmine_E4_ids_beyond_the_embedding_are_named_before_anything_is_trained(tmp_path: Path, data: Path) -> None:
    tokens = tiny.tokenizer()
    tokens.add_special_tokens({"additional_special_tokens": ["<|new|>"]})
    model = tiny.folder(tmp_path / "model", tokens=tokens)
    with pytest.raises(DataError, match=r"'<\|new\|>' \(300\)"):
        fulltune.train(tiny.recipe(model, data), out=tmp_path / "run")
    padded = tiny.folder(tmp_path / "padded", tokens=tokens, vocab=320)
    assert fulltune.train(tiny.recipe(padded, data), out=tmp_path / "run2").result_step == 6


def test_landmine_E5_the_save_is_rehearsed_before_the_first_update(
    tmp_path: Path, llama: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever would fail at the end fails at the start: here a folder that comes back with another norm."""
    from fulltune import outcome

    written = outcome.write

    def spoiled(model: Any, state: Any, target: Any, folder: Path) -> None:
        written(model, state, target, folder)
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, "rms_norm_eps": 0.5}))

    monkeypatch.setattr(outcome, "write", spoiled)
    with pytest.raises(DataError, match="logits differ"):
        fulltune.train(tiny.recipe(llama, data), out=tmp_path / "run")
    journal = (tmp_path / "run/journal.jsonl").read_text()
    assert '"kind": "step"' not in journal


def test_landmine_E5_a_generation_config_that_cannot_be_saved_does_not_end_a_run(tmp_path: Path, data: Path) -> None:
    model = tiny.folder(tmp_path / "model")
    broken = {"do_sample": False, "temperature": 0.5, "eos_token_id": [2]}
    (model / "generation_config.json").write_text(json.dumps(broken))
    fulltune.train(tiny.recipe(model, data), out=tmp_path / "run")
    found = json.loads((tmp_path / "run/model/generation_config.json").read_text())
    assert found == {**broken, "eos_token_id": [2, 6]}


def test_landmine_E6_the_exported_config_is_the_bases(run: Path) -> None:
    base, found = (json.loads((f / "config.json").read_text()) for f in (run.parent / "model", run / "model"))
    assert found == base
    assert found["use_cache"] is True


def test_landmine_E7_the_exported_tokenizer_writes_and_reads_as_the_bases(run: Path) -> None:
    base, found = (AutoTokenizer.from_pretrained(f) for f in (run.parent / "model", run / "model"))
    for prompt in (True, False):
        texts = [t.apply_chat_template(TURNS, tokenize=False, add_generation_prompt=prompt) for t in (base, found)]
        assert texts[0] == texts[1]
    assert base("the <|end|> cat").input_ids == found("the <|end|> cat").input_ids


def test_landmine_E8_generation_ends_at_the_tokens_that_were_taught_to_end_a_turn(tmp_path: Path, llama: Path) -> None:
    """The base knows </s> only; its template ends turns with <|end|>. The overfitted result stops by itself."""
    rows = tiny.jsonl(tmp_path / "rows.jsonl", [{"messages": TURNS}])
    asked = tiny.recipe(
        llama,
        rows,
        data={"heldout": 0},
        train={"steps": 60, "batch_examples": 1},
        optim={"lr": 1e-2, "schedule": "constant", "warmup": 0},
    )
    fulltune.train(asked, out=tmp_path / "run")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "run/model")
    tokens = AutoTokenizer.from_pretrained(tmp_path / "run/model")
    assert set(model.generation_config.eos_token_id) == {2, tiny.SPECIAL.index("<|end|>")}
    ids = tokens.apply_chat_template(TURNS[:1], add_generation_prompt=True, return_dict=False, return_tensors="pt")
    made = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=50, pad_token_id=0)
    assert tokens.decode(made[0, ids.shape[1] :]) == "sat<|end|>"


def test_landmine_E9_tags_for_training_are_not_shipped(tmp_path: Path, llama: Path, data: Path) -> None:
    """A template with {% generation %} trains as it is and is exported without the tag, writing the same text."""
    said = "{{ '<|' + m['role'] + '|>' }}"
    answer = "{%- generation -%} {{ m['content'] + '<|end|>' }} {%- endgeneration %}"
    tagged = (
        "{{ bos_token }}{% for m in messages %}" + said + "{% if m['role'] == 'assistant' %}" + answer + "{% else %}"
        "{{ m['content'] + '<|end|>' }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
    )
    (tmp_path / "t.jinja").write_text(tagged)
    asked = tiny.recipe(llama, data, model={"chat_template": str(tmp_path / "t.jinja")})
    fulltune.train(asked, out=tmp_path / "run")
    shipped = (tmp_path / "run/model/chat_template.jinja").read_text()
    assert "generation" not in shipped.replace("add_generation_prompt", "")
    found = AutoTokenizer.from_pretrained(tmp_path / "run/model")
    for prompt in (True, False):
        wanted = found.apply_chat_template(TURNS, chat_template=tagged, tokenize=False, add_generation_prompt=prompt)
        assert found.apply_chat_template(TURNS, tokenize=False, add_generation_prompt=prompt) == wanted
