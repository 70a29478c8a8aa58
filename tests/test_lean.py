"""Commands that only prepare do without torch, which changes no byte of what they make."""

import gc
import importlib
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

import fulltune
from fulltune import lean
from fulltune.base import torchless
from tests import tiny

COMMAND = (
    "import json, sys\nfrom fulltune.cli import main\nsys.argv = ['fulltune', *sys.argv[1:]]\ncode = main()\n"
    "there = [name for name, module in sys.modules.items() if module is not None]\n"
    "print(json.dumps([code, there]), file=sys.stderr)"
)
TRAINS = {"torch", "fulltune.stages", "fulltune.engines", "fulltune.training.loop", "fulltune.objectives"}


def loaded(folder: Path, *words: str) -> set[str]:
    """The modules that a command has loaded, in a process of its own, by its end."""
    done = subprocess.run([sys.executable, "-c", COMMAND, *words], cwd=folder, capture_output=True, text=True)
    code, there = json.loads(done.stderr.splitlines()[-1])
    assert code == 0, done.stderr
    assert "PyTorch" not in done.stderr
    return set(there)


def written(folder: Path, llama: Path, rows: Path, /, **sections: Any) -> Path:
    path = folder / "recipe.yaml"
    path.write_text(json.dumps(tiny.recipe(llama, rows, **sections)))
    return path


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_prepare_and_inspect_load_no_torch_and_make_the_same_bytes(tmp_path: Path, llama: Path, data: Path) -> None:
    recipe = written(tmp_path, llama, data)
    fulltune.prepare(recipe, out=tmp_path / "here")
    assert "torch" in sys.modules and not torchless.begun()
    assert loaded(tmp_path, "prepare", str(recipe), "--out", "there") & TRAINS == set()
    assert contents(tmp_path / "there/data") == contents(tmp_path / "here/data")
    assert (tmp_path / "there/data.json").read_bytes() == (tmp_path / "here/data.json").read_bytes()
    assert loaded(tmp_path, "inspect", str(recipe), "--out", "there") & TRAINS == set()


@pytest.mark.parametrize(
    "sections",
    [
        {"model": {"path": "somebody/model", "trust_remote_code": "0" * 40}},
        {"train": {"objective": "mine:loss"}},
        {"optim": {"name": "lion"}},
        {"optim": {"schedule": "package.mine:shape"}},
        {"optim": {"pulls": ["mine:pull"]}},
        {"data": {"train": [{"path": "rows.jsonl", "format": "package.mine:rows"}]}},
        {"evaluate": {"suites": [{"use": "gsm8k", "data": "test.jsonl"}]}},
    ],
    ids=str,
)
def test_what_may_want_torch_gets_it(
    tmp_path: Path, llama: Path, data: Path, monkeypatch: pytest.MonkeyPatch, sections: dict[str, Any]
) -> None:
    begun: list[bool] = []
    monkeypatch.setattr(torchless, "begin", lambda: begun.append(True))
    lean.begin(written(tmp_path, llama, data), {})
    assert begun == [True]
    lean.begin(written(tmp_path, llama, data, **sections), {})
    assert begun == [True], "it was done without"


def test_a_command_whose_recipe_names_an_optimizer_finds_it(tmp_path: Path, llama: Path, data: Path) -> None:
    recipe = written(tmp_path, llama, data)
    assert "torch" in loaded(tmp_path, "prepare", str(recipe), "optim.name=lion", "--out", "run")


def test_who_has_torch_keeps_it() -> None:
    torchless.begin()
    assert sys.modules["torch"] is torch
    assert not torchless.begun()


def test_processes_beside_one_that_does_without_do_so_too(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.without_torch", str(tmp_path)], capture_output=True, text=True, check=True
    )
    first, begun = done.stdout.split()
    assert begun == "True"
    told = [path.read_text().split() for path in tmp_path.iterdir()]
    assert len(told) == 5
    assert {number for number, _ in told} - {first}, "others worked, too"
    assert {there for _, there in told} == {"False"}


def test_the_collector_rests_while_stages_load_and_works_again(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[bool] = []

    def loading(name: str) -> ModuleType:
        seen.append(gc.isenabled())
        return importlib.import_module(name)

    monkeypatch.setattr(fulltune, "import_module", loading)
    assert callable(fulltune.plan) and callable(fulltune.prepare)
    assert seen == [False, False]
    assert gc.isenabled()
    gc.disable()
    try:
        assert callable(fulltune.plan)
        assert not gc.isenabled(), "who searches for no cycles goes on so"
    finally:
        gc.enable()
