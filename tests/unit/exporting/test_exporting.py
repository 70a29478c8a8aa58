"""The result is the base's folder with other weights, and nothing else changed without need."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from fulltune.assemble import target
from fulltune.base.errors import DataError
from fulltune.base.records import DataFacts
from fulltune.engine.native import unique_state
from fulltune.exporting.targets import Target, state_for, write
from fulltune.exporting.verify import Written, verify
from fulltune.material import template
from fulltune.model.folder import load_tokenizer
from fulltune.recipe.schema import ExportSection, ModelSection
from tests import tiny

IDS = torch.arange(10, 40)[None]


def exported(tmp_path: Path, base: Path, model: Any, **changes: Any) -> tuple[Path, Target]:
    goal = Target(base=base, **{"dtype": "float32", "template": None, "stop_ids": (2,), **changes})
    (tmp_path / "out").mkdir()
    write(model, state_for(goal, unique_state(model).items()), goal, tmp_path / "out")
    return tmp_path / "out", goal


def check(folder: Path, model: Any, target: Target, tokens: Any = None) -> float:
    state, buffers = state_for(target, unique_state(model).items()), dict(model.named_buffers())
    written = Written(state, model, buffers, "cpu", {"trust_remote_code": False})
    return verify(folder, written, target, IDS, tokens or tiny.tokenizer())


@pytest.mark.parametrize("kind", sorted(set(tiny.KINDS)))
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_every_family_comes_back_with_the_same_logits(tmp_path: Path, kind: str, dtype: str) -> None:
    base = tiny.folder(tmp_path / "base", kind)
    model = tiny.model(kind, seed=3)
    folder, target = exported(tmp_path, base, model, dtype=dtype)
    assert check(folder, model, target) <= 1e-6
    written = load_file(folder / "model.safetensors")
    assert {str(t.dtype) for t in written.values()} == {f"torch.{dtype}"}
    assert sum(t.numel() for t in written.values()) == sum(p.numel() for p in model.parameters())
    assert str(AutoModelForCausalLM.from_pretrained(folder).dtype) == f"torch.{dtype}"


def test_the_config_is_the_bases_but_for_the_number_format(tmp_path: Path) -> None:
    base = tiny.folder(tmp_path / "base")
    config = json.loads((base / "config.json").read_text())
    config |= {"use_cache": True, "rope_theta": 12345.0, "vendor_note": "keep me"}
    (base / "config.json").write_text(json.dumps(config))
    model = tiny.model("llama", seed=3)
    model.config.use_cache = False
    folder, _ = exported(tmp_path, base, model, dtype="bfloat16")
    found = json.loads((folder / "config.json").read_text())
    assert {key for key in config.keys() | found.keys() if config.get(key) != found.get(key)} == {"dtype"}
    assert found["dtype"] == "bfloat16"


def test_the_tokenizer_is_the_bases_to_the_byte(tmp_path: Path) -> None:
    base = tiny.folder(tmp_path / "base")
    folder, _ = exported(tmp_path, base, tiny.model("llama"))
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        assert (folder / name).read_bytes() == (base / name).read_bytes()


def test_stop_tokens_that_were_taught_end_generation(tmp_path: Path) -> None:
    base = tiny.folder(tmp_path / "base")
    for number, (known, wanted) in enumerate((([2], [2, 6]), (2, [2, 6]), ([6, 2], [6, 2]), (None, [2, 6]))):
        path = base / "generation_config.json"
        path.unlink(missing_ok=True)
        if known is not None:
            path.write_text(json.dumps({"eos_token_id": known, "temperature": 0.7}))
        (tmp_path / str(number)).mkdir()
        folder, _ = exported(tmp_path / str(number), base, tiny.model("llama"), stop_ids=(2, 6))
        found = json.loads((folder / "generation_config.json").read_text())
        assert found["eos_token_id"] == wanted
        assert found.get("temperature") == (0.7 if known is not None else None)
        assert AutoModelForCausalLM.from_pretrained(folder).generation_config.eos_token_id == wanted


def test_a_generation_config_that_transformers_refuses_to_save_is_carried_over(tmp_path: Path) -> None:
    base = tiny.folder(tmp_path / "base")
    broken = {"do_sample": False, "temperature": 0.5, "eos_token_id": 2}
    (base / "generation_config.json").write_text(json.dumps(broken))
    model = AutoModelForCausalLM.from_pretrained(base)
    model.generation_config = GenerationConfig(do_sample=False, temperature=0.5)
    with pytest.raises(ValueError, match="invalid"):
        model.save_pretrained(tmp_path / "refused")
    folder, target = exported(tmp_path, base, model)
    assert json.loads((folder / "generation_config.json").read_text()) == broken
    assert model.generation_config.temperature == 0.5
    check(folder, model, target)


def test_another_template_is_shipped_in_its_own_file(tmp_path: Path) -> None:
    base = tiny.folder(tmp_path / "base")
    config = json.loads((base / "tokenizer_config.json").read_text())
    (base / "tokenizer_config.json").write_text(json.dumps({**config, "chat_template": tiny.TEMPLATE}))
    other = tiny.TEMPLATE + " "
    folder, target = exported(tmp_path, base, tiny.model("llama"), template=other)
    assert AutoTokenizer.from_pretrained(folder).chat_template == other
    check(folder, tiny.model("llama"), target)


NAMED = {"default": tiny.TEMPLATE, "tool_use": "{{ tools }}" + tiny.TEMPLATE}


def _in_the_config(base: Path, named: dict[str, str]) -> list[str]:
    listed = [{"name": name, "template": text} for name, text in named.items()]
    config = json.loads((base / "tokenizer_config.json").read_text()) | {"chat_template": listed}
    (base / "tokenizer_config.json").write_text(json.dumps(config))
    (base / "chat_template.jinja").unlink()
    return ["tokenizer_config.json"]


def _in_files(base: Path, named: dict[str, str]) -> list[str]:
    (base / "additional_chat_templates").mkdir()
    places = {"default": "chat_template.jinja", "tool_use": "additional_chat_templates/tool_use.jinja"}
    for name, text in named.items():
        (base / places[name]).write_text(text)
    return ["tokenizer_config.json", *places.values()]


def _goal(base: Path, chat_template: Path | None = None) -> tuple[Target, Any]:
    """The target that a recipe makes of this base, and the tokenizer."""
    section = ModelSection(path=str(base), chat_template=str(chat_template) if chat_template else None)
    tokens = load_tokenizer(section)
    facts = DataFacts(
        fingerprint="",
        rows=0,
        kept=0,
        dropped={},
        truncated=0,
        splits={},
        sources={},
        notes={},
        template="",
        stop_ids=(),
        doctor={},
    )
    return target(section, ExportSection(), facts, template(section, tokens), "float32"), tokens


@pytest.mark.parametrize("place", [_in_the_config, _in_files])
def test_templates_by_name_are_the_bases_to_the_byte(tmp_path: Path, place: Any) -> None:
    base, model = tiny.folder(tmp_path / "base"), tiny.model("llama", seed=3)
    files = place(base, NAMED)
    goal, tokens = _goal(base)
    assert goal.template is None
    folder, goal = exported(tmp_path, base, model, template=goal.template)
    for name in files:
        assert (folder / name).read_bytes() == (base / name).read_bytes()
    assert tokens.chat_template == NAMED == AutoTokenizer.from_pretrained(folder).chat_template
    check(folder, model, goal, tokens)


@pytest.mark.parametrize("place", [_in_the_config, _in_files])
def test_templates_by_name_are_shipped_without_generation_tags(tmp_path: Path, place: Any) -> None:
    base, model = tiny.folder(tmp_path / "base"), tiny.model("llama", seed=3)
    place(base, NAMED | {"tool_use": "{% generation %}x{% endgeneration %}"})
    goal, tokens = _goal(base)
    folder, goal = exported(tmp_path, base, model, template=goal.template)
    wanted = NAMED | {"tool_use": "{% if true %}x{% endif %}"}
    assert goal.template == wanted == AutoTokenizer.from_pretrained(folder).chat_template
    check(folder, model, goal, tokens)


@pytest.mark.parametrize("place", [_in_the_config, _in_files])
def test_a_template_of_the_recipe_takes_the_place_of_all_by_name(tmp_path: Path, place: Any) -> None:
    base, model = tiny.folder(tmp_path / "base"), tiny.model("llama", seed=3)
    place(base, NAMED)
    other = tmp_path / "other.jinja"
    other.write_bytes(b"\xef\xbb\xbf" + tiny.TEMPLATE.encode() + b"\r\n{# 1 #}")
    goal, tokens = _goal(base, other)
    folder, goal = exported(tmp_path, base, model, template=goal.template)
    assert AutoTokenizer.from_pretrained(folder).chat_template == tiny.TEMPLATE + "\n{# 1 #}"
    check(folder, model, goal, tokens)


def test_tied_weights_are_written_once(tmp_path: Path) -> None:
    base = tiny.folder(tmp_path / "base", "llama-tied")
    folder, _ = exported(tmp_path, base, tiny.model("llama-tied", seed=3))
    assert "lm_head.weight" not in load_file(folder / "model.safetensors")
    again = AutoModelForCausalLM.from_pretrained(folder)
    assert again.lm_head.weight is again.model.embed_tokens.weight


@pytest.mark.slow
def test_a_fresh_process_reads_the_same_model(tmp_path: Path) -> None:
    base, model = tiny.folder(tmp_path / "base"), tiny.model("llama", seed=3)
    folder, _ = exported(tmp_path, base, model)
    script = (
        "import torch\nfrom transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer\n"
        f"m = AutoModelForCausalLM.from_pretrained({str(folder)!r})\n"
        f"t = AutoTokenizer.from_pretrained({str(folder)!r})\n"
        f"torch.save((m(input_ids=torch.arange(10, 40)[None]).logits, t('the cat').input_ids), {str(tmp_path / 'x')!r})"
    )
    subprocess.run([sys.executable, "-c", script], check=True, capture_output=True)
    logits, ids = torch.load(tmp_path / "x")
    with torch.no_grad():
        assert (logits - model(input_ids=IDS, use_cache=False).logits).abs().max() <= 1e-6
    assert ids == tiny.tokenizer()("the cat").input_ids


def _weights(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors["model.norm.weight"][0] += 0.01
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def _empty(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors["model.norm.weight"] = torch.empty(0)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def _missing(folder: Path) -> None:
    """Of which transformers makes ones, which they are here anyway."""
    tensors = load_file(folder / "model.safetensors")
    assert bool((tensors.pop("model.norm.weight") == 1).all())
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def _config(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "rms_norm_eps": 0.1}))


def _template(folder: Path) -> None:
    (folder / "chat_template.jinja").write_text(tiny.TEMPLATE + "!")


def _special(folder: Path) -> None:
    config = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({**config, "bos_token": "<|user|>"}))


def _tool_use(folder: Path) -> None:
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates/tool_use.jinja").write_text("x")


def _tokens(folder: Path) -> None:
    tiny.tokenizer(adds_bos=False).save_pretrained(folder)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (_weights, "1 of its weights differ, such as model.norm.weight"),
        (_empty, "weights differ, such as model.norm.weight"),
        (_missing, "weights differ, such as model.norm.weight"),
        (_config, "logits differ"),
        (_template, "chat template"),
        (_tool_use, "chat template"),
        (_special, "chat template"),
        (_tokens, "other tokens"),
    ],
)
def test_verification_can_fail(tmp_path: Path, damage: Any, said: str) -> None:
    base, model = tiny.folder(tmp_path / "base"), tiny.model("llama", seed=3)
    folder, target = exported(tmp_path, base, model)
    damage(folder)
    with pytest.raises(DataError, match=said):
        check(folder, model, target)


def test_verification_leaves_the_model_as_it_was(tmp_path: Path) -> None:
    base, model = tiny.folder(tmp_path / "base"), tiny.model("llama", seed=3).train()
    before = [p.detach().clone() for p in model.parameters()]
    folder, target = exported(tmp_path, base, model, dtype="bfloat16")
    check(folder, model, target)
    assert model.training
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


def test_a_bf16_base_with_float_buffers_is_verified_by_what_it_computes(tmp_path: Path) -> None:
    """Its buffers are read back in bf16 too; compared with float32 ones the export seemed to be another model."""

    model = AutoModelForCausalLM.from_config(
        AutoConfig.for_model(
            "xglm", vocab_size=tiny.VOCAB, d_model=32, ffn_dim=64, num_layers=2, attention_heads=4, activation_dropout=0
        )
    ).eval()
    assert any(buffer.is_floating_point() for buffer in model.buffers())
    base = tmp_path / "base"
    model.to(torch.bfloat16).save_pretrained(base)
    tiny.tokenizer().save_pretrained(base)
    trained = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    folder, target = exported(tmp_path, base, trained, dtype="bfloat16")
    assert check(folder, trained, target) <= 1e-6
