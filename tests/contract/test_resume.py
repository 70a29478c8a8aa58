"""A run that is killed between steps and started again by the same command ends with the same bits (must show 4)."""

import hashlib
import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from fulltune.training.journal import read
from tests import tiny
from tests.conftest import ROOT

SCRIPT = """
import json, os, signal, sys
import torch
import fulltune
torch.set_num_threads(1)
recipe, out, kill = json.loads(sys.argv[1]), sys.argv[2], int(sys.argv[3])
class Killer:
    def hear(self, kind, values):
        if kind == "step" and values["step"] == kill:
            os.kill(os.getpid(), signal.SIGKILL)
fulltune.train(recipe, out=out, sinks=[Killer()])
"""


def run(recipe: dict[str, Any], out: Path, *, kill: int = 0) -> int:
    command = [sys.executable, "-c", SCRIPT, json.dumps(recipe), str(out), str(kill)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode in (0, -signal.SIGKILL), done.stderr
    return done.returncode


def digest(out: Path) -> str:
    return hashlib.sha256((out / "model/model.safetensors").read_bytes()).hexdigest()


def steps(out: Path) -> list[tuple[int, float, float]]:
    return [(line["step"], line["loss"], line["grad_norm"]) for line in read(out / "journal.jsonl", "step")]


def recipe(folder: Path, **train: Any) -> dict[str, Any]:
    """Dropout on; 12 updates that cross an epoch; a checkpoint every 3, an evaluation every 4."""
    model = tiny.folder(folder / "model", "gpt2", attn_pdrop=0.1, embd_pdrop=0.1, resid_pdrop=0.1)
    return tiny.recipe(
        model,
        tiny.jsonl(folder / "rows.jsonl", tiny.rows(60)),
        train={"steps": 12, **train},
        evaluate={"every": 4},
        checkpoint={"every": 3},
    )


@pytest.mark.parametrize("precision", ["float32", pytest.param("bf16-mixed", marks=pytest.mark.slow)])
def test_killed_runs_end_with_the_same_bits(tmp_path: Path, precision: str) -> None:
    asked = recipe(tmp_path, precision=precision)
    assert run(asked, tmp_path / "whole") == 0
    wanted = digest(tmp_path / "whole")
    killed = tmp_path / "killed"
    for step in (1, 5, 5, 11):  # before the first checkpoint; between two; once more at the same place; near the end
        assert run(asked, killed, kill=step) == -signal.SIGKILL
        assert not (killed / "record.json").exists()
    assert run(asked, killed) == 0
    assert digest(killed) == wanted
    assert steps(killed) == steps(tmp_path / "whole"), "every update once, with the same loss"
    scores = [
        [line["scores"] for line in read(out / "journal.jsonl", "evaluation")] for out in (killed, tmp_path / "whole")
    ]
    assert scores[0] == scores[1]


def test_dropout_is_on_and_matters(tmp_path: Path) -> None:
    """The test above would show nothing if the masks were the same at every step, or absent."""
    asked = recipe(tmp_path)
    other = json.loads(json.dumps(asked))
    other["model"]["dropout"] = 0.0
    assert run(asked, tmp_path / "a") == run(other, tmp_path / "b") == 0
    assert digest(tmp_path / "a") != digest(tmp_path / "b")


@pytest.mark.slow
@pytest.mark.parametrize("kill", range(1, 13))
def test_killed_after_any_step(tmp_path: Path, kill: int) -> None:
    asked = recipe(tmp_path)
    assert run(asked, tmp_path / "whole") == 0
    run(asked, tmp_path / "killed", kill=kill)
    assert run(asked, tmp_path / "killed") == 0
    assert digest(tmp_path / "killed") == digest(tmp_path / "whole")
