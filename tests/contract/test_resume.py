"""A run that is killed between steps and started again by the same command ends with the same bits (must show 4)."""

import hashlib
import json
import multiprocessing
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

import fulltune
from fulltune.training.journal import read
from tests import tiny

PROCESSES = multiprocessing.get_context("forkserver")
"""Each run has a process of its own, forked off one that has imported and done nothing else: imports take seconds."""
PROCESSES.set_forkserver_preload(["tests.contract.preloaded"])


class Killer:
    """Kills its own process once an update is in the journal."""

    def __init__(self, step: int) -> None:
        self._step = step

    def hear(self, kind: str, values: dict[str, Any]) -> None:
        if kind == "step" and values["step"] == self._step:
            os.kill(os.getpid(), signal.SIGKILL)


def train(recipe: dict[str, Any], out: Path, kill: int) -> None:
    torch.set_num_threads(1)
    fulltune.train(recipe, out=out, sinks=[Killer(kill)])


def run(recipe: dict[str, Any], out: Path, *, kill: int = 0) -> int:
    process = PROCESSES.Process(target=train, args=(recipe, out, kill))
    process.start()
    process.join()
    code = process.exitcode
    assert code in (0, -signal.SIGKILL)
    return code


def digest(out: Path) -> str:
    return hashlib.sha256((out / "model/model.safetensors").read_bytes()).hexdigest()


def steps(out: Path) -> list[tuple[int, float, float]]:
    return [(line["step"], line["loss"], line["grad_norm"]) for line in read(out / "journal.jsonl", "step")]


def recipe(folder: Path, moments: str = "float32", **train: Any) -> dict[str, Any]:
    """Dropout on; 12 updates that cross an epoch; a checkpoint every 3, an evaluation every 4."""
    model = tiny.folder(folder / "model", "gpt2", attn_pdrop=0.1, embd_pdrop=0.1, resid_pdrop=0.1)
    return tiny.recipe(
        model,
        tiny.jsonl(folder / "rows.jsonl", tiny.rows(60)),
        train={"steps": 12, **train},
        optim={"moments": moments},
        evaluate={"every": 4},
        checkpoint={"every": 3},
    )


SLOW = [pytest.param(mode, marks=pytest.mark.slow) for mode in ("bf16-mixed", "bf16-sr int8")]


@pytest.fixture(scope="module", params=["float32", *SLOW])
def whole(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path]:
    """A recipe, and the run that nothing disturbed."""
    folder = tmp_path_factory.mktemp(request.param)
    precision, _, moments = request.param.partition(" ")
    asked = recipe(folder, moments or "float32", precision=precision)
    assert run(asked, folder / "whole") == 0
    return asked, folder / "whole"


def test_killed_runs_end_with_the_same_bits(tmp_path: Path, whole: tuple[dict[str, Any], Path]) -> None:
    asked, undisturbed = whole
    killed = tmp_path / "killed"
    for step in (1, 5, 5, 11):  # before the first checkpoint; between two; once more at the same place; near the end
        assert run(asked, killed, kill=step) == -signal.SIGKILL
        assert not (killed / "record.json").exists()
    assert run(asked, killed) == 0
    assert digest(killed) == digest(undisturbed)
    assert steps(killed) == steps(undisturbed), "every update once, with the same loss"
    scores = [[line["scores"] for line in read(out / "journal.jsonl", "evaluation")] for out in (killed, undisturbed)]
    assert scores[0] == scores[1]


@pytest.mark.parametrize("whole", ["float32"], indirect=True)
def test_dropout_is_on_and_matters(tmp_path: Path, whole: tuple[dict[str, Any], Path]) -> None:
    """The test above would show nothing if the masks were the same at every step, or absent."""
    asked, undisturbed = whole
    other = json.loads(json.dumps(asked))
    other["model"]["dropout"] = 0.0
    assert run(other, tmp_path / "other") == 0
    assert digest(tmp_path / "other") != digest(undisturbed)


@pytest.mark.slow
@pytest.mark.parametrize("kill", range(1, 13))
@pytest.mark.parametrize("whole", ["float32"], indirect=True)
def test_killed_after_any_step(tmp_path: Path, whole: tuple[dict[str, Any], Path], kill: int) -> None:
    asked, undisturbed = whole
    run(asked, tmp_path / "killed", kill=kill)
    assert run(asked, tmp_path / "killed") == 0
    assert digest(tmp_path / "killed") == digest(undisturbed)
