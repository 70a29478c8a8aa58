"""Cures by their settings, from recipe to result: what they do, and that killed runs end with the same bits."""

import itertools
import json
import signal
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from safetensors.torch import load_file

import fulltune
from fulltune.base.errors import CheckpointError, RecipeError
from fulltune.objectives import NextToken
from fulltune.training.journal import read
from fulltune.training.pulling import Pulling
from tests import command, tiny
from tests.contract.test_resume import digest, run, steps

PULLS = [
    {"use": "l2_sp", "options": {"alpha": 20}},
    {"use": "l2_sp_penalty", "options": {"alpha": 0.05}},
    {"use": "ewc", "options": {"strength": 5, "examples": 6}},
    {"use": "ema", "options": {"decay": 0.7}},
]


def recipe(folder: Path, **optim: Any) -> dict[str, Any]:
    """Dropout on; 9 updates, a checkpoint every 3, an evaluation every 4."""
    model = tiny.folder(folder / "model", "gpt2", attn_pdrop=0.1, embd_pdrop=0.1, resid_pdrop=0.1)
    kept = tiny.jsonl(folder / "kept.jsonl", [{"text": row["completion"]} for row in tiny.rows(12, seed=5)])
    return tiny.recipe(
        model,
        tiny.jsonl(folder / "rows.jsonl", tiny.rows(60)),
        data={"retention": str(kept)},
        train={"steps": 9},
        optim=optim,
        evaluate={"every": 4},
        checkpoint={"every": 3},
    )


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run without any of it."""
    folder = tmp_path_factory.mktemp("plain")
    assert run(recipe(folder), folder / "run") == 0
    return folder / "run"


@pytest.mark.parametrize(
    "optim",
    [
        pytest.param({"pulls": PULLS}, id="pulls"),
        pytest.param({"pulls": [{"use": "mixout", "options": {"probability": 0.5}}]}, id="mixout"),
        pytest.param({"unfreeze": 0.7, "layer_decay": 0.8, "groups": {"match": "mlp", "rate": 0.5}}, id="groups"),
    ],
)
def test_killed_runs_end_with_the_same_bits(tmp_path: Path, plain: Path, optim: dict[str, Any]) -> None:
    asked = recipe(tmp_path, **optim)
    assert run(asked, tmp_path / "whole") == 0
    killed = tmp_path / "killed"
    for step in (1, 5, 8):
        assert run(asked, killed, kill=step) == -signal.SIGKILL
    assert run(asked, killed) == 0
    assert digest(killed) == digest(tmp_path / "whole")
    assert steps(killed) == steps(tmp_path / "whole")
    assert digest(plain) != digest(tmp_path / "whole"), "the settings do something"


@pytest.mark.slow
def test_suites_are_put_to_the_average_too(tmp_path: Path) -> None:
    """While it trains and of the result: to the weights that are written, and none are changed by it."""
    rows = [{"q": row["prompt"], "a": row["completion"]} for row in tiny.rows(5)]
    questions = str(tiny.jsonl(tmp_path / "questions.jsonl", rows))
    suite = {"name": "likely", "kind": "text", "data": questions, "prompt": "q", "answer": "a"}
    asked = recipe(tmp_path, pulls=[{"use": "ema", "options": {"decay": 0.7}}])
    plain = fulltune.train(asked, out=tmp_path / "plain")
    record = fulltune.train(asked, out=tmp_path / "run", evaluate={"suites": [suite], "suites_every": 4})
    told = {report.step: report.scores["loss"] for report in record.suites}
    assert sorted(told) == [0, 4, 8, 9]
    same = fulltune.examine(tmp_path / "run", [suite]).reports[0].scores["loss"]
    assert told[record.result_step] == pytest.approx(same, abs=1e-5)
    step = fulltune.export(tmp_path / "run", tmp_path / "other", step=record.result_step)
    assert torch.equal(
        *(
            load_file(folder / "model.safetensors")["transformer.wte.weight"]
            for folder in (step, tmp_path / "run/model")
        )
    )
    assert digest(tmp_path / "run") == digest(tmp_path / "plain")
    assert plain.result_step == record.result_step
    card = (tmp_path / "run/model/README.md").read_text()
    assert r"| pulls | ema \(decay 0.7\) |" in card
    assert f"| likely.loss | {told[0]:.4g} | {told[record.result_step]:.4g} " in card
    assert "are of the average of the weights (ema)" in (tmp_path / "run/report.html").read_text()


@pytest.mark.slow
def test_room_is_asked_for_fisher_information_too(tmp_path: Path) -> None:
    asked = recipe(tmp_path, pulls=[{"use": "ewc", "options": {"strength": 5, "examples": 6}}])
    with mock.patch("fulltune.conduct.require_room") as room:
        figures = fulltune.dry_run(asked, out=tmp_path / "dry")
        fulltune.train(asked, out=tmp_path / "run", train={"steps": 1})
        asked["optim"]["pulls"][0]["file"] = str(tmp_path / "run/fisher.safetensors")
        fulltune.train(asked, out=tmp_path / "second", train={"steps": 1})
    _, first, second = (call.args[1] for call in room.call_args_list)
    weights = sum(value.nbytes for value in load_file(tmp_path / "run/model/model.safetensors").values())
    assert first - second == weights
    saved = sum(path.stat().st_size for path in (tmp_path / "run/checkpoints/step-00000001").iterdir())
    assert figures["checkpoint_bytes"] == pytest.approx(saved, rel=0.01), "and it is no part of a checkpoint"


def test_the_result_of_an_average_is_the_average(tmp_path: Path) -> None:
    asked = recipe(tmp_path, pulls=[{"use": "ema", "options": {"decay": 0.5}}])
    asked["checkpoint"]["best_by"] = "heldout.loss"
    record = fulltune.train(asked, out=tmp_path / "run")
    extra = load_file(tmp_path / f"run/checkpoints/step-{record.result_step:08d}/extra.safetensors")
    found = load_file(tmp_path / "run/model/model.safetensors")
    average = extra["transformer.wte.weight/ema.average"]
    assert torch.equal(found["transformer.wte.weight"], average)
    step = load_file(tmp_path / f"run/checkpoints/step-{record.result_step:08d}/weights.safetensors")
    assert not torch.equal(step["transformer.wte.weight"], average)
    scores = fulltune.evaluate(tmp_path / "run")["result"].scores
    told = record.evaluations[-1].scores if record.result_step == record.evaluations[-1].step else None
    if told is not None:
        assert scores["heldout.loss"] == pytest.approx(told["heldout.loss"], abs=1e-5)
    fulltune.export(tmp_path / "run", tmp_path / "again", step=record.result_step)
    again = load_file(tmp_path / "again/model.safetensors")
    assert torch.equal(again["transformer.wte.weight"], average)


def test_layers_that_wait_stay_as_they_are_and_so_do_their_moments(tmp_path: Path) -> None:
    """Of 10 updates the embeddings wait for 7, the lower block for 5, the upper one for 2; what is frozen for all."""
    asked = recipe(tmp_path, unfreeze=0.7, freeze="wpe")
    asked["train"]["steps"] = 10
    asked["checkpoint"] = {"every": 1, "keep": 20}
    fulltune.train(asked, out=tmp_path / "run")
    places = sorted((tmp_path / "run/checkpoints").iterdir())
    states = [load_file(place / "weights.safetensors") for place in places]
    moments = [load_file(place / "optimizer.safetensors") for place in places]
    assert len(states) == 10 + (places[0].name == "step-00000000")
    first = dict(zip((int(place.name[5:]) for place in places), zip(states, moments, strict=True), strict=True))
    start = load_file(tmp_path / "model/model.safetensors")
    for name, waits in {
        "wte.weight": 7,
        "h.0.attn.c_attn.weight": 5,
        "h.1.attn.c_attn.weight": 2,
        "wpe.weight": 10,
    }.items():
        whole = f"transformer.{name}"
        for update in range(1, 11):
            weights, remembered = first[update]
            still = update <= waits
            assert torch.equal(weights[whole], start[whole]) == still, (name, update)
            assert (f"{whole}/exp_avg" not in remembered) == still, (name, update)


def test_a_plan_shows_the_groups(tmp_path: Path) -> None:
    asked = recipe(tmp_path, freeze="wte", layer_decay=0.5)
    (tmp_path / "recipe.yaml").write_text(json.dumps(asked))
    done = command.run("plan", "recipe.yaml", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "group 1 " in done.stdout
    assert "frozen: 9,600 parameters of 1, such as transformer.wte.weight" in done.stdout
    with pytest.raises(RecipeError, match="no weight has 'nothing' in its name"):
        fulltune.plan(recipe(tmp_path / "b", freeze="nothing"), out=tmp_path / "other")


def test_a_rollback_takes_back_what_pulls_remember(tmp_path: Path) -> None:
    """A loss that is not finite in the 6th update: back to the 4th, and the average is the one of then."""
    asked = recipe(tmp_path, pulls=[{"use": "ema", "options": {"decay": 0.7}}])
    asked["train"] |= {"on_nonfinite": "rollback"}
    asked["checkpoint"]["keep"] = 9
    found: list[dict[str, torch.Tensor]] = []
    real, own, passes = Pulling.recall, NextToken.forward, itertools.count(1)

    def recall(pulling: Pulling, extra: Any) -> None:
        real(pulling, extra)
        found.append({key: value.clone() for key, value in pulling.remembered().items()})

    def forward(objective: Any, batch: Any) -> Any:
        sums = own(objective, batch)
        lost = objective.training and next(passes) == 7  # one pass is of the rehearsal
        return {name: value * float("nan") for name, value in sums.items()} if lost else sums

    with mock.patch.object(Pulling, "recall", recall), mock.patch.object(NextToken, "forward", forward):
        fulltune.train(asked, out=tmp_path / "run")
    back = list(read(tmp_path / "run/journal.jsonl", "rollback"))
    assert [line["to"] for line in back] == [4]
    saved = load_file(tmp_path / "run/checkpoints/step-00000004/extra.safetensors")
    assert all(torch.equal(found[0][name], value) for name, value in saved.items())
    assert len(found) == 2, "at the rollback, and for the result"
    key = "transformer.wte.weight/ema.average"
    assert not torch.equal(found[0][key], found[1][key])


def test_a_pull_that_comes_later_is_refused(tmp_path: Path) -> None:
    """Where its start would be nobody can say; one that goes is only missed."""
    asked = recipe(tmp_path)
    assert run(asked, tmp_path / "run", kill=5) == -signal.SIGKILL
    later = json.loads(json.dumps(asked))
    later["optim"]["pulls"] = [{"use": "l2_sp", "options": {"alpha": 1}}]
    with pytest.raises(CheckpointError, match=r"optim\.pulls"):
        fulltune.train(later, out=tmp_path / "run")
    with pytest.raises(CheckpointError, match="does not hold what l2_sp remembers"):
        fulltune.train(later, out=tmp_path / "run", accept=["optim.pulls"])
