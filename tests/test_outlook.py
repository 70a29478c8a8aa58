"""A run that cannot fit ends before anything is loaded; one that may not is warned of; the forecast is shown."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fulltune import engines, outlook
from fulltune.planning.engine import Crowd
from fulltune.recipe.schema import EngineSection
from tests import command, tiny


@pytest.fixture
def recipe(tmp_path: Path, llama: Path, data: Path) -> Path:
    path = tmp_path / "recipe.yaml"
    path.write_text(json.dumps(tiny.recipe(llama, data)))
    return path


@pytest.fixture
def huge(tmp_path: Path, llama: Path, data: Path) -> Path:
    """A model of a trillion parameters by its config, which is all of it that may be read."""
    folder = tmp_path / "huge"
    shutil.copytree(llama, folder)
    config = json.loads((folder / "config.json").read_text())
    sizes = {"hidden_size": 65536, "intermediate_size": 262144, "num_hidden_layers": 16, "head_dim": 16384}
    (folder / "config.json").write_text(json.dumps({**config, **sizes}))
    path = tmp_path / "huge.yaml"
    path.write_text(json.dumps(tiny.recipe(folder, data)))
    return path


def leave(monkeypatch: pytest.MonkeyPatch, available: int) -> None:
    """So many bytes of host memory."""
    monkeypatch.setattr(outlook, "available_bytes", lambda: available)


@pytest.mark.parametrize(
    "words", [["plan"], ["train"], ["train", "--dry-run"], ["train", "engine.processes=2"], ["plan", "--json"]]
)
def test_what_cannot_fit_is_refused_before_a_row_is_read(tmp_path: Path, huge: Path, words: list[str]) -> None:
    before = sorted(tmp_path.rglob("*"))
    done = command.run(words[0], huge.name, *words[1:], cwd=tmp_path)
    assert done.returncode == 4, done.stderr
    assert done.stdout == ""
    assert sorted(tmp_path.rglob("*")) == before, "nothing is written"
    what, where, mend = done.stderr.strip().splitlines()
    assert what.startswith("error: the run does not fit: it takes 1")
    assert "GiB" in what
    assert where == "where: this machine's memory"
    assert mend.startswith("mend:  a smaller model or more memory: with ")


def test_a_micro_batch_that_cannot_fit_is_refused_before_anything_is_loaded(
    tmp_path: Path, recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    leave(monkeypatch, 1 << 20)
    for words in (["plan"], ["train"], ["train", "--dry-run"]):
        done = command.run(words[0], recipe.name, *words[1:], cwd=tmp_path)
        assert done.returncode == 4, done.stderr
        assert "train.micro_tokens=" in done.stderr
        assert {path.name for path in (tmp_path / "runs/recipe").iterdir()} == {"recipe.yaml", "data", "data.json"}
    scored = command.run("evaluate", recipe.name, cwd=tmp_path)
    assert scored.returncode == 0, "what cannot be trained here may be scored"


def test_what_may_not_fit_is_warned_of_and_tried(tmp_path: Path, recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    leave(monkeypatch, 50 << 20)  # less than what libraries may take
    done = command.run("train", recipe.name, "train.steps=1", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("memory may run out: the run takes 0.0") == 1
    assert done.stderr.count("engine: single, since there is one process") == 1
    assert done.stderr.count("memory: 0.0") == 1
    leave(monkeypatch, 1 << 40)
    assert "may run out" not in command.run("train", recipe.name, "--fresh", "train.steps=1", cwd=tmp_path).stderr


def test_a_run_that_goes_on_is_asked_again(tmp_path: Path, recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    command.run("train", recipe.name, "train.steps=1", cwd=tmp_path)
    leave(monkeypatch, 1 << 10)
    done = command.run("train", recipe.name, "train.steps=2", cwd=tmp_path)
    assert done.returncode == 4, done.stderr
    assert (tmp_path / "runs/recipe/record.json").exists(), "what was done is left as it is"


def test_micro_batches_are_made_to_fit_where_the_recipe_leaves_their_size(
    tmp_path: Path, recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the whole memory of the machine: what is free now would give another plan every time."""

    def planned(*words: str) -> dict[str, Any]:
        values: dict[str, Any] = json.loads(
            command.run("plan", recipe.name, "--fresh", "--json", *words, cwd=tmp_path).stdout
        )
        return values

    recipe.write_text(json.dumps({**json.loads(recipe.read_text()), "memory": {"checkpointing": "none"}}))
    free, here = planned(), outlook.machine()
    high = sum(part["high"] for part in free["memory"]["parts"])
    assert not any("may not fit" in note for note in free["notes"])
    monkeypatch.setattr(outlook, "machine", lambda: replace(here, bytes_per_device=high - 1))
    less = planned()
    assert less["micro_tokens"] < free["micro_tokens"]
    assert sum(part["high"] for part in less["memory"]["parts"]) < high
    assert less["notes"][-1] == (
        f"micro-batches of up to {less['micro_tokens']:,} tokens: {free['micro_tokens']:,} may not fit"
    )
    assert planned("train.micro_tokens=4096")["micro_tokens"] == 4096, "what is asked for is done"
    assert command.run("evaluate", "runs/recipe-2", cwd=tmp_path).returncode == 0
    assert json.loads((tmp_path / "runs/recipe-2/plan.json").read_text()) == less


def test_a_budget_in_place_of_all_memory_decides_what_is_made_again(
    tmp_path: Path, recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Through a whole run, which takes what the plan chose, and goes on with it; another budget is decided anew."""
    asked, real = [], engines.checkpoint_blocks

    def checkpointing(model: Any, *, keep_products: bool) -> None:
        asked.append(keep_products)
        real(model, keep_products=keep_products)

    monkeypatch.setattr(engines, "checkpoint_blocks", checkpointing)
    asked_for = json.loads(recipe.read_text())
    asked_for["train"]["micro_examples"] = 8
    recipe.write_text(json.dumps(asked_for))
    free = command.run("plan", recipe.name, "--json", cwd=tmp_path)
    plan = json.loads(free.stdout)
    assert plan["checkpointing"] == "none"
    assert not any("checkpointing" in note for note in plan["notes"])
    budget = (sum(part["high"] for part in plan["memory"]["parts"]) - 1) / 2**30
    words = ["train", recipe.name, f"memory.budget_gb={budget}"]
    done = command.run(*words, "train.steps=1", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "note: checkpointing: selective, since without it the run may take 0." in done.stderr
    assert asked == [True]
    kept = tmp_path / "runs/recipe/plan.json"
    assert json.loads(kept.read_text())["checkpointing"] == "selective"
    assert command.run(*words, "train.steps=2", cwd=tmp_path).returncode == 0
    assert json.loads(kept.read_text())["checkpointing"] == "selective"
    assert command.run("train", recipe.name, "train.steps=3", cwd=tmp_path).returncode == 0
    assert json.loads(kept.read_text())["checkpointing"] == "none"
    assert asked == [True, True]
    refused = command.run("plan", recipe.name, "memory.budget_gb=0.0001", "--fresh", cwd=tmp_path)
    assert refused.returncode == 4, refused.stderr
    assert "where: memory.budget_gb\n" in refused.stderr


def test_the_plan_shows_the_forecast_by_part(tmp_path: Path, recipe: Path) -> None:
    done = command.run("plan", recipe.name, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    shown = dict(line.split("  ", 1) for line in done.stdout.splitlines())
    assert shown["memory"].strip().endswith("by single")
    assert {name.removeprefix("memory: ") for name in shown if name.startswith("memory: ")} == {
        "weights", "gradients", "moments", "activations", "logits", "overhead",
    }  # fmt: skip
    asked = json.loads(command.run("plan", recipe.name, "engine.processes=2", "--fresh", "--json", cwd=tmp_path).stdout)
    memory = asked["memory"]
    assert (memory["engine"], memory["processes"]) == ("ddp", 2)
    named = {part["name"]: (part["low"], part["high"]) for part in memory["parts"]}
    size = sum(p.numel() for p in tiny.model().parameters())
    assert named["weights"] == (4 * size, 4 * size)
    assert named["moments"] == (8 * size, 8 * size)
    assert json.loads((tmp_path / "runs/recipe-2/plan.json").read_text())["memory"] == memory
    assert command.run("evaluate", "runs/recipe-2", cwd=tmp_path).returncode == 0
    assert json.loads((tmp_path / "runs/recipe-2/plan.json").read_text())["memory"] == memory, "it is not asked then"


def test_how_many_processes_there_are_and_how_many_of_them_here(monkeypatch: pytest.MonkeyPatch) -> None:
    assert outlook.crowd(EngineSection(processes=3)) == Crowd(3, 3)
    assert outlook.crowd(EngineSection(name="single")) == Crowd(1, 1)
    for name, value in {"RANK": "0", "WORLD_SIZE": "8", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    assert outlook.crowd(EngineSection()) == Crowd(8, 2)
