"""Runs one after the other: what earlier ones were judged by is measured again; nothing of them is trained on."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

import fulltune
from fulltune.base.errors import DataError, RecipeError
from fulltune.base.files import read_record
from fulltune.base.records import DataFacts, Plan, RunRecord
from fulltune.data.store import Store
from fulltune.runs import open_run
from tests import tiny

QUESTIONS = [{"q": f"{n}: the cat", "a": "sat"} for n in range(4)]


def suite(place: Path, **changes: Any) -> dict[str, Any]:
    data = tiny.jsonl(place, QUESTIONS)
    values = {"data": str(data), "prompt": "q", "answer": "a", "name": "cats", "metrics": ["contains"]}
    return {**values, "max_new_tokens": 3, "resamples": 100, **changes}


def recipe(model: Path, rows: Path, **sections: dict[str, Any]) -> dict[str, Any]:
    short = {"train": {"steps": 2, "batch_examples": 8}, "evaluate": {"samples": 0}}
    return tiny.recipe(
        model, rows, **{name: {**short.get(name, {}), **sections.get(name, {})} for name in {*short, *sections}}
    )


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, llama: Path) -> Path:
    """`first`, and `second` that begins with its result."""
    work = tmp_path_factory.mktemp("chain")
    rows = [{"q": row["prompt"], "a": row["completion"]} for row in tiny.rows(40)]
    old = tiny.jsonl(work / "old.jsonl", rows)
    new = tiny.jsonl(work / "new.jsonl", tiny.rows(40, seed=5))
    columns = {"prompt": "q", "completion": "a"}
    asked = recipe(
        llama,
        old,
        data={"train": [{"path": str(old), "columns": columns}]},
        evaluate={"suites": [suite(work / "cats.jsonl")]},
    )
    fulltune.train(asked, out=work / "first")
    fulltune.train(recipe(work / "first", new), out=work / "second")
    return work


def record(run: Path) -> RunRecord:
    return read_record(run / "record.json", RunRecord)


def test_the_earlier_task_is_measured_before_and_after_on_the_very_examples_that_were_held_out(runs: Path) -> None:
    first, second = record(runs / "first"), record(runs / "second")
    ended = next(report for report in first.evaluations if report.step == first.result_step)
    assert second.baseline is not None
    assert second.data.splits["retention"].examples == first.data.splits["heldout"].examples > 0
    assert second.baseline.scores["retention.loss"] == pytest.approx(ended.scores["heldout.loss"], abs=1e-6)
    assert second.evaluations[-1].scores["retention.loss"] != second.baseline.scores["retention.loss"]
    assert [(report.suite, report.step) for report in second.suites] == [("cats", 0), ("cats", second.result_step)]
    assert second.suites[0].fingerprint == first.suites[0].fingerprint


def test_nothing_of_the_earlier_task_is_trained_on(runs: Path) -> None:
    facts = record(runs / "second").data
    assert [source.path for source in facts.sources["train"]] == [str(runs / "new.jsonl")]
    assert facts.splits["train"].examples + facts.splits["heldout"].examples == 40


def test_record_report_and_model_card_name_the_chain_and_say_backward_transfer(runs: Path) -> None:
    second = record(runs / "second")
    (task,) = second.plan.chain
    assert (task.name, task.run, task.suites, task.missing) == ("first", str(runs / "first"), ("cats",), ())
    assert task.recipe == record(runs / "first").recipe
    assert second.baseline is not None
    moved = second.evaluations[-1].scores["retention.loss"] - second.baseline.scores["retention.loss"]
    page = (runs / "second/report.html").read_text()
    card = (runs / "second/model/README.md").read_text()
    for text in (page, card):
        assert "Earlier tasks" in text
        assert f"mean change of the loss of 1 earlier task: {moved:+.4f}" in text.replace("\\", "")
        assert "Forward gain, change of heldout.loss of the new task" in text.replace("\\", "")
    assert "| first | retention.loss |" in card
    assert "cats.contains" in page
    assert "Earlier tasks" not in (runs / "first/report.html").read_text()


def test_a_third_run_keeps_both_and_knows_each_by_its_name(runs: Path) -> None:
    run = open_run(recipe(runs / "second/model", runs / "third.jsonl"), {}, out=runs / "third")
    assert [task.name for task in run.chain] == ["second", "first"]
    assert [(source.path, source.split) for source in run.recipe.data.retention] == [
        (str(runs / "second"), "heldout"),
        (str(runs / "first"), "heldout"),
    ]
    assert [asked.called for asked in run.recipe.evaluate.suites] == ["cats"]


def test_a_setting_turns_it_off(runs: Path) -> None:
    asked = recipe(runs / "first", runs / "new.jsonl", evaluate={"earlier_tasks": False})
    run = open_run(asked, {}, out=runs / "off")
    assert run.recipe.model.path == str(runs / "first/model")
    assert (run.chain, run.recipe.data.retention, run.recipe.evaluate.suites) == ((), (), ())


def test_the_own_suite_of_a_run_goes_first_where_another_is_called_the_same(runs: Path) -> None:
    own = suite(runs / "other.jsonl", max_new_tokens=5)
    run = open_run(recipe(runs / "first", runs / "new.jsonl", evaluate={"suites": [own]}), {}, out=runs / "named")
    assert [(one.called, one.max_new_tokens) for one in run.recipe.evaluate.suites] == [("cats", 5), ("first_cats", 3)]
    assert run.chain[0].suites == ("first_cats",)


def test_what_changed_or_is_gone_is_said_and_not_measured(runs: Path, tmp_path: Path) -> None:
    rows, asked = (tmp_path / "rows.jsonl", tmp_path / "asked.jsonl")
    run = tmp_path / "copy"
    shutil.copytree(runs / "first", run)
    written = (run / "recipe.yaml").read_text()
    (run / "recipe.yaml").write_text(
        written.replace(str(runs / "old.jsonl"), str(rows)).replace(str(runs / "cats.jsonl"), str(asked))
    )
    card = json.loads((run / "data.json").read_text())
    for sources in card["sources"].values():
        for source in sources:
            source.update(path=str(rows), files=[str(rows)])
    (run / "data.json").write_text(json.dumps(card))
    shutil.copy(runs / "old.jsonl", rows)
    shutil.copy(runs / "cats.jsonl", asked)
    wanted = recipe(run, runs / "new.jsonl")
    assert open_run(wanted, {}, out=tmp_path / "run").chain[0].missing == ()
    with rows.open("a") as file:
        file.write("\n")
    asked.unlink()
    opened = open_run(wanted, {}, out=tmp_path / "run")
    lost = opened.chain[0].missing
    assert len(lost) == 2
    assert "is not what the run read" in lost[0]
    assert "the suite cats" in lost[1]
    assert (opened.recipe.data.retention, opened.recipe.evaluate.suites) == ((), ())
    named = {"retention": [{"path": str(run), "split": "heldout"}]}
    with pytest.raises(DataError, match="is not what the run read"):
        fulltune.prepare(recipe(runs / "first/model", runs / "new.jsonl", data=named), out=tmp_path / "named")


def test_what_a_run_of_somebody_else_names_of_code_and_network_is_left_alone(runs: Path, tmp_path: Path) -> None:
    run = tmp_path / "foreign"
    shutil.copytree(runs / "first", run)
    written = (run / "recipe.yaml").read_text()
    for old, new, said in (
        ("use: contains", "use: nowhere.to:be_found", "the suite cats: it runs code"),
        ("use: null", "use: nowhere.to:be_found", None),
        (str(runs / "old.jsonl"), "s3://nowhere/rows.jsonl", "its held-out data: s3://nowhere/rows.jsonl lies on the"),
    ):
        assert old in written
        (run / "recipe.yaml").write_text(written.replace(old, new))
        missing = open_run(recipe(run, runs / "new.jsonl"), {}, out=tmp_path / "run").chain[0].missing
        assert [one.startswith(said or " ") for one in missing] == ([] if said is None else [True])


def test_going_on_changes_nothing_of_it(runs: Path, tmp_path: Path) -> None:
    """Also where the earlier run's own data is gone by then."""
    run = tmp_path / "run"
    shutil.copytree(runs / "second", run)
    before = read_record(run / "plan.json", Plan)
    moved = runs / "cats.jsonl"
    kept = moved.read_bytes()
    moved.unlink()
    try:
        opened = open_run(recipe(runs / "first", runs / "new.jsonl"), {}, out=run)
    finally:
        moved.write_bytes(kept)
    assert opened.changes == ()
    assert opened.chain == before.chain
    assert opened.recipe.evaluate.suites[0].called == "cats"


def test_an_old_question_among_the_new_rows_is_a_leak(runs: Path, tmp_path: Path) -> None:
    held = {line.split(":")[-1] for line in origins(runs / "first")}
    number = int(next(iter(held)))
    row = tiny.rows(40)[number - 1]
    rows = tiny.jsonl(tmp_path / "rows.jsonl", [*tiny.rows(20, seed=5), {**row, "prompt": row["prompt"].upper()}])
    wanted = recipe(runs / "first", rows, data={"heldout": 0})
    with pytest.raises(DataError, match="train holds the same content") as fault:
        fulltune.prepare(wanted, out=tmp_path / "run")
    assert str(runs / "first") in str(fault.value)


def origins(run: Path) -> list[str]:
    facts = read_record(run / "data.json", DataFacts)
    store = Store(run / "data/heldout", [source.files for source in facts.sources["heldout"]])
    return [store.origin(number) for number in range(len(store))]


def test_a_run_is_a_source_that_a_recipe_may_name_such_as_for_replay(runs: Path, tmp_path: Path) -> None:
    again = {"sources": [{"path": str(runs / "first"), "split": "train"}], "share": 0.5}
    wanted = recipe(runs / "first", runs / "new.jsonl", data={"replay": again})
    facts = fulltune.prepare(wanted, out=tmp_path / "run")
    assert facts.sources["train"][1].examples == record(runs / "first").data.splits["train"].examples
    with pytest.raises(DataError, match="which rows of this run"):
        fulltune.prepare(
            recipe(runs / "first", runs / "new.jsonl", data={"retention": str(runs / "first")}), out=tmp_path / "none"
        )


def test_a_run_without_a_result_is_no_model(runs: Path, tmp_path: Path) -> None:
    shutil.copytree(runs / "first", tmp_path / "run")
    (tmp_path / "run/record.json").unlink()
    with pytest.raises(RecipeError, match="no result yet"):
        open_run(recipe(tmp_path / "run", runs / "new.jsonl"), {}, out=tmp_path / "other")
