"""`fulltune sweep`: trials are ordinary runs, ranked by what was held out, gone on with; the best is written down."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fulltune
from fulltune import trying
from fulltune.base.errors import CheckpointError, Interrupted, RecipeError
from fulltune.base.sweeps import Sweep
from fulltune.data.store import INDEX, TOKENS, Store
from fulltune.recipe.load import load_recipe
from fulltune.recipe.write import as_values
from fulltune.training.journal import read
from tests import command, tiny
from tests.conftest import ROOT

pytest.importorskip("optuna")
COMMENTED = """# Mine.
model:
  path: {model}
data:
  train: rows.jsonl  # forty of them
  heldout: 0.2
  test: 0.2
  max_length: 256
  retention: kept.jsonl
train: {{steps: 4, batch_examples: 8, precision: float32, max_skipped: 1}}
optim:
  # the rate
  lr: 1e-3
evaluate: {{every: 2, samples: 1, sample_tokens: 2}}
checkpoint: {{every: 2}}
"""
RUINED = 2**30
"""No token of any model."""


def place(folder: Path, model: Path) -> Path:
    """A recipe with comments, and its data beside it."""
    tiny.jsonl(folder / "rows.jsonl", tiny.rows(40))
    tiny.jsonl(folder / "kept.jsonl", [{"text": row["completion"]} for row in tiny.rows(8, seed=5)])
    path = folder / "recipe.yaml"
    path.write_text(COMMENTED.format(model=model))
    return path


def ruin(data: Path) -> None:
    """Put tokens that no model has in place of those of data.test; the shards hold those of other splits too."""
    shards = [data / "test" / shard["folder"] for shard in json.loads((data / "test/shards.json").read_text())]
    for example in np.fromfile(data / "test/examples.bin", INDEX):
        ids = np.memmap(shards[example["shard"]] / "ids.bin", TOKENS["ids"], mode="r+")
        ids[example["start"] : example["start"] + example["length"]] = RUINED


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory, llama: Path) -> tuple[Path, Path, Sweep]:
    """The recipe, the folder, and the sweep: one rate diverges. Made in two goes, the test rows ruined between."""
    folder = tmp_path_factory.mktemp("swept")
    recipe = place(folder, llama)
    asked: dict[str, Any] = {"over": ["optim.lr=1e-4,3e-3,1e30"], "out": folder / "out"}
    first = fulltune.sweep(recipe, budget=1, **asked)
    assert [one.state for one in first.trials] == ["done"]
    ruin(folder / "out/prepared/data")
    return recipe, folder / "out", fulltune.sweep(recipe, budget=3, **asked)


@pytest.mark.slow
def test_trials_are_ranked_by_what_was_held_out(swept: tuple[Path, Path, Sweep]) -> None:
    _, folder, made = swept
    assert [(one.values["optim.lr"], one.state, one.rank) for one in made.trials] == [
        (3e-3, "done", 1),
        (1e-4, "done", 2),
        (1e30, "failed", None),
    ]
    best, second, failed = made.trials
    assert best.score is not None and second.score is not None and best.score < second.score < made.before[made.by]
    assert "exit code 5" in failed.reason
    record = json.loads(Path(best.folder, "record.json").read_text())
    (report,) = [one for one in record["evaluations"] if one["step"] == record["result_step"]]
    assert (best.score, best.retention) == (report["scores"]["heldout.loss"], report["scores"]["retention.loss"])
    assert best.tokens == record["progress"]["tokens"]
    assert json.loads((folder / "result.json").read_text())["trials"][0]["score"] == best.score
    assert "1 above it failed" in str(made.advice) or "too few" in str(made.advice)


@pytest.mark.slow
def test_test_data_are_never_read(swept: tuple[Path, Path, Sweep]) -> None:
    """Its tokens were overwritten by ones that no model has: whoever reads them fails."""
    _, folder, made = swept
    for one in made.trials:
        run = Path(one.folder)
        store = Store(run / "data/test", [("rows.jsonl",)])
        assert len(store) > 2 and all((store[n].ids == RUINED).all() for n in range(len(store))), "linked, not anew"
        names = {name for line in read(run / "journal.jsonl", "evaluation") for name in line["scores"]}
        assert {name.partition(".")[0] for name in names} == {"heldout", "retention"}
    with pytest.raises(RecipeError, match="not looked at"):
        fulltune.sweep(swept[0], over=["optim.lr=1e-4,1e-3"], budget=1, by="test.loss", out=folder.parent / "x")


@pytest.mark.slow
def test_the_best_recipe_is_the_one_that_ran_with_its_comments(swept: tuple[Path, Path, Sweep], tmp_path: Path) -> None:
    _, folder, made = swept
    assert made.best == str(folder / "best.yaml")
    text = Path(made.best).read_text()
    assert "# Mine." in text and "# forty of them" in text and "# the rate" in text
    shutil.copy(made.best, tmp_path / "elsewhere.yaml")
    ran = load_recipe(Path(made.trials[0].folder, "recipe.yaml"))
    best, tried = (as_values(one) for one in (load_recipe(tmp_path / "elsewhere.yaml"), ran))
    assert (best["evaluate"].pop("test"), tried["evaluate"].pop("test")) == (True, False), "which chooses nothing"
    assert best == tried
    assert ran.optim.lr == 3e-3


@pytest.mark.slow
def test_the_same_command_again_trains_nothing_and_another_is_refused(swept: tuple[Path, Path, Sweep]) -> None:
    recipe, folder, made = swept
    stamps = [path.stat().st_mtime_ns for path in sorted(folder.glob("trials/*/journal.jsonl"))]
    asked: dict[str, Any] = {"over": ["optim.lr=1e-4,3e-3,1e30"], "budget": 3, "out": folder}
    again = fulltune.sweep(recipe, **asked)
    assert again == made
    assert stamps == [path.stat().st_mtime_ns for path in sorted(folder.glob("trials/*/journal.jsonl"))]
    with pytest.raises(CheckpointError, match="another sweep: over.optim.lr.choices"):
        fulltune.sweep(recipe, **{**asked, "over": ["optim.lr=1e-4,3e-3,1e-2"]})
    with pytest.raises(CheckpointError, match="another sweep: recipe.optim.weight_decay: 0.01 -> 0.1"):
        fulltune.sweep(recipe, **asked, optim={"weight_decay": 0.1})


@pytest.mark.slow
def test_the_command_prints_a_table_or_json(swept: tuple[Path, Path, Sweep], tmp_path: Path) -> None:
    recipe, folder, made = swept
    words = ["sweep", str(recipe), "--over", "optim.lr=1e-4,3e-3,1e30", "--budget", "3", "--out", str(folder)]
    shown = command.run(*words, cwd=tmp_path)
    assert shown.returncode == 0, shown.stderr
    heads, first, *_ = shown.stdout.splitlines()
    assert heads.split()[:4] == ["rank", "heldout.loss", "retention.loss", "optim.lr"]
    assert first.split()[:2] == ["1", f"{made.trials[0].score:.4f}"]
    assert "exit code 5" in shown.stdout
    assert json.loads(command.run(*words, "--json", cwd=tmp_path).stdout)["trials"][2]["state"] == "failed"
    page = (folder / "sweep.html").read_text()
    assert "http" not in page.replace("http-equiv", "") and "<circle" in page and 'class="pareto"' in page
    refused = command.run("sweep", str(recipe), "--over", "optim.rate=1,2", cwd=tmp_path)
    assert refused.returncode == 2
    assert "where: --over optim.rate=1,2" in refused.stderr
    assert not (tmp_path / "runs").exists(), "nothing began"


@pytest.mark.slow
def test_proxies_are_whole_schedules_and_what_lies_behind_ends_early(tmp_path: Path, llama: Path) -> None:
    recipe = place(tmp_path, llama)
    asked: dict[str, Any] = {"tokens": 1790, "prune": "halving", "keep": "best"}
    asked |= {"train.steps": 8, "evaluate.every": 4, "optim.warmup": 2, "data.test": []}
    made = fulltune.sweep(recipe, over=["optim.lr=3e-3,1e-7"], budget=2, out=tmp_path / "out", **asked)
    best, behind = made.trials
    assert (behind.state, behind.values, behind.rank) == ("pruned", {"optim.lr": 1e-7}, None)
    assert "at 50%, behind the others" in behind.reason
    assert [line["step"] for line in read(Path(behind.folder, "journal.jsonl"), "step")] == [1, 2]
    assert Path(best.folder, "model").is_dir()
    assert Path(best.folder, "checkpoints").is_dir()
    assert not Path(behind.folder, "checkpoints").exists(), "keep is `best`"
    assert 0.8 * 1790 < best.tokens < 1.2 * 1790
    plan = json.loads(Path(best.folder, "plan.json").read_text())
    rates = [line["lr"] for line in read(Path(best.folder, "journal.jsonl"), "step")]
    assert (plan["updates"], plan["warmup_updates"], len(rates)) == (4, 1, 4)
    assert rates[-1] < 0.2 * max(rates), "it falls to its floor: compressed, not cut"
    whole = load_recipe(Path(str(made.best)))
    assert (whole.train.steps, whole.optim.warmup, whole.evaluate.every.amount, whole.data.test) == (8, 2, 4, ())
    assert "full length" in Path(str(made.best)).read_text()
    with pytest.raises(RecipeError, match="same length, and train.steps is varied"):
        fulltune.sweep(recipe, over=["train.steps=2,3"], budget=1, tokens=700, out=tmp_path / "x")


@pytest.mark.slow
def test_ctrl_c_ends_in_order_and_the_trial_is_taken_up(
    tmp_path: Path, llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The trial is asked for an end as its first evaluation is answered; then the same sweep makes the rest of it."""
    recipe = place(tmp_path, llama)
    asked: dict[str, Any] = {"over": ["optim.lr=1e-3,3e-3"], "budget": 1, "out": tmp_path / "out"}
    asked |= {"train.steps": 6, "checkpoint.every": 100}  # so it must ask once more, and only the signal saves
    heard: Callable[..., bool] = trying.Trying._goes_on

    def interrupted(self: Any, one: Any, line: Mapping[str, Any]) -> bool:
        if line["step"] == 2:
            os.kill(os.getpid(), signal.SIGINT)
        return heard(self, one, line)

    monkeypatch.setattr(trying.Trying, "_goes_on", interrupted)
    with pytest.raises(Interrupted, match="SIGINT"):
        fulltune.sweep(recipe, **asked)
    folder = tmp_path / "out/trials/000"
    assert not (folder / "record.json").exists()
    assert not (folder / ".lock").exists(), "it has ended"
    monkeypatch.undo()
    (only,) = fulltune.sweep(recipe, **asked).trials
    assert only.state == "done"
    starts = list(read(folder / "journal.jsonl", "start"))
    assert [start.get("resumed_at") for start in starts] == [None, 2]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_killed_sweep_goes_on_with_the_trial_that_was_running(tmp_path: Path, llama: Path) -> None:
    """Killed in the middle of a trial, without a word; its process sees that by itself, and leaves the folder."""
    recipe = place(tmp_path, llama)
    words = [sys.executable, "-m", "fulltune", "sweep", str(recipe), "train.steps=100", "evaluate.every=50"]
    words += ["checkpoint.every=100", "--over", "optim.lr=1e-3,3e-3", "--budget", "1", "--json"]
    words += ["--out", str(tmp_path / "out")]
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}/src", "OMP_NUM_THREADS": "1"}
    journal = tmp_path / "out/trials/000/journal.jsonl"
    with subprocess.Popen(words, stderr=subprocess.DEVNULL, env=environment, cwd=tmp_path) as killed:
        while not (journal.exists() and journal.read_text().count('"kind": "step"') > 3):
            assert killed.poll() is None
            time.sleep(0.05)
        killed.kill()
    done = subprocess.run(words, capture_output=True, env=environment, cwd=tmp_path, text=True)
    assert done.returncode == 0, done.stderr
    assert [one["state"] for one in json.loads(done.stdout)["trials"]] == ["done"]
    starts = list(read(journal, "start"))
    assert len(starts) == 2 and starts[1]["resumed_at"] > 3, "it saved when it saw that it was left alone"
    assert [line["step"] for line in read(journal, "step")] == list(range(1, 101))
