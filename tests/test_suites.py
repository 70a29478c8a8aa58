"""Suites as a user reaches them: in a recipe, on the command line, for a run or any model folder."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

import fulltune
from fulltune.base.errors import DataError, MachineError, RecipeError
from fulltune.base.files import read_record
from fulltune.base.records import RunRecord
from fulltune.base.results import Examination, SuiteReport
from fulltune.evaluation.scoring import Scorer
from fulltune.training.journal import read
from tests import command, tiny


@pytest.fixture
def questions(tmp_path: Path) -> Path:
    rows = [{"question": row["prompt"], "answer": row["completion"]} for row in tiny.rows(6)]
    return tiny.jsonl(tmp_path / "questions.jsonl", rows)


@pytest.fixture
def recipe(tmp_path: Path, llama: Path, data: Path, questions: Path) -> Path:
    """With a suite in a file of its own and one that is written in place."""
    folder = tmp_path / "suites"
    folder.mkdir()
    (folder / "said.yaml").write_text(
        "data: ../questions.jsonl\nprompt: question\nanswer: answer\nmetrics: [chrf, exact_match]\nmax_new_tokens: 5\n"
    )
    likely = {"name": "likely", "kind": "text", "data": "questions.jsonl", "prompt": "question", "answer": "answer"}
    path = tmp_path / "recipe.yaml"
    path.write_text(json.dumps(tiny.recipe(llama, data, evaluate={"suites": ["suites/said.yaml", likely]})))
    return path


def asked(run: Path) -> list[tuple[int, str]]:
    return [(line["step"], line["suite"]) for line in read(run / "journal.jsonl", "suite")]


def test_a_run_asks_the_base_and_the_result(tmp_path: Path, recipe: Path) -> None:
    run = tmp_path / "run"
    record = fulltune.train(recipe, out=run)
    best = record.result_step
    assert asked(run) == [(0, "said"), (0, "likely"), (best, "said"), (best, "likely")]
    assert [(report.step, report.suite) for report in record.suites] == asked(run)
    before, after = record.suites[1], record.suites[3]
    assert after.scores["loss"] < before.scores["loss"], "it learned to answer like that"
    assert after.intervals["loss"][0] < after.scores["loss"] < after.intervals["loss"][1]
    for report in record.suites:
        folder = run / f"evaluations/step-{report.step:08d}"
        assert read_record(folder / f"{report.suite}.json", SuiteReport) == report
        assert len((folder / f"{report.suite}.jsonl").read_text().splitlines()) == 6
    assert read_record(run / "record.json", RunRecord) == record
    assert fulltune.train(recipe, out=run) == record, "nothing is asked again"
    assert len(asked(run)) == 4
    shown = " ".join(command.run("train", str(run), cwd=tmp_path).stdout.split())
    assert f"likely.loss {before.scores['loss']:.4f} -> {after.scores['loss']:.4f} [" in shown


def test_suites_change_nothing_that_is_learned(tmp_path: Path, recipe: Path) -> None:
    fulltune.train(recipe, out=tmp_path / "with", evaluate={"suites_every": 2})
    fulltune.train(recipe, out=tmp_path / "without", evaluate={"suites": []})
    one, other = (load_file(tmp_path / name / "model/model.safetensors") for name in ("with", "without"))
    assert one.keys() == other.keys()
    assert all(bool((one[name] == other[name]).all()) for name in one)
    assert not (tmp_path / "without/evaluations").exists()


@pytest.mark.slow
def test_a_suite_that_is_added_to_a_run_that_is_done_is_asked_of_its_result(tmp_path: Path, recipe: Path) -> None:
    run = tmp_path / "run"
    whole = recipe.read_text()
    values = json.loads(whole)
    recipe.write_text(json.dumps(values | {"evaluate": {"suites": values["evaluate"]["suites"][:1]}}))
    best = fulltune.train(recipe, out=run).result_step
    recipe.write_text(whole)
    record = fulltune.train(recipe, out=run)
    assert [(report.step, report.suite) for report in record.suites][-2:] == [(best, "said"), (best, "likely")]
    assert (0, "likely") not in asked(run), "the base is gone by then: `evaluate RUN --against base` asks it"


def test_suites_while_training(tmp_path: Path, recipe: Path) -> None:
    run = tmp_path / "run"
    record = fulltune.train(recipe, out=run, evaluate={"suites_every": 2, "every": 3})
    steps = sorted({step for step, _ in asked(run)})
    assert steps == [0, 2, 4, 6]
    measured = [line["step"] for line in read(run / "journal.jsonl", "evaluation")]
    assert measured == [0, 2, 3, 4, 6], "where suites are asked, held-out loss stands beside them"
    assert record.result_step == 6
    assert len([step for step, _ in asked(run) if step == 6]) == 2, "the last state is not asked twice"


def test_what_is_wrong_with_suites_is_said_before_anything_is_done(
    tmp_path: Path, recipe: Path, questions: Path
) -> None:
    for change, said in (
        ({"suites": ["none.yaml"]}, "No such file"),
        ({"suites": [{"data": str(questions), "prompt": "question", "metrics": "blue"}]}, "did you mean 'bleu'"),
        ({"suites": [{"data": str(questions), "prompt": "question", "name": "heldout"}]}, "is called heldout"),
        ({"suites": [], "suites_every": 2}, "there are none in evaluate.suites"),
        ({"suites": [], "batch_tokens": 2}, "there are none in evaluate.suites"),
    ):
        with pytest.raises(RecipeError, match=said):
            fulltune.train(recipe, out=tmp_path / "run", evaluate=change)
    questions.write_text('{"question": "x"}\n')
    with pytest.raises(DataError, match="there is no `answer`"):
        fulltune.prepare(recipe, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()
    suite = tmp_path / "suites/said.yaml"
    suite.write_text(suite.read_text().replace("metrics", "metric"))
    with pytest.raises(RecipeError) as caught:
        fulltune.plan(recipe, out=tmp_path / "run")
    (fault,) = caught.value.faults
    assert fault.where == f"{suite}:4"
    assert fault.mend == "did you mean `metrics`?"


def test_the_run_folder_keeps_the_suites_as_they_were(tmp_path: Path, recipe: Path) -> None:
    """A suite file that changes later changes no run; and the resolved recipe needs it no more."""
    fulltune.plan(recipe, out=tmp_path / "run")
    (tmp_path / "suites/said.yaml").unlink()
    record = fulltune.train(tmp_path / "run")
    assert {report.suite for report in record.suites} == {"said", "likely"}


def test_the_command_compares_result_and_base(tmp_path: Path, recipe: Path) -> None:
    run = tmp_path / "runs/recipe"
    fulltune.train(recipe, out=run)
    done = command.run("evaluate", "runs/recipe", "--against", "base", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    values = json.loads(done.stdout)
    kept = read_record(run / "evaluations/result-against-base.json", Examination)
    assert [(r["model"], r["suite"]) for r in values["reports"]] == [
        (model, suite) for model in ("result", "base") for suite in ("said", "likely")
    ]
    own = [report for report in kept.reports if report.model == "result"]
    finished = fulltune.train(recipe, out=run)
    trained = [report for report in finished.suites if report.step == finished.result_step]
    for mine, theirs in zip(own, trained, strict=True):
        assert mine.fingerprint == theirs.fingerprint
        assert mine.scores == pytest.approx(theirs.scores, abs=1e-5), "as it was measured at the end of training"
    test = kept.comparisons[1].metrics["loss"]
    assert test.difference < 0
    assert test.lower + test.higher == test.questions == 6
    shown = command.run("evaluate", "runs/recipe", "--against", "base", cwd=tmp_path).stdout
    assert "result minus base, the same questions:" in shown
    assert "permutation of pairs" in shown
    assert "McNemar exact" in shown
    assert {path.name for path in (run / "evaluations").iterdir()} >= {"result", "base"}


def test_a_model_in_a_folder_called_base_is_not_taken_for_that_of_the_run(
    tmp_path: Path, recipe: Path, llama: Path
) -> None:
    run = tmp_path / "run"
    fulltune.train(recipe, out=run)
    shutil.copytree(llama, tmp_path / "base")
    made = fulltune.examine(run, against=tmp_path / "base")
    assert {report.model for report in made.reports} == {"result", "base-2"}
    assert not (run / "evaluations/base").exists()


def test_memory_that_runs_out_while_asking_is_said_with_what_helps(
    llama: Path, questions: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any, **__: Any) -> Any:
        raise MemoryError

    monkeypatch.setattr(Scorer, "_scored", full)
    suite = {"data": str(questions), "kind": "text", "prompt": "question", "answer": "answer", "name": "mine"}
    with pytest.raises(MachineError, match="out of memory with batches of up to .* MemoryError"):
        fulltune.examine(llama, [suite])


def test_any_model_folder_and_any_suite(tmp_path: Path, llama: Path, questions: Path) -> None:
    suite = tmp_path / "mine.yaml"
    suite.write_text("data: questions.jsonl\nkind: text\nprompt: question\nanswer: answer\n")
    done = command.run("evaluate", str(llama), "--suite", "mine.yaml", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "bits_per_byte" in done.stdout
    assert "answers are not kept; --out DIR keeps them" in done.stdout
    other = tiny.folder(tmp_path / "other", seed=5)
    words = ["evaluate", str(llama), "--suite", "text=questions.jsonl", "--against", "other", "--out", "out"]
    assert command.run(*words, cwd=tmp_path).returncode == 3, "its column is called text"
    tiny.jsonl(questions, [{"text": row["prompt"]} for row in tiny.rows(5)])
    done = command.run(*words, "--json", "--batch-tokens", "64", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["comparisons"][0]["other"] == other.name
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["model", "model-against-other.json", "other"]
    same = command.run("evaluate", str(llama), "--suite", "text=questions.jsonl", "--against", str(llama), cwd=tmp_path)
    assert "model minus model-2" in same.stdout
    assert "+0.0000" in same.stdout


def test_models_that_were_asked_in_different_ways_are_said_to_be(tmp_path: Path, llama: Path, questions: Path) -> None:
    """One has a chat template and the other none, so they did not get the same question."""
    assert questions
    tiny.folder(tmp_path / "bare", tokens=tiny.tokenizer(template=None))
    (tmp_path / "said.yaml").write_text("data: questions.jsonl\nprompt: question\nanswer: answer\nmax_new_tokens: 3\n")
    words = ["evaluate", "bare", "--suite", "said.yaml", "--against"]
    done = command.run(*words, str(llama), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "bare was asked as plain, model as chat" in done.stderr
    assert "was asked as" not in command.run(*words, "bare", cwd=tmp_path).stderr


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["evaluate", "MODEL", "--suite", "none.yaml"], 2, "No such file"),
        (["evaluate", "MODEL", "--suite", "gsm9k=questions.jsonl"], 2, "did you mean 'gsm8k'"),
        (["evaluate", "MODEL", "--suite", "questions.jsonl"], 2, "nothing says how they are asked"),
        (["evaluate", "MODEL", "--suite", "gsm8k=none.jsonl"], 3, "no such file of questions"),
        (["evaluate", "MODEL", "--suite", "gsm8k=questions.jsonl", "--against", "base"], 2, "only a run has a base"),
        (["evaluate", "MODEL", "--against", "MODEL"], 2, "no suite is named"),
        (["evaluate", "MODEL", "--suite", "x.yaml", "--model", "y"], 2, "--model is of losses"),
        (["evaluate", "MODEL", "--suite", "x.yaml", "optim.lr=1"], 2, "KEY=VALUE is of losses"),
        (["evaluate", "recipe.yaml", "--batch-tokens", "5"], 2, "--batch-tokens is of suites"),
        (["evaluate", "run", "--suite", "likely.yaml"], 2, "this run has no result yet"),
        (["evaluate", "MODEL", "--suite", "likely.yaml", "--out", "recipe.yaml"], 2, "this is no folder"),
    ],
)
def test_mistakes_are_three_lines(
    tmp_path: Path, recipe: Path, llama: Path, words: list[str], code: int, said: str
) -> None:
    (tmp_path / "likely.yaml").write_text("data: questions.jsonl\nkind: text\nanswer: answer\n")
    if "run" in words:
        fulltune.plan(recipe, out=tmp_path / "run")
    done = command.run(*[str(llama) if word == "MODEL" else word for word in words], cwd=tmp_path)
    assert (done.returncode, done.stdout) == (code, "")
    assert said in done.stderr
    assert done.stderr.startswith("error: ")
    assert "Traceback" not in done.stderr


def test_a_dry_run_asks_nothing(tmp_path: Path, recipe: Path) -> None:
    figures: dict[str, Any] = fulltune.dry_run(recipe, out=tmp_path / "run")
    assert figures["loss"] > 0
    assert not (tmp_path / "run/evaluations").exists()
