"""The rule for the best checkpoint and the gate of the result, as a user meets them: whole runs, exit codes, pages."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import fulltune
from fulltune.base.errors import GateError
from fulltune.base.records import Mark, RunRecord
from fulltune.training.journal import read
from tests import command, tiny

FOREIGN = ["ψϕχ ωβγ", "дщж ъыэ юяё", "ねこ いぬ とり さる", "ابت ثجح خدذ"]
"""Texts of bytes that no row teaches: whatever is learned makes them less likely."""


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory, llama: Path) -> Path:
    """Twelve updates that forget, with test data, retention data and a suite."""
    folder = tmp_path_factory.mktemp("gate")
    rows = [{"question": row["prompt"], "answer": row["completion"]} for row in tiny.rows(6, seed=9)]
    suite = {"name": "likely", "kind": "text", "prompt": "question", "answer": "answer"}
    asked = tiny.recipe(
        llama,
        tiny.jsonl(folder / "rows.jsonl", tiny.rows(40)),
        data={
            "retention": str(tiny.jsonl(folder / "kept.jsonl", [{"text": text} for text in FOREIGN])),
            "test": str(tiny.jsonl(folder / "test.jsonl", tiny.rows(6, seed=6))),
        },
        train={"steps": 12},
        optim={"lr": 1e-2, "schedule": "constant", "warmup": 0},
        evaluate={
            "every": 1,
            "samples": 0,
            "suites": [{**suite, "data": str(tiny.jsonl(folder / "questions.jsonl", rows))}],
        },
        checkpoint={
            "every": 6,
            "keep": 1,
            "best_by": {"score": "heldout.loss", "retention": {"max_loss_increase": 0.1}},
        },
    )
    path = folder / "recipe.yaml"
    path.write_text(json.dumps(asked))
    return path


@pytest.fixture(scope="module")
def run(recipe: Path) -> Path:
    """The command with --gate, which ships it."""
    done = command.run("train", "recipe.yaml", "--gate", cwd=recipe.parent)
    assert done.returncode == 0, done.stderr
    return recipe.parent / "runs/recipe"


@pytest.fixture(scope="module")
def shipped(run: Path) -> RunRecord:
    """Its record, before anything else is asked of it."""
    return fulltune.train(run)


def rose(record: RunRecord) -> dict[int, float]:
    """By how much retention loss rose until each evaluation."""
    assert record.baseline is not None
    base = record.baseline.scores["retention.loss"]
    return {report.step: report.scores["retention.loss"] - base for report in record.evaluations}


def test_the_best_is_the_best_that_did_not_forget(shipped: RunRecord) -> None:
    record = shipped
    held = {report.step: report.scores["heldout.loss"] for report in record.evaluations}
    kept = [step for step, far in rose(record).items() if far <= 0.1]
    best = min(kept, key=lambda step: held[step])
    assert min(held.values()) < held[best], "without the rule another would be best"
    assert record.result_step == record.progress.best_update == best
    assert record.selection is not None
    assert record.selection.kept
    assert record.selection.rule == "the lowest heldout.loss with retention.loss at most 0.1 worse than the base's"


def test_the_verdict_is_by_test_data_that_chose_nothing(run: Path, shipped: RunRecord) -> None:
    record = shipped
    assert record.baseline is not None
    after = next(report for report in record.evaluations if report.step == record.result_step)
    verdict = record.verdict
    assert verdict is not None
    assert verdict.ship is True
    assert verdict.gained is not None
    assert verdict.gained.score == "test.loss"
    assert verdict.gained.gain == record.baseline.scores["test.loss"] - after.scores["test.loss"] > 0
    assert verdict.lost is not None
    assert -verdict.lost.gain == pytest.approx(rose(record)[record.result_step])
    others = [report for report in record.evaluations if report.step != record.result_step]
    assert not any("test.loss" in report.scores for report in others), "while training nobody looks at it"
    assert any("selected by retention loss" in note for note in verdict.notes)
    assert json.loads((run / "record.json").read_text())["verdict"]["ship"] is True


def test_the_verdict_stands_on_top_of_the_report_and_in_the_model_card(run: Path, shipped: RunRecord) -> None:
    assert shipped.verdict is not None
    page = (run / "report.html").read_text()
    assert page.index('class="gate"') < page.index('class="verdict"')
    assert '<b class="said good">SHIP</b>' in page
    assert "gained " + shipped.verdict.headline.split()[1] in page
    card = (run / "model/README.md").read_text()
    assert re.search(r"^\*\*SHIP\*\*: gained ", card, re.MULTILINE)
    assert "selected by retention loss" in card


def test_evaluate_gives_the_same_verdict(run: Path, shipped: RunRecord) -> None:
    assert shipped.verdict is not None
    assert shipped.verdict.gained is not None
    asked = ("evaluate", "runs/recipe", "--gate")
    done = command.run(*asked, "--json", cwd=run.parent.parent)
    assert done.returncode == 0
    values = json.loads(done.stdout)["verdict"]
    assert values["ship"] is True
    assert values["gained"]["gain"] == pytest.approx(shipped.verdict.gained.gain, abs=1e-4)
    done = command.run(*asked, "evaluate.gate={min_gain: 50}", cwd=run.parent.parent)
    assert done.returncode == GateError.exit_code == 10
    assert "DO NOT SHIP\nfailed: a gain of more than 50 in test.loss" in done.stdout
    assert done.stderr.endswith("mend:  the result is written in full; see its report.html\n")
    assert command.run(*asked[:2], "evaluate.gate={min_gain: 50}", cwd=run.parent.parent).returncode == 0, "not asked"
    done = command.run(*asked, "--suite", "x.yaml", cwd=run.parent.parent)
    assert (done.returncode, "--gate is of losses" in done.stderr) == (2, True)


def test_a_gate_that_is_changed_later_judges_the_result_anew_with_intervals_of_suites(
    run: Path, shipped: RunRecord
) -> None:
    gate = "evaluate.gate={score: likely.loss, min_gain: 20, floors: {likely.token_accuracy: 0.99}}"
    done = command.run("train", "runs/recipe", "--gate", gate, cwd=run.parent.parent)
    assert done.returncode == 10
    assert "DO NOT SHIP" in done.stdout
    assert "failed: a gain of more than 20 in likely.loss, and it is" in done.stderr
    assert "failed: likely.token_accuracy at least 0.99, and it is" in done.stderr
    record = fulltune.train(run)
    assert record.result_step == shipped.result_step, "the result is written in full, and no other"
    assert record.progress.update == 12
    verdict = record.verdict
    assert verdict is not None
    assert verdict.gained is not None
    assert verdict.gained.interval is not None
    low, high = verdict.gained.interval
    assert low < verdict.gained.gain < high
    assert '<b class="said bad">DO NOT SHIP</b>' in (run / "report.html").read_text()


@pytest.mark.slow
def test_a_run_that_goes_on_knows_what_was_best_and_another_rule_judges_anew(
    tmp_path: Path, recipe: Path, shipped: RunRecord
) -> None:
    class Stop:
        """Ends the process's run after an update, as a fault would."""

        def hear(self, kind: str, values: dict[str, Any]) -> None:
            if kind == "step" and values["step"] == 9:
                raise KeyboardInterrupt

    whole = shipped
    assert whole.result_step < 6, "it was best before the checkpoint from which the other goes on"
    torn = tmp_path / "torn"
    with pytest.raises(KeyboardInterrupt):
        fulltune.train(recipe, out=torn, sinks=[Stop()])
    again = fulltune.train(recipe, out=torn)
    assert [line["resumed_at"] for line in read(torn / "journal.jsonl", "start") if "resumed_at" in line] == [6]
    timeless = [replace(one.progress, seconds=0.0, begun=Mark()) for one in (again, whole)]
    assert timeless[0] == timeless[1]
    assert (again.result_step, again.selection) == (whole.result_step, whole.selection)
    assert again.verdict == whole.verdict
    other = fulltune.train(recipe, out=torn, checkpoint={"best_by": {"floors": {"heldout.perplexity": 1.5}}})
    assert other.selection is not None
    assert not other.selection.kept
    assert other.result_step == 12, "of the states on disk the one that breaks it least"
    (warning,) = read(torn / "journal.jsonl", "warning")
    assert warning["what"].startswith(
        "no state keeps checkpoint.best_by (the lowest heldout.loss with heldout.perplexity"
    )
    assert other.verdict is not None
    assert other.verdict.ship is False, "what the best must keep the result must keep too"
    assert any("the result breaks it least" in note for note in other.verdict.notes)
    assert "the result breaks it least" in (torn / "report.html").read_text()


def test_a_suite_may_choose_and_the_last_state_is_asked_then(tmp_path: Path, recipe: Path) -> None:
    best_by = {"score": "likely.token_accuracy", "floors": {"likely.loss": 9}}
    record = fulltune.train(
        recipe,
        out=tmp_path / "run",
        train={"steps": 5},
        evaluate={"every": 10, "suites_every": 2},
        checkpoint={"best_by": best_by, "every": 10},
    )
    scores = {report.step: report.scores["token_accuracy"] for report in record.suites if report.step}
    assert list(scores) == [2, 4, 5]
    assert record.result_step == record.progress.best_update == max(scores, key=lambda step: scores[step])
    assert record.progress.best_score == max(scores.values())


def test_a_gate_that_cannot_be_judged_is_refused_before_anything_is_trained(tmp_path: Path, recipe: Path) -> None:
    for word, said in (("--gate", "the gate cannot be judged"), ("--dry-run", "a dry run has no result")):
        done = command.run(
            "train",
            str(recipe),
            word,
            "--gate",
            "data.heldout=0",
            "data.test=0",
            "checkpoint.best_by=retention.loss",
            cwd=tmp_path,
        )
        assert (done.returncode, said in done.stderr) == (2, True), done.stderr
    assert not (tmp_path / "runs/recipe/journal.jsonl").exists()
