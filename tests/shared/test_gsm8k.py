"""Real data and a real pretrained model (must show 2): recipes/gsm8k-stories260k.yaml, a quarter of it."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

import fulltune
from fulltune.base.records import IGNORE, RunRecord
from fulltune.data.store import Store
from fulltune.recipe.load import load_recipe
from tests.conftest import ROOT, SHARED

pytestmark = pytest.mark.slow

RECIPE = ROOT / "recipes/gsm8k-stories260k.yaml"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, shared: Path) -> tuple[Path, RunRecord]:
    assert shared
    folder = tmp_path_factory.mktemp("gsm8k") / "run"
    changes = {
        "model.path": str(SHARED / "models/stories260K"),
        "data.train": str(SHARED / "data/gsm8k/train_first2000.norm.jsonl"),
        "data.test": [],
        "data.retention": [],
        "train": {"epochs": 0.5},
    }
    return folder, fulltune.train(RECIPE, out=folder, **changes)


def heldout(run: tuple[Path, RunRecord]) -> Store:
    folder, record = run
    return Store(folder / "data/heldout", [source.files for source in record.data.sources["heldout"]])


def test_the_recipe_is_the_one_that_is_shipped() -> None:
    assert load_recipe(RECIPE).data.over_length == "drop"


def test_held_out_loss_falls_clearly_below_the_base(run: tuple[Path, RunRecord]) -> None:
    record = run[1]
    assert record.baseline is not None
    assert record.evaluations[-1].scores["heldout.loss"] < 0.5 * record.baseline.scores["heldout.loss"]


def test_the_bases_loss_is_transformers_own(run: tuple[Path, RunRecord]) -> None:
    """Their shift, their cross-entropy, one example at a time, summed and divided once."""
    store, record = heldout(run), run[1]
    model = AutoModelForCausalLM.from_pretrained(SHARED / "models/stories260K", dtype=torch.float32)
    total, count = 0.0, 0
    for index in range(len(store)):
        encoded = store[index]
        labels = np.concatenate([[IGNORE], encoded.labels[:-1]])
        taught = int((labels != IGNORE).sum())
        with torch.no_grad():
            loss = model(input_ids=torch.tensor([encoded.ids.tolist()]), labels=torch.tensor([labels.tolist()])).loss
        total, count = total + float(loss) * taught, count + taught
    assert record.baseline is not None
    assert record.baseline.counts["heldout"] == count
    assert record.baseline.scores["heldout.loss"] == pytest.approx(total / count, abs=1e-5)


def test_a_fresh_process_gives_the_logits_of_the_checkpoint(run: tuple[Path, RunRecord], tmp_path: Path) -> None:
    """On a held-out batch, to 1e-6."""
    folder, record = run
    ids = [heldout(run)[i].ids.tolist() for i in range(8)]
    width = min(map(len, ids))
    batch = [row[:width] for row in ids]
    # Another number of threads sums in another order, which is 1e-5 of a logit.
    threads = f"torch.set_num_threads({torch.get_num_threads()})\n"
    script = (
        "import json, sys, torch\nfrom transformers import AutoModelForCausalLM\n"
        f"{threads}model = AutoModelForCausalLM.from_pretrained(sys.argv[1])\n"
        "ids = torch.tensor(json.load(open(sys.argv[2])))\n"
        "with torch.no_grad():\n    torch.save(model(input_ids=ids).logits, sys.argv[3])\n"
    )
    (tmp_path / "ids.json").write_text(json.dumps(batch))
    command = [sys.executable, "-c", script, str(folder / "model"), str(tmp_path / "ids.json"), str(tmp_path / "out")]
    subprocess.run(command, check=True, capture_output=True)
    model = AutoModelForCausalLM.from_pretrained(SHARED / "models/stories260K", dtype=torch.float32)
    saved = load_file(folder / f"checkpoints/step-{record.result_step:08d}/weights.safetensors")
    model.load_state_dict(saved, strict=False)
    with torch.no_grad():
        wanted = model(input_ids=torch.tensor(batch)).logits
    assert (torch.load(tmp_path / "out") - wanted).abs().max() <= 1e-6
