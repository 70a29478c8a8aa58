"""Suites put to a model that several processes have: the same scores as of one, every question once, on all or none."""

import json
from pathlib import Path
from typing import Any

import pytest

import fulltune
from fulltune.training.journal import read
from tests import tiny
from tests.distributed.ranks import run_together

WORKER = "tests.distributed.worker"


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two updates, and seven questions, which two processes do not share evenly."""
    folder = tmp_path_factory.mktemp("recipe")
    rows = [{"question": row["prompt"], "answer": row["completion"]} for row in tiny.rows(7)]
    put = {"data": str(tiny.jsonl(folder / "q.jsonl", rows)), "prompt": "question", "answer": "answer"}
    said = {**put, "name": "said", "metrics": "chrf", "max_new_tokens": 8, "temperature": 0.7}
    values = tiny.recipe(
        tiny.folder(folder / "model"),
        tiny.jsonl(folder / "rows.jsonl", tiny.rows(40)),
        train={"steps": 2, "batch_examples": 5, "precision": "float32"},
        evaluate={"suites": [said, {**put, "name": "likely", "kind": "text"}], "samples": 0},
        engine={"timeout": 60.0},
    )
    path = folder / "recipe.yaml"
    path.write_text(json.dumps(values))
    return path


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory, recipe: Path) -> Path:
    folder = tmp_path_factory.mktemp("reference") / "run"
    fulltune.train(recipe, out=folder)
    return folder


def lines(run: Path) -> list[dict[str, Any]]:
    return list(read(run / "journal.jsonl", "suite"))


@pytest.mark.parametrize("engine", ["ddp", pytest.param("fsdp2", marks=pytest.mark.slow)])
def test_suites_of_several_processes_are_those_of_one(
    tmp_path: Path, recipe: Path, reference: Path, engine: str
) -> None:
    run = tmp_path / "run"
    done = run_together(2, WORKER, "train", str(recipe), f"engine.name={engine}", "--out", str(run))
    assert done.codes == [0, 0], "\n".join(done.said)
    ours, theirs = lines(run), lines(reference)
    assert len(ours) == len(theirs) == 4
    for one, other in zip(ours, theirs, strict=True):
        assert (one["suite"], one["step"], one["questions"], one["counts"]) == (
            other["suite"],
            other["step"],
            7,
            other["counts"],
        )
        assert one["scores"] == pytest.approx(other["scores"], rel=1e-5)
    for name in ("said", "likely"):
        place = f"evaluations/step-00000000/{name}.jsonl"
        asked, wanted = ((folder / place).read_text().splitlines() for folder in (run, reference))
        for one, other in zip(map(json.loads, asked), map(json.loads, wanted), strict=True):
            assert (one["id"], one["question"], one["answer"]) == (other["id"], other["question"], other["answer"])


@pytest.mark.slow
def test_what_one_cannot_ask_all_fail_of_at_once(tmp_path: Path, recipe: Path) -> None:
    """A question of the second process's share; the first does not wait for its answer until the time is over."""
    run, befalls = tmp_path / "run", "1,fulltune.evaluation.scoring:Scorer._scored,1,REFUSE"
    words = ["train", str(recipe), "engine.name=ddp", "engine.timeout=60", "--out", str(run)]
    done = run_together(2, WORKER, *words, BEFALL=befalls)
    assert done.codes == [3, 3], "\n".join(done.said)
    assert all("this question cannot be asked" in said for said in done.said)


@pytest.mark.slow
def test_a_signal_to_one_while_questions_are_asked_stops_all(tmp_path: Path, recipe: Path) -> None:
    """The other waits for its answers, and is told."""
    run = tmp_path / "run"
    befalls = "1,fulltune.evaluation.scoring:Scorer._scored,1,TERM"
    done = run_together(
        2,
        WORKER,
        "train",
        str(recipe),
        "engine.name=ddp",
        "evaluate.batch_tokens=40",
        "--out",
        str(run),
        BEFALL=befalls,
    )
    assert done.codes == [75, 75], "\n".join(done.said)
    assert not (run / "evaluations/step-00000000/likely.jsonl").exists()
    assert (run / "evaluations/step-00000000/said.jsonl").exists()
