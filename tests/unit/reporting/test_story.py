"""A run folder is read as far as it goes."""

import json
import math
from pathlib import Path

from fulltune.reporting.story import read_story
from tests.unit.reporting.folders import bare, evaluation, step

START = {"kind": "start", "updates": 9, "pid": 1, "engine": "single"}


def test_what_a_rollback_took_back_does_not_count(tmp_path: Path) -> None:
    back = {"kind": "rollback", "step": 4, "to": 2, "what": "loss spike: back to update 2", "rows": ["a:1"]}
    lines = [
        START,
        evaluation(0, 5.0),
        step(1, 4.0),
        step(2, 3.0),
        step(3, 9.0),
        evaluation(3, 9.0),
        step(4, 99.0),
        back,
    ]
    story = read_story(bare(tmp_path / "run", lines))
    assert story.curve("loss") == [(1, 4.0), (2, 3.0)]
    assert [report.step for report in story.evaluations] == [0]
    story = read_story(bare(tmp_path / "on", [*lines, step(3, 2.5), evaluation(3, 2.0)]))
    assert story.curve("loss") == [(1, 4.0), (2, 3.0), (3, 2.5)]
    assert story.scored("heldout.loss") == [(0, 5.0), (3, 2.0)]
    assert [line["what"] for line in story.odd] == ["loss spike: back to update 2"]


def test_a_line_that_a_kill_tore_is_left_out_and_said(tmp_path: Path) -> None:
    run = bare(tmp_path / "run", [START, step(1, 4.0)])
    with (run / "journal.jsonl").open("a") as file:
        file.write('{"kind": "step", "step": 2, "lo')
    story = read_story(run)
    assert story.last == 1
    assert "journal.jsonl:3: the line is not whole: the run was killed while it was written" in story.missing


def test_an_empty_folder_says_what_is_not_there(tmp_path: Path) -> None:
    story = read_story(tmp_path)
    assert [what.partition(":")[0] for what in story.missing] == [
        "data.json",
        "plan.json",
        "record.json",
        "journal.jsonl",
    ]
    assert (story.last, story.baseline, story.after, story.result_step, story.base) == (0, None, None, None, "")


def test_a_damaged_card_is_said_and_the_rest_is_read(tmp_path: Path) -> None:
    run = bare(tmp_path / "run", [START, step(1, 4.0)], plan=[1, 2])
    (run / "record.json").write_text('{"result_step": ')
    story = read_story(run)
    assert story.last == 1
    assert any(what.startswith("record.json: it cannot be read") for what in story.missing)
    assert "plan.json: it holds no JSON object" in story.missing


def test_numbers_that_are_not_finite_come_back_from_their_names(tmp_path: Path) -> None:
    story = read_story(bare(tmp_path / "run", [step(1, "NaN"), step(2, "Infinity"), step(3, 1.0)]))
    losses = [loss for _, loss in story.curve("loss")]
    assert math.isnan(losses[0])
    assert losses[1:] == [math.inf, 1.0]


def test_the_result_is_that_of_the_record_and_the_base_is_named_without_its_folders(tmp_path: Path) -> None:
    lines = [evaluation(0, 5.0), step(1, 4.0), evaluation(1, 3.0), step(2, 4.0), evaluation(2, 3.5)]
    story = read_story(bare(tmp_path / "run", lines, record={"result_step": 1}))
    assert story.after is not None
    assert (story.after.step, story.base, story.name) == (1, "my-org/my-model", "run")
    (story.path / "recipe.yaml").write_text("model:\n  path: /somewhere/of/mine/llama\n")
    assert read_story(story.path).base == "llama"


def test_intervals_and_directions_are_found_whatever_they_are_called(tmp_path: Path) -> None:
    more = {"bootstrap": {"heldout.loss": [4.5, 5.5]}, "better": {"heldout.loss": "lower"}}
    story = read_story(bare(tmp_path / "run", [evaluation(0, 5.0, **more)]))
    assert story.baseline is not None
    assert story.baseline.intervals == {"heldout.loss": (4.5, 5.5)}
    assert story.baseline.better == {"heldout.loss": "lower"}


def test_suites_in_the_journal_count_unless_they_were_taken_back(tmp_path: Path) -> None:
    told = {
        "kind": "suite",
        "suite": "sums",
        "questions": 80,
        "intervals": {"exact": [0.1, 0.3]},
        "better": {"exact": "higher"},
    }
    at = [{**told, "step": step, "model": f"step-{step:08d}", "scores": {"exact": step / 10}} for step in (0, 1, 2)]
    back = {"kind": "rollback", "step": 2, "to": 1, "what": "back"}
    lines = [at[0], evaluation(0, 5.0), step(1, 4.0), at[1], step(2, 9.0), at[2], back]
    story = read_story(bare(tmp_path / "run", lines))
    assert story.scored("sums.exact") == [(0, 0.0), (1, 0.1)]
    assert story.evaluations[1].intervals == {"sums.exact": (0.1, 0.3)}


def test_suites_stand_beside_losses(tmp_path: Path) -> None:
    run = bare(tmp_path / "run", [evaluation(0, 5.0), step(1, 4.0), evaluation(1, 3.0)], record={"result_step": 1})
    suite = {"suite": "sums", "questions": 80, "better": {"exact": "higher"}, "counts": {"tokens": 5}}
    for model, score in (("base", 0.1), ("result", 0.6), ("/some/other", 0.9)):
        told = {**suite, "model": model, "step": None, "scores": {"exact": score}, "intervals": {"exact": [score, 0.7]}}
        (run / "evaluations" / "sums").mkdir(parents=True, exist_ok=True)
        (run / "evaluations" / "sums" / f"{model.replace('/', '-')}.json").write_text(json.dumps(told))
    (run / "evaluations" / "notes.json").write_text("[]")
    story = read_story(run)
    assert story.scored("sums.exact") == [(0, 0.1), (1, 0.6)]
    assert story.after is not None
    assert story.after.intervals["sums.exact"] == (0.6, 0.7)
    assert story.after.counts == {"heldout": 200, "retention": 300, "sums": 80}
    assert story.after.better["sums.exact"] == "higher"
