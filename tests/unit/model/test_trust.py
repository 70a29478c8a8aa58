"""What a model folder of others may do: its code runs if it is the code that was read, its pickles never run."""

import json
import os
import shlex
import shutil
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file

import fulltune
from fulltune.base.errors import DataError, FulltuneError, RecipeError
from fulltune.model.folder import load_config, load_tokenizer, section_of
from fulltune.model.load import empty_model, load_model
from fulltune.model.trust import digest, options, revision, weights
from fulltune.recipe.load import load_recipe
from fulltune.recipe.schema import ModelSection
from tests import tiny

COMMIT = "0123456789abcdef0123456789abcdef01234567"
OWN = """
from transformers import LlamaConfig, LlamaForCausalLM
import pathlib; pathlib.Path({canary!r}).touch()
class OwnConfig(LlamaConfig):
    model_type = "own"
class Own(LlamaForCausalLM):
    config_class = OwnConfig
"""
ACTS = (load_config, load_tokenizer, empty_model, load_model)


class Canary:
    """Unpickling it leaves a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


def section(path: Path | str, **more: Any) -> ModelSection:
    return ModelSection(path=str(path), **more)


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model whose classes lie in its folder, and which leaves the file `ran` when they are imported."""
    monkeypatch.setattr(transformers.dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr(sys, "path", list(sys.path))
    folder = tiny.folder(tmp_path / "own")
    (folder / "own.py").write_text(OWN.format(canary=str(tmp_path / "ran")))
    return mapped(folder, {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.Own"}, model_type="own")


def mapped(folder: Path, auto_map: Any, name: str = "config.json", **more: Any) -> Path:
    values = json.loads((folder / name).read_text())
    (folder / name).write_text(json.dumps({**values, **more, "auto_map": auto_map}))
    return folder


def test_landmine_M3_code_of_a_model_is_refused_and_the_refusal_says_what_would_allow_it(
    own: Path, tmp_path: Path
) -> None:
    for act in ACTS:
        with pytest.raises(RecipeError, match="not run unasked") as caught:
            act(section(own))
        assert f"model.trust_remote_code={digest(own)}" in caught.value.faults[0].mend
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json"])
@pytest.mark.parametrize("auto_map", [{"AutoTokenizer": [None, "x.Evil"]}, {"AutoConfig": "x.Evil"}, ["x.Evil", None]])
def test_landmine_M3_a_model_that_transformers_knows_is_refused_too(tmp_path: Path, name: str, auto_map: Any) -> None:
    """Whose class is used would hang on the version of transformers."""
    folder = mapped(tiny.folder(tmp_path / "m"), auto_map, name)
    for act in ACTS:
        with pytest.raises(RecipeError, match="not run unasked"):
            act(section(folder))


def test_code_that_was_read_runs_through_a_whole_run_and_in_its_result(
    own: Path, tmp_path: Path, data: Path, caplog: pytest.LogCaptureFixture
) -> None:
    trusted = digest(own)
    asked = tiny.recipe(own, data, model={"path": str(own), "trust_remote_code": trusted})
    record = fulltune.train(asked, out=tmp_path / "run")
    assert (tmp_path / "ran").exists()
    assert record.model.architecture == "Own"
    said = f"Python code that the model brings runs: {own} at {trusted}"
    assert [entry.getMessage() for entry in caplog.records].count(said) == 1
    assert any(trusted in note for note in record.plan.notes)
    result = section_of(record.result, section(own, trust_remote_code=trusted))
    assert result.trust_remote_code == digest(Path(record.result))
    assert type(load_model(result)).__name__ == "Own"
    assert set(fulltune.evaluate(tmp_path / "run")) == {"base", "result"}


def test_code_that_changed_after_it_was_read_is_refused_again(own: Path, tmp_path: Path) -> None:
    trusted = section(own, trust_remote_code=digest(own))
    for change in (
        lambda: (own / "own.py").write_text(OWN.format(canary=str(tmp_path / "ran")) + "\n"),
        lambda: (own / "new.py").write_text(""),
        lambda: (own / "own.py").rename(own / "renamed.py"),
    ):
        change()
        with pytest.raises(RecipeError, match="not that which the recipe trusts") as caught:
            load_model(trusted)
        assert digest(own) in caught.value.faults[0].mend
        trusted = section(own, trust_remote_code=digest(own))
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("name", ["/evil.Evil", "../evil.Evil", "other/model--evil.Evil", "sub/evil.Evil"])
def test_code_outside_of_the_model_is_not_covered_by_its_digest(own: Path, tmp_path: Path, name: str) -> None:
    evil = OWN.format(canary=str(tmp_path / "ran")).replace("Own", "Evil")
    for place in (tmp_path, own / "sub"):
        place.mkdir(exist_ok=True)
        (place / "evil.py").write_text(evil)
    mapped(own, {"AutoConfig": f"{tmp_path}{name}" if name.startswith("/") else name})
    with pytest.raises(RecipeError, match="lies elsewhere"):
        load_config(section(own, trust_remote_code=digest(own)))
    assert not (tmp_path / "ran").exists()


def test_trust_in_one_model_is_none_in_another(own: Path, tmp_path: Path) -> None:
    trusted = section(own, trust_remote_code=digest(own))
    other = shutil.copytree(own, tmp_path / "other")
    assert section_of(other, trusted).trust_remote_code == digest(own)
    (other / "own.py").write_text(OWN.format(canary=str(tmp_path / "ran")) + "x = 1\n")
    assert section_of(other, trusted).trust_remote_code is False
    assert section_of("org/name", trusted).trust_remote_code is False
    with pytest.raises(RecipeError, match="not run unasked"):
        load_model(section_of(other, trusted))
    assert not (tmp_path / "ran").exists()


def test_trust_without_code_is_a_setting_without_effect(llama: Path) -> None:
    with pytest.raises(RecipeError, match="brings no Python code"):
        load_config(section(llama, trust_remote_code=COMMIT))


@pytest.mark.parametrize(
    "value", [True, "true", "main", COMMIT[:39], COMMIT.upper(), COMMIT + "0", f"{COMMIT}\n", 1, None]
)
def test_code_is_trusted_by_its_commit_and_not_by_a_yes(value: Any) -> None:  # fmt: skip
    with pytest.raises(RecipeError, match="name the commit whose code you read") as caught:
        load_recipe({"model": {"path": "org/name", "trust_remote_code": value}, "data": {"train": "x.jsonl"}})
    assert "model.trust_remote_code" in str(caught.value)


def test_code_and_weights_of_a_hub_id_are_of_one_commit() -> None:
    hub = section("org/name", trust_remote_code=COMMIT)
    assert options(hub) == {"revision": COMMIT, "trust_remote_code": True, "code_revision": COMMIT}
    assert revision(hub) == COMMIT
    assert revision(section("org/name", trust_remote_code=COMMIT, revision=COMMIT)) == COMMIT
    assert options(section("org/name", revision="v1")) == {"revision": "v1", "trust_remote_code": False}
    with pytest.raises(RecipeError, match="another commit than model.revision"):
        load_recipe(
            {
                "model": {"path": "org/name", "trust_remote_code": COMMIT, "revision": "main"},
                "data": {"train": "x.jsonl"},
            }
        )


# --- pickles


def pickled(folder: Path, values: Any = None, name: str = "pytorch_model.bin") -> Path:
    """The folder with its weights, or something else, in a pickle in place of safetensors."""
    torch.save(load_file(folder / "model.safetensors") if values is None else values, folder / name)
    (folder / "model.safetensors").unlink()
    return folder


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "consolidated.00.pth", "model.ckpt", "weights.pkl"])
def test_weights_in_pickles_are_refused_before_anything_is_done(tmp_path: Path, name: str) -> None:
    folder = pickled(tiny.folder(tmp_path / "it's m"), name=name)
    for act in ACTS:
        with pytest.raises(DataError, match=f"no safetensors, and {name} is a pickle") as caught:
            act(section(folder))
        assert "model.allow_pickle=true" in caught.value.faults[0].mend
    assert caught.value.exit_code == 3


@pytest.mark.slow
def test_the_command_of_the_refusal_converts_them(tmp_path: Path) -> None:
    folder = pickled(tiny.folder(tmp_path / "it's m"))
    with pytest.raises(DataError) as caught:
        load_config(section(folder))
    command = caught.value.faults[0].mend.partition("(")[2].rpartition("); or")[0]
    python, *rest = shlex.split(command)
    assert python == "python"
    subprocess.run([sys.executable, *rest], check=True, capture_output=True)
    expected = tiny.model().state_dict()
    assert all(torch.equal(p, expected[name]) for name, p in load_model(section(folder)).state_dict().items())


def test_pickles_that_are_allowed_are_read_and_safetensors_go_first(tmp_path: Path) -> None:
    folder = pickled(tiny.folder(tmp_path / "m"))
    expected = tiny.model().state_dict()
    loaded = load_model(section(folder, allow_pickle=True))
    assert all(torch.equal(p, expected[name]) for name, p in loaded.state_dict().items())
    both = tiny.folder(tmp_path / "both")
    torch.save(tiny.model(seed=1).state_dict(), both / "pytorch_model.bin")
    for allowed in (False, True):
        loaded = load_model(section(both, allow_pickle=allowed))
        assert all(torch.equal(p, expected[name]) for name, p in loaded.state_dict().items())


@pytest.mark.parametrize("allowed", [False, True])
def test_landmine_M1_a_pickle_of_weights_never_runs(tmp_path: Path, allowed: bool) -> None:
    """In both of the forms that torch has written: a zip file, and a bare pickle."""
    canary = tmp_path / "ran"
    for form in (True, False):
        folder = tiny.folder(tmp_path / f"m{form}")
        (folder / "model.safetensors").unlink()
        torch.save({"w": Canary(canary)}, folder / "pytorch_model.bin", _use_new_zipfile_serialization=form)
        with pytest.raises(DataError):
            load_model(section(folder, allow_pickle=allowed))
        tiny.model().save_pretrained(folder)  # safetensors beside it, which its config passes over
        mapped(folder, None, transformers_weights="adapter_model.bin")
        (folder / "pytorch_model.bin").rename(folder / "adapter_model.bin")
        with pytest.raises(DataError, match="cannot be loaded" if allowed else r"adapter_model\.bin is a pickle"):
            load_model(section(folder, allow_pickle=allowed))
    assert not canary.exists()
    with suppress(FileNotFoundError):
        torch.load(folder / "adapter_model.bin", weights_only=False)
    assert canary.exists(), "the canary could not have sung"


def test_hub_ids_get_no_pickles_either() -> None:
    assert weights(section("org/name")) == {"use_safetensors": True, "weights_only": True}
    assert weights(section("org/name", allow_pickle=True)) == {"use_safetensors": None, "weights_only": True}


def test_landmine_M1_no_file_of_a_model_folder_runs(tmp_path: Path) -> None:
    """Each file in turn, and every name that others pickle under, is a pickle that would leave a folder."""
    canary = tmp_path / "ran"
    base = tiny.folder(tmp_path / "base")
    names = [path.name for path in base.iterdir()]
    planted = ["training_args.bin", "optimizer.pt", "rng_state.pth", "scheduler.pt", "scaler.pt", "vhead.pkl", "x.ckpt"]
    for name in [*names, *planted]:
        folder = shutil.copytree(base, tmp_path / name.replace(".", "_"))
        torch.save(Canary(canary), folder / name)
        for act in ACTS:
            with suppress(FulltuneError):
                act(section(folder, allow_pickle=True))
        if name in planted:
            load_model(section(folder))
    assert not canary.exists()
