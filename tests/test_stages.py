"""The stages as a user calls them: what a run folder holds, when it goes on, when it refuses."""

import json
import os
import shutil
import signal
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

import fulltune
from fulltune import stages
from fulltune.base.errors import (
    CheckpointError,
    DataError,
    DivergedError,
    Interrupted,
    LockedError,
    MachineError,
    RecipeError,
)
from fulltune.base.files import read_record
from fulltune.base.records import EvalReport, Plan, RunRecord
from fulltune.data import prepare as prepare_module
from fulltune.engine.contract import Update
from fulltune.engine.native import NativeEngine
from fulltune.exporting import targets
from fulltune.training.journal import read
from tests import tiny
from tests.unit.base.test_lock import process


@pytest.fixture
def recipe(llama: Path, data: Path) -> dict[str, Any]:
    return tiny.recipe(llama, data)


def lines(run: Path, kind: str) -> list[dict[str, Any]]:
    return list(read(run / "journal.jsonl", kind))


def test_a_run_folder_holds_the_whole_story(tmp_path: Path, recipe: dict[str, Any]) -> None:
    run = tmp_path / "run"
    record = fulltune.train(recipe, out=run)
    names = {path.name for path in run.iterdir()}
    assert names == {
        "recipe.yaml",
        "data",
        "data.json",
        "plan.json",
        "journal.jsonl",
        "checkpoints",
        "model",
        "record.json",
        "report.html",
    }
    assert read_record(run / "record.json", RunRecord) == record
    assert record.result == str(run / "model")
    assert record.largest_logit_difference <= 1e-6
    kinds = [json.loads(line)["kind"] for line in (run / "journal.jsonl").read_text().splitlines()]
    told = [kind for kind in kinds if kind != "checkpoint"]  # written in the background, told when they stand
    assert told == ["start", "evaluation", *["step"] * 4, "evaluation", *["step"] * 2, "evaluation", "end"]
    assert [line["step"] for line in lines(run, "checkpoint")] == [0, 4, 6]
    step = lines(run, "step")[0]
    assert step.keys() == {
        "kind",
        "step",
        "loss",
        "penalty",
        "lr",
        "grad_norm",
        "tokens",
        "supervised_tokens",
        "seconds",
    }
    assert 0 < step["supervised_tokens"] < step["tokens"]
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == ["step-00000004", "step-00000006"]


def test_the_result_is_the_checkpoint_it_says(tmp_path: Path, recipe: dict[str, Any]) -> None:
    record = fulltune.train(recipe, out=tmp_path / "run")
    saved = load_file(tmp_path / f"run/checkpoints/step-{record.result_step:08d}/weights.safetensors")
    written = load_file(tmp_path / "run/model/model.safetensors")
    assert saved.keys() == written.keys()
    assert all(torch.equal(saved[name], written[name]) for name in saved)


def test_the_best_is_exported_kept_and_ends_the_run_early(tmp_path: Path, llama: Path) -> None:
    """A rate far too high overfits at once: the first evaluation is the best, and patience ends the run."""
    rows = tiny.jsonl(tmp_path / "rows.jsonl", tiny.rows(12))
    held = tiny.jsonl(tmp_path / "held.jsonl", tiny.rows(12, seed=7))
    asked = tiny.recipe(
        llama,
        rows,
        data={"heldout": [str(held)]},
        train={"steps": 60, "batch_examples": 6},
        optim={"lr": 3e-2, "schedule": "constant", "warmup": 0},
        evaluate={"every": 2},
        checkpoint={"every": 2, "keep": 1, "patience": 3},
    )
    record = fulltune.train(asked, out=tmp_path / "run")
    scores = {report.step: report.scores["heldout.loss"] for report in record.evaluations}
    best = min(scores, key=lambda step: scores[step])
    assert record.progress.update == max(scores) == best + 6 < 60
    assert record.result_step == record.progress.best_update == best
    kept = {path.name for path in (tmp_path / "run/checkpoints").iterdir()}
    assert kept == {f"step-{best:08d}", f"step-{max(scores):08d}"}
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "run/model")
    saved = load_file(tmp_path / f"run/checkpoints/step-{best:08d}/weights.safetensors")
    assert torch.equal(model.lm_head.weight, saved["lm_head.weight"])


def test_without_held_out_data_the_last_state_is_the_result(tmp_path: Path, recipe: dict[str, Any]) -> None:
    recipe["data"]["heldout"] = 0
    record = fulltune.train(recipe, out=tmp_path / "run")
    assert record.result_step == 6
    assert record.baseline is None
    assert record.evaluations == record.samples == ()
    assert lines(tmp_path / "run", "evaluation") == []


def test_retention_is_measured_with_held_out_data_and_test_before_and_after_alone(
    tmp_path: Path, recipe: dict[str, Any]
) -> None:
    texts = [{"text": row["prompt"]} for row in tiny.rows(6, seed=5)]
    recipe["data"]["retention"] = str(tiny.jsonl(tmp_path / "general.jsonl", texts))
    recipe["data"]["test"] = str(tiny.jsonl(tmp_path / "test.jsonl", tiny.rows(6, seed=6)))
    record = fulltune.train(recipe, out=tmp_path / "run")
    wanted = {f"{split}.{score}" for split in ("heldout", "retention") for score in ("loss", "perplexity")}
    wanted.add("retention.kl")
    assert record.baseline is not None
    tested = {"test.loss", "test.perplexity"}
    assert record.baseline.scores.keys() == wanted | tested
    for report in record.evaluations:
        assert report.scores.keys() == wanted | (tested if report.step == record.result_step else set())
    reports = fulltune.evaluate(tmp_path / "run")
    assert reports.keys() == {"base", "result"}
    for report in reports.values():
        assert report.scores.keys() == wanted | tested
    for name in wanted | tested:
        assert reports["base"].scores[name] == pytest.approx(record.baseline.scores[name], abs=1e-5)
        assert reports["result"].scores[name] == pytest.approx(record.evaluations[-1].scores[name], abs=1e-5)


def test_what_is_asked_of_an_evaluation_counts(
    tmp_path: Path, recipe: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a plan that was made, and of a run that is done; neither is changed by it."""
    seen: list[Plan] = []

    def scored(_: Any, plan: Plan, __: Any, models: Mapping[str, Any], *___: Any) -> dict[str, EvalReport]:
        seen.append(plan)
        return {name: EvalReport(step=0, scores={"heldout.loss": 1.0}, counts={}) for name in models}

    run = tmp_path / "run"
    before = fulltune.plan(recipe, out=run)
    monkeypatch.setattr(stages, "score", scored)
    fulltune.evaluate(recipe, out=run)
    assert (seen[-1].micro_tokens, seen[-1].dtypes) == (before.micro_tokens, before.dtypes)
    fulltune.evaluate(recipe, out=run, train={**recipe["train"], "micro_tokens": 48, "precision": "bf16-mixed"})
    assert (seen[-1].micro_tokens, seen[-1].precision, seen[-1].dtypes.compute) == (48, "bf16-mixed", "bfloat16")
    fulltune.train(recipe, out=run)
    fulltune.evaluate(run, train={"micro_tokens": 48})
    assert seen[-1].micro_tokens == 48
    assert read_record(run / "plan.json", Plan).micro_tokens == before.micro_tokens


def test_any_model_folder_can_be_evaluated(tmp_path: Path, recipe: dict[str, Any], llama: Path) -> None:
    reports = fulltune.evaluate(recipe, out=tmp_path / "run", model=llama)
    assert reports["model"] == reports["base"]


def test_kernels_are_deterministic_where_it_is_asked_for(tmp_path: Path, recipe: dict[str, Any]) -> None:
    seen: list[bool] = []

    class Asking:
        def hear(self, kind: str, values: object) -> None:
            seen.append(torch.are_deterministic_algorithms_enabled())

    recipe["train"] |= {"steps": 1, "deterministic": True}
    fulltune.train(recipe, out=tmp_path / "run", sinks=[Asking()])
    assert all(seen)
    assert not torch.are_deterministic_algorithms_enabled(), "and not for others"


def test_samples_stand_before_and_after(tmp_path: Path, recipe: dict[str, Any]) -> None:
    recipe["evaluate"] = {"samples": 2, "sample_tokens": 5}
    record = fulltune.train(recipe, out=tmp_path / "run")
    assert len(record.samples) == 2
    for sample in record.samples:
        assert sample.prompt.endswith("<|assistant|>")
        assert sample.expected
        assert "<|end|>" not in sample.expected


def test_a_finished_run_is_not_trained_again(tmp_path: Path, recipe: dict[str, Any]) -> None:
    record = fulltune.train(recipe, out=tmp_path / "run")
    before = (tmp_path / "run/journal.jsonl").read_bytes()
    assert fulltune.train(recipe, out=tmp_path / "run") == record
    assert fulltune.train(tmp_path / "run") == record
    assert (tmp_path / "run/journal.jsonl").read_bytes() == before


def test_a_folder_of_another_recipe_is_refused_with_the_difference(tmp_path: Path, recipe: dict[str, Any]) -> None:
    fulltune.train(recipe, out=tmp_path / "run")
    with pytest.raises(CheckpointError, match=r"optim\.lr: 0\.001 -> 0\.5") as caught:
        fulltune.train(recipe, out=tmp_path / "run", optim={"lr": 0.5})
    assert caught.value.exit_code == 6
    record = fulltune.train(recipe, out=tmp_path / "run", fresh=True, optim={"lr": 0.5})
    assert record.result == str(tmp_path / "run-2/model")


def test_before_training_a_recipe_may_change(tmp_path: Path, recipe: dict[str, Any]) -> None:
    fulltune.prepare(recipe, out=tmp_path / "run")
    written = (tmp_path / "run/data/train/examples.bin").stat().st_mtime_ns
    assert fulltune.plan(recipe, out=tmp_path / "run", train={"steps": 9}).updates == 9
    assert (tmp_path / "run/data/train/examples.bin").stat().st_mtime_ns == written, "the data did not change"
    facts = fulltune.prepare(recipe, out=tmp_path / "run", data={"supervise": "all"})
    assert facts.splits["train"].supervised_tokens > 0
    assert (tmp_path / "run/data/train/examples.bin").stat().st_mtime_ns != written


def test_data_that_changed_under_a_run_is_refused(tmp_path: Path, recipe: dict[str, Any], data: Path) -> None:
    fulltune.train(recipe, out=tmp_path / "run")
    (tmp_path / "run/record.json").unlink()
    data.write_text(data.read_text() + json.dumps({"prompt": "new", "completion": "row"}) + "\n")
    with pytest.raises(CheckpointError, match=r"(?s)data.*rows\.jsonl: .* -> .*--accept-change data goes on"):
        fulltune.train(recipe, out=tmp_path / "run")


def test_a_folder_with_other_things_is_left_alone(tmp_path: Path, recipe: dict[str, Any]) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/thesis.txt").write_text("years of work")
    with pytest.raises(RecipeError, match="not empty"):
        fulltune.train(recipe, out=tmp_path / "mine")
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["thesis.txt"]


@pytest.mark.parametrize("copied", [False, True])
def test_a_project_folder_is_not_taken_for_a_run_and_loses_nothing(
    tmp_path: Path, recipe: dict[str, Any], data: Path, copied: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`recipe.yaml`, `data/` and `model/` are what people call their own things too."""
    project = tmp_path / "project"
    (project / "data").mkdir(parents=True)
    (project / "data/rows.jsonl").write_bytes(data.read_bytes())
    tiny.folder(project / "model")
    recipe = {**recipe, "data": {**recipe["data"], "train": "data/rows.jsonl"}, "model": {"path": "model"}}
    (project / "recipe.yaml").write_text(json.dumps(recipe))
    if copied:  # the resolved recipe of a run, taken along as a start
        fulltune.prepare(project / "recipe.yaml", out=tmp_path / "run")
        (project / "recipe.yaml").write_bytes((tmp_path / "run/recipe.yaml").read_bytes())
    before = {path: path.read_bytes() for path in project.rglob("*") if path.is_file()}
    monkeypatch.chdir(project)
    for asked, out in ((".", None), ("recipe.yaml", ".")):
        with pytest.raises(RecipeError):
            fulltune.train(asked, out=out)
    assert {path: path.read_bytes() for path in project.rglob("*") if path.is_file()} == before


def test_a_dry_run_whose_update_is_skipped_is_no_success(
    tmp_path: Path, recipe: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(NativeEngine, "update", lambda self, rates: Update(float("nan"), False))
    with pytest.raises(DivergedError, match="first update was skipped"):
        fulltune.dry_run(recipe, out=tmp_path / "run")


def test_runs_go_to_a_folder_named_after_the_recipe(
    tmp_path: Path, recipe: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my-recipe.yaml").write_text(json.dumps(recipe))
    fulltune.plan("my-recipe.yaml")
    assert (tmp_path / "runs/my-recipe/plan.json").exists()


def test_a_dry_run_keeps_nothing_but_data_and_plan(tmp_path: Path, recipe: dict[str, Any]) -> None:
    figures = fulltune.dry_run(recipe, out=tmp_path / "run")
    assert figures["loss"] > 0
    assert figures["checkpoint_bytes"] > 0
    assert {path.name for path in (tmp_path / "run").iterdir()} == {"recipe.yaml", "data", "data.json", "plan.json"}
    first = lines(_train(tmp_path, recipe), "step")[0]
    assert first["loss"] == pytest.approx(figures["loss"], abs=1e-6)


def _train(tmp_path: Path, recipe: dict[str, Any]) -> Path:
    fulltune.train(recipe, out=tmp_path / "run")
    return tmp_path / "run"


def test_export_writes_any_checkpoint_in_any_format(tmp_path: Path, recipe: dict[str, Any]) -> None:
    recipe["checkpoint"] = {"every": 2, "keep": 5}
    fulltune.train(recipe, out=tmp_path / "run")
    folder = fulltune.export(tmp_path / "run", tmp_path / "early", step=2, dtype="bfloat16")
    saved = load_file(tmp_path / "run/checkpoints/step-00000002/weights.safetensors")
    written = load_file(folder / "model.safetensors")
    assert all(torch.equal(saved[name].bfloat16(), written[name]) for name in saved)
    best = fulltune.export(tmp_path / "run", tmp_path / "best")
    one, other = (load_file(f / "model.safetensors") for f in (best, tmp_path / "run/model"))
    assert all(torch.equal(one[name], other[name]) for name in one)
    with pytest.raises(RecipeError, match="exists"):
        fulltune.export(tmp_path / "run", tmp_path / "best")
    with pytest.raises(CheckpointError, match="no checkpoint of update 99"):
        fulltune.export(tmp_path / "run", tmp_path / "none", step=99)
    assert not (tmp_path / "none").exists()


def test_export_has_the_number_format_of_the_recipe(tmp_path: Path, recipe: dict[str, Any]) -> None:
    fulltune.train(recipe, out=tmp_path / "run", export={"dtype": "bfloat16"})
    for folder, asked in (("same", None), ("other", "float32")):
        made = fulltune.export(tmp_path / "run", tmp_path / folder, dtype=asked)  # type: ignore[arg-type]
        (kind,) = {value.dtype for value in load_file(made / "model.safetensors").values()}
        assert kind is (torch.float32 if asked else torch.bfloat16)


@pytest.mark.slow
def test_a_kill_while_preparing_leaves_nothing_that_stops_or_misleads_the_next(
    tmp_path: Path, recipe: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before each file operation in turn, data of another recipe lying there already; then the same command."""
    other = {**recipe, "data": {**recipe["data"], "supervise": "all"}}
    wanted = {name: fulltune.prepare(asked, out=tmp_path / name) for name, asked in (("a", recipe), ("b", other))}
    real, places = Path.replace, 0

    class KilledError(BaseException):
        pass

    for place in range(14):
        run, count = tmp_path / f"run{place}", 0
        fulltune.prepare(other, out=run)

        def replace(self: Path, target: Path, place: int = place) -> Path:
            nonlocal count, places
            count += 1
            if count > place:
                places += 1
                raise KilledError
            return real(self, target)

        monkeypatch.setattr(Path, "replace", replace)
        monkeypatch.setattr("shutil.rmtree", lambda path: None)  # a kill does not clean up
        with suppress(KilledError):
            fulltune.prepare(recipe, out=run)
        monkeypatch.undo()
        shutil.copytree(run, tmp_path / f"killed{place}")
        # The other recipe's card lay there before: it must not speak for the new data.
        for name, asked, folder in (("a", recipe, run), ("b", other, tmp_path / f"killed{place}")):
            assert fulltune.prepare(asked, out=folder) == wanted[name]
            for store in ("data/train/examples.bin", "data/shards/000000/labels.bin"):
                assert (folder / store).read_bytes() == (tmp_path / name / store).read_bytes()
    assert places >= 4, "the operations that matter were met"


def test_a_kill_in_the_first_preparation_does_not_stop_the_next(tmp_path: Path, recipe: dict[str, Any]) -> None:
    (tmp_path / "run/.data.part-x1y2/train").mkdir(parents=True)
    fulltune.prepare(recipe, out=tmp_path / "run")
    assert {path.name for path in (tmp_path / "run").iterdir()} == {"data", "data.json", "recipe.yaml"}


def test_until_the_first_checkpoint_the_recipe_may_be_mended(
    tmp_path: Path, recipe: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A refusal that says `write X instead` must let X be written."""
    with pytest.raises(RecipeError, match=r"optim\.options"):
        fulltune.train(recipe, out=tmp_path / "run", optim={"lr": 1e-3, "options": {"betas": [0.9]}})
    with pytest.raises(RecipeError, match=r"optim\.options"):
        fulltune.train(recipe, out=tmp_path / "run", optim={"lr": 1e-3, "options": {"foreach": True}})
    fulltune.train(recipe, out=tmp_path / "run", optim={"lr": 1e-3})


def test_a_run_that_learned_nothing_is_no_success(
    tmp_path: Path, recipe: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def skip(self: NativeEngine, rates: Any) -> Update:
        self.clear()
        return Update(float("nan"), False)

    monkeypatch.setattr(NativeEngine, "update", skip)
    with pytest.raises(DivergedError, match="nothing was learned"):
        fulltune.train(recipe, out=tmp_path / "run", train={"epochs": 0.3, "batch_examples": 8, "max_skipped": 99})
    assert not (tmp_path / "run/model").exists()


def test_a_model_with_another_tokenizer_is_not_measured_on_these_ids(tmp_path: Path, recipe: dict[str, Any]) -> None:
    fulltune.prepare(recipe, out=tmp_path / "run")
    other = tiny.folder(tmp_path / "other")
    content = json.loads((other / "tokenizer.json").read_text())
    vocabulary = content["model"]["vocab"]
    one, two = list(vocabulary)[-2:]
    vocabulary[one], vocabulary[two] = vocabulary[two], vocabulary[one]
    (other / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(DataError, match="another tokenizer"):
        fulltune.evaluate(tmp_path / "run", model=other)


def test_memory_that_runs_out_is_said_with_what_helps(
    tmp_path: Path, recipe: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: NativeEngine, batch: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    monkeypatch.setattr(NativeEngine, "forward", full)
    with pytest.raises(MachineError, match="micro_tokens"):
        fulltune.train(recipe, out=tmp_path / "run")


def test_export_needs_a_trained_run(tmp_path: Path, recipe: dict[str, Any]) -> None:
    fulltune.plan(recipe, out=tmp_path / "run")
    with pytest.raises(RecipeError, match="not been trained"):
        fulltune.export(tmp_path / "run", tmp_path / "x")


def test_a_damaged_checkpoint_is_put_away_and_the_run_goes_on_from_the_one_before_it(
    tmp_path: Path, recipe: dict[str, Any]
) -> None:
    first = fulltune.train(recipe, out=tmp_path / "run")
    (tmp_path / "run/record.json").unlink()
    path = tmp_path / "run/checkpoints/step-00000006/optimizer.safetensors"
    path.write_bytes(path.read_bytes()[:-3])
    again = fulltune.train(recipe, out=tmp_path / "run")
    assert again.evaluations == first.evaluations
    assert [place.name for place in (tmp_path / "run/quarantine").iterdir()] == ["step-00000006"]
    assert [line["step"] for line in lines(tmp_path / "run", "step")] == [1, 2, 3, 4, 5, 6], "none twice"
    (tmp_path / "run/record.json").unlink()
    for step in (tmp_path / "run/checkpoints").iterdir():
        (step / "progress.json").unlink()
    for _ in range(2):
        with pytest.raises(CheckpointError, match="none is whole") as caught:
            fulltune.train(recipe, out=tmp_path / "run")
        assert caught.value.exit_code == 6


def test_a_run_that_is_done_goes_on_if_more_is_asked_for(tmp_path: Path, recipe: dict[str, Any]) -> None:
    fulltune.train(recipe, out=tmp_path / "run")
    more = fulltune.train(recipe, out=tmp_path / "run", train={"steps": 8}, evaluate={"every": 2})
    assert more.progress.update == more.plan.updates == 8
    assert [line["step"] for line in lines(tmp_path / "run", "step")] == list(range(1, 9))
    changed = {line["field"]: (line["before"], line["now"]) for line in lines(tmp_path / "run", "change")}
    assert changed == {"train.steps": (6, 8), "evaluate.every": ("1 epochs", "2")}
    assert (tmp_path / "run/record-00000006.json").exists(), "what was known before is kept"
    assert fulltune.train(tmp_path / "run") == more, "and the folder's own recipe is the new one"


def test_what_is_accepted_by_name_is_honoured_and_recorded(tmp_path: Path, recipe: dict[str, Any], data: Path) -> None:
    recipe["train"]["steps"] = 4
    fulltune.train(recipe, out=tmp_path / "run")
    recipe["train"]["steps"] = 6
    with pytest.raises(RecipeError, match="no field that could have changed"):
        fulltune.train(recipe, out=tmp_path / "run", optim={"lr": 0.5}, accept=["optim.rate"])
    with pytest.raises(CheckpointError, match="--accept-change optim.lr"):
        fulltune.train(recipe, out=tmp_path / "run", optim={"lr": 0.5}, accept=["data"])
    data.write_text(data.read_text() + json.dumps({"prompt": "new", "completion": "row"}) + "\n")
    with pytest.raises(CheckpointError, match=r"(?s)data.*rows\.jsonl: .*--accept-change data goes on"):
        fulltune.train(recipe, out=tmp_path / "run", optim={"lr": 0.5}, accept=["optim"])
    record = fulltune.train(recipe, out=tmp_path / "run", optim={"lr": 0.5}, accept=["optim", "data"])
    assert record.data.rows == 41
    assert [line["lr"] for line in lines(tmp_path / "run", "step")][-2] > 0.05
    changed = [line["field"] for line in lines(tmp_path / "run", "change")]
    assert changed[:1] == ["optim.lr"]
    assert changed[-1].startswith("data.")


@pytest.mark.parametrize(
    "changes",
    [
        {"train": {"precision": "bf16-mixed"}},
        {"memory": {"checkpointing": "selective"}},
        {"optim": {"name": "sgd", "options": {"momentum": 0.9}}},
        {"optim": {"clip": None, "schedule": "wsd"}},
        {"train": {"batch_tokens": 200, "layout": "packed"}},
        {"model": {"dropout": 0.2, "attention": "eager"}},
        {"export": {"dtype": "bfloat16"}},
    ],
)
def test_every_setting_trains(tmp_path: Path, recipe: dict[str, Any], changes: dict[str, Any]) -> None:
    for section, values in changes.items():
        recipe[section] = {**recipe.get(section, {}), **values}
    if "batch_tokens" in recipe["train"]:
        del recipe["train"]["batch_examples"]
    record = fulltune.train(recipe, out=tmp_path / "run")
    assert record.baseline is not None
    assert record.evaluations[-1].scores["heldout.loss"] < record.baseline.scores["heldout.loss"]


def test_checkpointing_changes_no_loss(tmp_path: Path, recipe: dict[str, Any]) -> None:
    for way in ("none", "selective", "full"):
        fulltune.train(recipe, out=tmp_path / way, memory={"checkpointing": way})
    kept, *again = ([line["loss"] for line in lines(tmp_path / way, "step")] for way in ("none", "selective", "full"))
    assert again == [kept, kept]


def test_sources_are_mixed_by_share(tmp_path: Path, llama: Path) -> None:
    big = tiny.jsonl(tmp_path / "big.jsonl", tiny.rows(40))
    small = tiny.jsonl(tmp_path / "small.jsonl", tiny.rows(5, seed=4))
    train = [{"path": str(big), "share": 1.0}, {"path": str(small), "share": 1.0}]
    asked = tiny.recipe(llama, big, data={"train": train, "heldout": 0}, train={"steps": 5, "batch_examples": 8})
    record = fulltune.train(asked, out=tmp_path / "run")
    assert record.data.splits["train"].by_source == (40, 5)
    from fulltune.data.mixing import mixture

    recipe = fulltune.stages.open_run(asked, {}, out=tmp_path / "run").recipe
    drawn = mixture(recipe.data, record.data.splits["train"]).order(recipe.train.seed).at(0, 40)
    assert 18 <= int((drawn >= 40).sum()) <= 22


def test_replay_is_in_every_update_and_each_source_of_a_split_is_measured(
    tmp_path: Path, llama: Path, caplog: pytest.LogCaptureFixture
) -> None:
    own = tiny.jsonl(tmp_path / "own.jsonl", tiny.rows(40))
    general = tiny.jsonl(tmp_path / "general.jsonl", tiny.rows(9, seed=4))
    kept = [tiny.jsonl(tmp_path / f"{name}.jsonl", tiny.rows(6, seed=n)) for n, name in enumerate(("x", "y.z"), 5)]
    data = {
        "replay": {"sources": str(general), "share": 0.25},
        "heldout": [str(path) for path in kept],
        "share_by": "tokens",
    }
    asked = tiny.recipe(llama, own, data=data, checkpoint={"best_by": "heldout.y_z.loss"})
    asked["train"] = {"epochs": 1.0, "batch_examples": 8, "precision": "float32"}
    with caplog.at_level("INFO", logger="fulltune"):
        record = fulltune.train(asked, out=tmp_path / "run")
    plan, train = record.plan, record.data.splits["train"]
    assert train.by_source == (40, 9)
    assert [source.replay for source in plan.mix] == [False, True]
    replayed = plan.examples - 40
    part = plan.mix[1].share
    mean = [tokens / count for tokens, count in zip(train.tokens_by_source, train.by_source, strict=True)]
    assert part * mean[1] / (part * mean[1] + (1 - part) * mean[0]) == pytest.approx(0.25, abs=1e-6)
    assert record.progress.position == plan.examples
    assert replayed == pytest.approx(part * plan.examples, abs=1)
    assert f"mix: {general} (replay)" in caplog.text
    scores = record.evaluations[-1].scores
    assert set(scores) == {"heldout.loss", "heldout.perplexity", "heldout.x.loss", "heldout.y_z.loss"}
    counts = record.evaluations[-1].counts
    total = sum(scores[f"heldout.{name}.loss"] * counts[f"heldout.{name}"] for name in ("x", "y_z"))
    assert scores["heldout.loss"] == pytest.approx(total / counts["heldout"])
    assert record.progress.best_score == min(r.scores["heldout.y_z.loss"] for r in record.evaluations)
    assert fulltune.train(asked, out=tmp_path / "run").progress == record.progress


def test_the_objective_and_schedule_may_come_from_outside(
    tmp_path: Path, recipe: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine.py").write_text("def half(done):\n    return 0.5\n")
    monkeypatch.syspath_prepend(tmp_path)
    fulltune.train(recipe, out=tmp_path / "run", optim={"schedule": "mine:half", "floor": 0.0, "warmup": 0})
    assert {line["lr"] for line in lines(tmp_path / "run", "step")} == {0.5e-3}


@pytest.mark.slow
def test_a_process_that_was_killed_leaves_what_is_done(
    tmp_path: Path, recipe: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Out of memory in a worker: with fewer processes the same command goes on with the parts that stand."""
    monkeypatch.setattr("fulltune.data.gather.ROWS", 8)
    wanted = fulltune.prepare(recipe, out=tmp_path / "wanted")
    real = prepare_module.Preparation.examine

    def killed(self: Any) -> str:
        raise MachineError("a process was killed", where="data.processes", mend="data.processes=1")

    monkeypatch.setattr(prepare_module.Preparation, "examine", killed)
    with pytest.raises(MachineError):
        fulltune.prepare(recipe, out=tmp_path / "run")
    (begun,) = (tmp_path / "run").glob(".begun-*")
    stamps = {path: path.stat().st_mtime_ns for path in begun.glob("*/rows.bin")}
    assert stamps
    seen: list[dict[Path, int]] = []

    def examine(self: Any) -> str:
        seen.append({path: path.stat().st_mtime_ns for path in begun.glob("*/rows.bin")})
        return real(self)

    monkeypatch.setattr(prepare_module.Preparation, "examine", examine)
    assert fulltune.prepare(recipe, out=tmp_path / "run") == wanted
    assert seen == [stamps], "no part was made twice"
    assert not begun.exists()


def test_a_run_has_one_writer_and_many_readers(tmp_path: Path, recipe: dict[str, Any]) -> None:
    run = tmp_path / "run"
    wanted = fulltune.plan(recipe, out=run)
    with process(run) as (holder, _):
        holder.send_signal(signal.SIGSTOP)
        for stage in (fulltune.train, fulltune.dry_run, fulltune.prepare, fulltune.plan):
            other = {} if stage in (fulltune.train, fulltune.dry_run) else {"data": {"supervise": "all"}}
            with pytest.raises(LockedError, match=f"process {holder.pid}"):
                stage(recipe, out=run, **other)
        assert fulltune.plan(recipe, out=run) == wanted, "nothing is to be written"
        assert len(fulltune.inspect(recipe, out=run, first=2)) == 2
        assert fulltune.evaluate(recipe, out=run).keys() == {"base"}
        with pytest.raises(LockedError):
            fulltune.plan(recipe, out=run, optim={"lr": 1e-5})
        with pytest.raises(LockedError):
            fulltune.inspect(recipe, out=run, data={"heldout": 0.5})
    assert (run / ".lock").exists()
    fulltune.train(recipe, out=run)
    assert not (run / ".lock").exists()


def test_a_folder_with_nothing_but_the_lock_of_a_dead_process_is_free(tmp_path: Path, recipe: dict[str, Any]) -> None:
    with process(tmp_path / "run"):
        pass
    assert [path.name for path in (tmp_path / "run").iterdir()] == [".lock"]
    fulltune.prepare(recipe, out=tmp_path / "run")
    assert {path.name for path in (tmp_path / "run").iterdir()} == {"data", "data.json", "recipe.yaml"}


class Terminator:
    """Sends a signal when the journal says something."""

    def __init__(self, kind: str, sent: signal.Signals) -> None:
        self._kind, self._sent = kind, sent

    def hear(self, kind: str, values: Any) -> None:
        if kind == self._kind:
            os.kill(os.getpid(), self._sent)


def test_training_listens_to_the_signals_of_its_recipe(tmp_path: Path, recipe: dict[str, Any]) -> None:
    """Before its first checkpoint there is nothing to save: the same command begins anew."""
    with pytest.raises(Interrupted, match="SIGUSR2"):
        fulltune.train(
            recipe,
            out=tmp_path / "run",
            sinks=[Terminator("start", signal.SIGUSR2)],
            checkpoint={"signals": "SIGUSR2"},
        )
    assert not (tmp_path / "run/.lock").exists()
    assert signal.getsignal(signal.SIGUSR2) is signal.SIG_DFL
    with pytest.raises(KeyboardInterrupt):
        fulltune.train(
            recipe, out=tmp_path / "run", sinks=[Terminator("start", signal.SIGINT)], checkpoint={"signals": "SIGUSR2"}
        )
    assert fulltune.train(recipe, out=tmp_path / "run").progress.update == 6


def test_a_signal_ends_an_export_and_leaves_no_half_of_it(
    tmp_path: Path, recipe: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    fulltune.train(recipe, out=tmp_path / "run")
    real = targets._config

    def stopped(*arguments: Any) -> Any:
        os.kill(os.getpid(), signal.SIGINT)
        return real(*arguments)

    monkeypatch.setattr(targets, "_config", stopped)
    with pytest.raises(Interrupted, match="SIGINT"):
        fulltune.export(tmp_path / "run", tmp_path / "out")
    assert {path.name for path in tmp_path.iterdir()} == {"rows.jsonl", "run"}


def test_a_preparation_that_fails_leaves_no_folder(tmp_path: Path, recipe: dict[str, Any], data: Path) -> None:
    data.write_text("not json")
    with pytest.raises(DataError):
        fulltune.prepare(recipe, out=tmp_path / "runs/one")
    assert not (tmp_path / "runs").exists()
