"""fulltune beside TRL's SFTTrainer (on the transformers Trainer): every loss and gradient norm, and the weights.

The settings are those in which both mean the same. Elsewhere they differ on purpose: with a warm-up TRL's first update
has a rate of 0, and its cosine is a step short of the floor at the last one, where fulltune's first update moves and
its last stands at the floor; and TRL decays embeddings. So the rate is constant here, and `with_trl.py` spares them.

Measured on one core of an AMD EPYC with TRL 1.16.0, accelerate 1.15.0, transformers 5.23.0, torch 2.13.0: losses
differ by 9.5e-7 at most (two steps of a float32 of that size), gradient norms by 2.4e-7, weights by 5.7e-7.
"""

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from tests import tiny
from tests.conftest import ROOT
from tests.parity import ours

if find_spec("trl") is None:  # looked for, not imported: its import changes transformers
    pytest.skip("TRL is not installed: pip install 'fulltune[dev]'", allow_module_level=True)

pytestmark = pytest.mark.slow  # 37 s of processor time, of which TRL's import and four runs are half

SETTINGS = {"lr": 1e-3, "weight_decay": 0.1, "clip": 1.0}
TOLERANCE = 1e-4
"""Promised. What was measured is a hundredth of it, but TRL's sums are its own to arrange."""
ALONE = {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, llama: Path) -> dict[tuple[int, str], tuple[ours.Told, Path]]:
    """Ours, and the folder of TRL's: all in one process of their own, since the import takes longer than a run."""
    folder = tmp_path_factory.mktemp("trl")
    data = tiny.jsonl(folder / "rows.jsonl", tiny.rows(120))
    told = {
        cut: ours.run(
            folder / f"run-{cut[0]}-{cut[1]}", llama, data, cut, updates=50, schedule="constant", warmup=0, **SETTINGS
        )
        for cut in ours.CUTS
    }
    taken = [run.updates for run in told.values()]
    assert all(each == taken[0] for each in taken), "how an update is cut does not change what is in it"
    examples = [example for update in taken[0] for example in update]
    task = {"model": str(llama), "out": str(folder), "batch": ours.BATCH, "cuts": ours.CUTS, "examples": examples}
    (folder / "task.json").write_text(json.dumps({**task, **SETTINGS}))
    words = [sys.executable, "-m", "tests.parity.with_trl", str(folder / "task.json")]
    done = subprocess.run(words, cwd=ROOT, env={**os.environ, **ALONE}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return {cut: (run, folder / f"{cut[0]}-{cut[1]}") for cut, run in told.items()}


@pytest.mark.parametrize("cut", ours.CUTS, ids=lambda cut: f"{cut[1]} in {cut[0]}")
def test_losses_and_weights_are_those_of_trl(
    runs: dict[tuple[int, str], tuple[ours.Told, Path]], cut: tuple[int, str]
) -> None:
    told, folder = runs[cut]
    steps: list[dict[str, Any]] = json.loads((folder / "steps.json").read_text())
    assert len(steps) == len(told.steps) == 50
    assert steps[-1]["loss"] < steps[0]["loss"] - 1, "the curve falls, so it can show a difference"
    assert max(step["grad_norm"] for step in steps) > SETTINGS["clip"], "gradients are shortened too"
    for own, step in zip(told.steps, steps, strict=True):
        assert abs(own["loss"] - step["loss"]) <= TOLERANCE
        assert abs(own["grad_norm"] - step["grad_norm"]) <= TOLERANCE
        assert own["lr"] == step["learning_rate"]
    own, other = (load_file(path) for path in (told.folder / "model/model.safetensors", folder / "weights.safetensors"))
    assert own.keys() == other.keys()
    assert max(float((own[name] - other[name]).abs().max()) for name in other) <= TOLERANCE
