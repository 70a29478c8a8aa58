"""Same recipe, same curve: how an update is cut into forward passes changes no loss.

Must show 3: losses of 20 updates agree to 1e-5 in float32 between micro-batches of 1, 2 and 8 examples, packed and
padded, accumulated or not, at a rate of 1e-3 and without dropout. Golden losses are pinned in golden.json.
"""

import json
from pathlib import Path
from typing import Any

import pytest

import fulltune
from fulltune.training.journal import read
from tests import tiny
from tests.conftest import ROOT

EMBEDDED = ROOT / "src/fulltune/embedded"
GOLDEN = Path(__file__).with_name("golden.json")
WAYS: dict[str, dict[str, Any]] = {
    "one example at a time": {"micro_examples": 1},
    "two at a time": {"micro_examples": 2},
    "packed into one row": {"layout": "packed", "micro_examples": 8, "micro_tokens": 4096},
    "packed into rows of 128": {"layout": "packed", "micro_tokens": 128},
    "padded under 96 tokens": {"micro_examples": 8, "micro_tokens": 96},
}
"""The reference has all eight at once."""
BRIEF = ("one example at a time", "packed into rows of 128")
"""What `make test` compares: cut as finely as can be, and packed into several rows."""


def losses(folder: Path, model: Path, data: Path, **train: Any) -> list[float]:
    recipe = tiny.recipe(model, data, data={"heldout": 0}, train={"steps": 20, **train}, evaluate={"samples": 0})
    if "batch_tokens" in train:
        del recipe["train"]["batch_examples"]
    fulltune.train(recipe, out=folder)
    return [line["loss"] for line in read(folder / "journal.jsonl", "step")]


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> list[float]:
    folder = tmp_path_factory.mktemp("reference") / "run"
    return losses(folder, EMBEDDED / "model", EMBEDDED / "train.jsonl", micro_examples=8)


@pytest.mark.parametrize("way", [way if way in BRIEF else pytest.param(way, marks=pytest.mark.slow) for way in WAYS])
def test_the_curve_does_not_depend_on_micro_batches(tmp_path: Path, reference: list[float], way: str) -> None:
    found = losses(tmp_path / "run", EMBEDDED / "model", EMBEDDED / "train.jsonl", **WAYS[way])
    assert len(found) == len(reference) == 20
    assert max(abs(a - b) for a, b in zip(found, reference, strict=True)) <= 1e-5


def test_golden_losses(reference: list[float]) -> None:
    """Written by `python -m tests.contract.test_invariance`; a change is marked **numerics** in the changelog."""
    golden = json.loads(GOLDEN.read_text())["losses"]
    # 1e-4: other processors add in another order; on one machine the curves agree to 1e-6.
    assert max(abs(a - b) for a, b in zip(reference, golden, strict=True)) <= 1e-4
    assert reference[-1] < 0.5 * reference[0], "the curve falls, so it can show that something changed"


def test_batches_by_tokens_are_the_same_examples_too(tmp_path: Path) -> None:
    runs = [
        losses(tmp_path / name, EMBEDDED / "model", EMBEDDED / "train.jsonl", batch_tokens=300, steps=5, **way)
        for name, way in (("a", {"micro_examples": 1}), ("b", {"layout": "packed"}))
    ]
    assert max(abs(a - b) for a, b in zip(*runs, strict=True)) <= 1e-5


if __name__ == "__main__":
    import tempfile

    with tempfile.TemporaryDirectory() as scratch:
        made = losses(Path(scratch) / "run", EMBEDDED / "model", EMBEDDED / "train.jsonl", micro_examples=8)
    GOLDEN.write_text(json.dumps({"losses": made}, indent=1) + "\n")
