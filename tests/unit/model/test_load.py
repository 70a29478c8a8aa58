"""Loading models of others: float32 whatever the file holds, and nothing missing in silence."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from fulltune.base.errors import DataError, RecipeError
from fulltune.model.folder import load_config, load_tokenizer, require_rows, section_of, stop_ids, tokenizer_digest
from fulltune.model.load import empty_model, load_model, stored_dtype
from fulltune.recipe.schema import ModelSection
from tests import tiny


def section(path: Path | str, **more: object) -> ModelSection:
    return ModelSection(path=str(path), **more)  # type: ignore[arg-type]


def change(folder: Path, act: object) -> Path:
    """Change the weights file of a model folder."""
    tensors = load_file(folder / "model.safetensors")
    act(tensors)  # type: ignore[operator]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def header(text: str, encoding: str = "utf-8") -> bytes:
    """A safetensors file that consists of this header."""
    return len(text.encode(encoding)).to_bytes(8, "little") + text.encode(encoding)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_weights_are_float32(tmp_path: Path, dtype: torch.dtype) -> None:
    model = tiny.model("llama").to(dtype)
    model.save_pretrained(tmp_path)
    loaded = load_model(section(tmp_path))
    assert {p.dtype for p in loaded.parameters()} == {torch.float32}
    for (name, p), (_, q) in zip(model.named_parameters(), loaded.named_parameters(), strict=True):
        assert torch.equal(p.float(), q), name
    assert not loaded.training


def test_tied_weights_stay_tied(tmp_path: Path) -> None:
    loaded = load_model(section(tiny.folder(tmp_path / "m", "llama-tied")))
    assert loaded.lm_head.weight is loaded.model.embed_tokens.weight


def test_missing_wrong_and_broken_weights_are_named(tmp_path: Path) -> None:
    name = "model.layers.1.mlp.up_proj.weight"
    missing = change(tiny.folder(tmp_path / "a"), lambda tensors: tensors.pop(name))
    with pytest.raises(DataError, match=f"missing: {name}"):
        load_model(section(missing))
    shorter = change(tiny.folder(tmp_path / "b"), lambda t: t.update({name: t[name][:-4].clone()}))
    with pytest.raises(DataError, match=rf"{name}: the file has shape \(60, 32\), the config wants \(64, 32\)"):
        load_model(section(shorter))
    broken = change(tiny.folder(tmp_path / "c"), lambda t: t[name][0, 0:2].fill_(float("nan")))
    with pytest.raises(DataError, match=f"{name}: 2 values are not finite"):
        load_model(section(broken))


def test_a_file_that_was_cut_off_is_named_with_its_sizes(tmp_path: Path) -> None:
    folder = tiny.folder(tmp_path / "m")
    path = folder / "model.safetensors"
    whole = path.read_bytes()
    for length in (len(whole) - 10, 100, 4):
        path.write_bytes(whole[:length])
        with pytest.raises(DataError, match=f"has {length:,} bytes, its header says"):
            load_model(section(folder))


@pytest.mark.parametrize(
    "content",
    [
        bytes(1000),
        header("[]"),
        header("null"),
        header("5"),
        header('{"a": 5}'),
        header('{"a": {}}'),
        header('{"a": {"dtype": 5, "shape": [1], "data_offsets": [0, 4]}}'),
        header('{"a": {"dtype": "F32", "shape": 1, "data_offsets": [0, 4]}}'),
        header('{"a": {"dtype": "F32", "shape": ["1"], "data_offsets": [0, 4]}}'),
        header('{"a": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}}'),
        header('{"a": {"dtype": "F32", "shape": [1], "data_offsets": [0]}}'),
        header('{"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, "4"]}}'),
        header('{"a": {"dtype": "F32"'),
        header("[" * 100_000),
        header("\xff" * 9, "latin-1"),
    ],
    ids=range(15),
)
def test_a_file_that_is_no_safetensors_file_is_named_before_any_training(tmp_path: Path, content: bytes) -> None:
    """A download that failed may leave a file of zeros, as long as it should be."""
    folder = tiny.folder(tmp_path / "m")
    (folder / "model.safetensors").write_bytes(content)
    for act in (load_config, empty_model, stored_dtype, load_model):
        with pytest.raises(DataError, match="does not begin with the header") as caught:
            act(section(folder))
        assert caught.value.faults[0].where == str(folder / "model.safetensors")


NOT_OBJECTS = ["[]", "null", "5", '{"eos_', "", "[" * 100_000, "\0" * 99]


@pytest.mark.parametrize(
    "name", ["config.json", "tokenizer_config.json", "generation_config.json", "model.safetensors.index.json"]
)
def test_a_file_that_is_no_json_object_is_named_before_any_training(tmp_path: Path, name: str) -> None:
    folder = tiny.folder(tmp_path / "m")
    for content in [*(text.encode() for text in NOT_OBJECTS), b"\xff\xfe{\0}\0"]:
        (folder / name).write_bytes(content)
        for act in (load_tokenizer, empty_model, load_model):
            with pytest.raises(DataError, match=r"is no JSON|no JSON object") as caught:
                act(section(folder))
            assert caught.value.faults[0].where == str(folder / name)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"model_type": "t5"}, "Unrecognized configuration class"),
        ({"model_type": "vit"}, "Unrecognized configuration class"),
        ({"hidden_act": "swishh"}, "KeyError: 'swishh'"),
        ({"rope_parameters": {"rope_type": "nope"}}, "KeyError: 'nope'"),
        ({"hidden_size": "abc"}, "hidden_size"),
        ({"hidden_size": None}, "hidden_size"),
        ({"hidden_size": -32}, "negative dimension"),
        ({"num_attention_heads": 5}, "not a multiple of the number of attention"),
        ({"num_attention_heads": 0}, "ZeroDivisionError"),
        ({"dtype": "float99"}, "float99"),
        ({"model_type": 5}, "model type `5`"),
        ({"text_config": 5}, "AttributeError"),
    ],
)
def test_a_config_of_no_language_model_is_told_when_planning(
    tmp_path: Path, values: dict[str, object], said: str
) -> None:
    folder = tiny.folder(tmp_path / "m")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | values))
    for act in (empty_model, load_model):
        with pytest.raises(DataError, match=f"(?s)the (model|config) cannot be loaded.*{said}") as caught:
            act(section(folder))
        assert caught.value.faults[0].where == str(folder)


def test_a_fault_of_the_config_is_not_called_one_of_the_tokenizer(tmp_path: Path) -> None:
    folder = tiny.folder(tmp_path / "m")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"hidden_size": "abc"}))
    with pytest.raises(DataError, match="the config cannot be loaded"):
        load_tokenizer(section(folder))


def changed(name: str, **values: object) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_text(json.dumps(json.loads((folder / name).read_text()) | values))


def written(name: str, text: str) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_text(text, encoding="latin-1")


@pytest.mark.parametrize(
    "damage",
    [
        written("tokenizer.json", "{}"),
        written("tokenizer.json", "[]"),
        written("tokenizer.json", ""),
        changed("tokenizer.json", model={"type": "Nope"}),
        changed("tokenizer.json", pre_tokenizer={"type": "Nope"}),
        changed("tokenizer.json", added_tokens={}),
        changed("tokenizer_config.json", eos_token={"content": "</s>"}),
        changed("tokenizer_config.json", eos_token=5),
        changed("tokenizer_config.json", chat_template=["a"]),
        changed("tokenizer_config.json", chat_template=[{}]),
        changed("tokenizer_config.json", tokenizer_class=5),
        changed("tokenizer_config.json", added_tokens_decoder=5),
        written("added_tokens.json", "[5]"),
        written("chat_template.jinja", "\xe9"),
    ],
    ids=range(14),
)
def test_a_tokenizer_that_cannot_be_read_is_told(tmp_path: Path, damage: Callable[[Path], object]) -> None:
    folder = tiny.folder(tmp_path / "m")
    (folder / "chat_template.jinja").unlink()
    damage(folder)
    with pytest.raises(DataError, match="the tokenizer cannot be loaded") as caught:
        load_tokenizer(section(folder))
    assert caught.value.faults[0].where == str(folder)
    assert "\n" not in caught.value.faults[0].what


def test_folders_that_are_no_models(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="no such folder"):
        load_model(section(tmp_path / "none"))
    with pytest.raises(DataError, match=r"config\.json"):
        load_tokenizer(section(tmp_path))
    model = tiny.model("llama")
    model.save_pretrained(tmp_path)
    with pytest.raises(DataError, match=r"no tokenizer") as caught:
        load_tokenizer(section(tmp_path))
    assert "tokenizer.json" in caught.value.faults[0].mend
    (tmp_path / "config.json").write_text('{"model_type": "nonsense"}')
    with pytest.raises(DataError, match="cannot be loaded"):
        load_config(section(tmp_path))


def test_a_tokenizer_larger_than_the_embedding_is_named(tmp_path: Path) -> None:
    tokens = tiny.tokenizer()
    model = tiny.model("llama")
    require_rows(model, tokens, "m")
    tokens.add_special_tokens({"additional_special_tokens": ["<|a|>", "<|b|>"]})
    with pytest.raises(DataError, match=r"2 tokens .* 300 rows.*'<\|a\|>' \(300\), '<\|b\|>' \(301\)"):
        require_rows(model, tokens, "m")
    require_rows(tiny.model("llama", vocab=320), tokens, "m")


def test_the_empty_model_has_the_shape_and_no_weights(tmp_path: Path) -> None:
    folder = tiny.folder(tmp_path / "m")
    empty, full = empty_model(section(folder)), load_model(section(folder))
    assert [(n, p.shape) for n, p in empty.named_parameters()] == [(n, p.shape) for n, p in full.named_parameters()]
    assert all(p.is_meta for p in empty.parameters())


def test_the_digest_covers_the_vocabulary_and_special_tokens() -> None:
    one, other = tiny.tokenizer(), tiny.tokenizer()
    assert tokenizer_digest(one) == tokenizer_digest(other)
    other.add_tokens(["xyz"])
    assert tokenizer_digest(one) != tokenizer_digest(other)
    assert tokenizer_digest(one) != tokenizer_digest(tiny.tokenizer(adds_bos=False))
    assert tokenizer_digest(one) != tokenizer_digest(tiny.tokenizer(pad=None))


def test_attention_can_be_chosen(tmp_path: Path) -> None:
    folder = tiny.folder(tmp_path / "m")
    assert load_model(section(folder, attention="eager")).config._attn_implementation == "eager"


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_the_number_format_on_disk_is_that_of_the_files(tmp_path: Path, dtype: str) -> None:
    """A config may say another one, or none."""
    folder = tiny.folder(tmp_path / "m")
    tiny.model("llama").to(vars(torch)[dtype]).save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    config.pop("dtype", None)
    (folder / "config.json").write_text(json.dumps(config))
    assert stored_dtype(section(folder)) == dtype
    (folder / "model.safetensors").unlink()
    assert stored_dtype(section(folder)) is None


def test_quantised_weights_are_refused(tmp_path: Path) -> None:
    folder = tiny.folder(tmp_path / "m")
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "fp8"}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(DataError, match="quantised"):
        load_model(section(folder))


def test_a_name_that_is_a_folder_here_but_not_beside_the_recipe_is_asked_about(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny.folder(tmp_path / "gpt2")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RecipeError, match="no folder beside the recipe"):
        load_config(section("gpt2"))


def test_a_model_by_its_name_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny.folder(tmp_path / "tuned")
    monkeypatch.chdir(tmp_path)
    like = ModelSection(path="some/base", revision="abc", attention="eager")
    assert section_of(Path("tuned")).path == str(tmp_path / "tuned")
    here = section_of("tuned", like)
    assert (here.path, here.revision, here.attention) == (str(tmp_path / "tuned"), None, "eager")
    hub = section_of("other/model", like)
    assert (hub.path, hub.revision) == ("other/model", None)


def _say(path: Path, **values: object) -> None:
    path.write_text(json.dumps({**(json.loads(path.read_text()) if path.exists() else {}), **values}))


def test_stop_tokens_are_those_of_the_generation_config_or_else_of_the_config(llama: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(llama, tmp_path / "m")
    config, generation = folder / "config.json", folder / "generation_config.json"
    _say(config, eos_token_id=5)
    for named, wanted in ((2, (2,)), ([6, 3, 6], (3, 6)), (None, ())):
        _say(generation, eos_token_id=named)
        assert stop_ids(section(folder)) == wanted
    generation.unlink()
    assert stop_ids(section(folder)) == (5,)
    _say(config, eos_token_id=[5, 4])
    assert stop_ids(section(folder)) == (4, 5)
    values = {key: value for key, value in json.loads(config.read_text()).items() if key != "eos_token_id"}
    config.write_text(json.dumps(values))
    assert stop_ids(section(folder)) == ()
    _say(config, text_config={"eos_token_id": 7})
    assert stop_ids(section(folder)) == (7,)


@pytest.mark.parametrize("named", ["</s>", [2, None], -1, True, {"a": 1}])
def test_stop_tokens_that_are_none_are_named(llama: Path, tmp_path: Path, named: object) -> None:
    folder = shutil.copytree(llama, tmp_path / "m")
    _say(folder / "generation_config.json", eos_token_id=named)
    with pytest.raises(DataError, match="eos_token_id is") as caught:
        stop_ids(section(folder))
    assert caught.value.faults[0].where == str(folder / "generation_config.json")
