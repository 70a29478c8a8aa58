"""Landmines D: precision, and numbers that are none."""

import io
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file, save_file

import fulltune
from fulltune.base.errors import DivergedError
from fulltune.objectives import _cross_entropy
from fulltune.training.journal import read
from fulltune.training.progress import ProgressLine
from tests import tiny
from tests.contract.ground import Ground


def test_landmine_D1_a_bf16_file_is_trained_with_float32_weights(tmp_path: Path, data: Path) -> None:
    """12 updates at 1e-5 move nearly every weight; with bf16 weights 85% would stay where they were."""
    model = tiny.model("llama").to(torch.bfloat16)
    model.save_pretrained(tmp_path / "model")
    tiny.tokenizer().save_pretrained(tmp_path / "model")
    asked = tiny.recipe(
        tmp_path / "model",
        data,
        train={"steps": 12, "precision": "bf16-mixed"},
        optim={"lr": 1e-5, "schedule": "constant", "warmup": 0},
        export={"dtype": "float32"},
    )
    fulltune.train(asked, out=tmp_path / "run")
    tuned = load_file(tmp_path / "run/model/model.safetensors")
    start = dict(model.named_parameters())
    matrices = [name for name, weight in tuned.items() if weight.ndim == 2 and "embed" not in name]
    same = sum(int((tuned[name] == start[name].float()).sum()) for name in matrices)
    assert same / sum(tuned[name].numel() for name in matrices) < 0.05
    state = load_file(next((tmp_path / "run/checkpoints").glob("*12")) / "optimizer.safetensors")
    assert {value.dtype for value in state.values()} == {torch.float32}


def test_landmine_D12_cross_entropy_is_float32_and_positions_are_integers(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = (torch.randn(64, 32_000, generator=generator) * 4).bfloat16()
    labels = torch.randint(32_000, (64,), generator=generator)
    exact = float(torch.nn.functional.cross_entropy(logits.double(), labels))
    ours = float(_cross_entropy(logits.float(), labels, torch.ones(64)) / 64)
    assert abs(ours - exact) < 1e-4
    assert abs(float(torch.nn.functional.cross_entropy(logits, labels)) - exact) > 1e-4, "bf16 would be seen"
    ground = Ground(tmp_path, tiny.model("llama"), count=4, layout="packed", precision="bf16-mixed")
    batch = ground.batches()[0]
    assert batch.positions is not None
    assert batch.positions.dtype == torch.int64
    assert ground.engine.forward(batch)["next_token"].dtype == torch.float32


def poisoned(folder: Path, token: str) -> Path:
    """A model that gives NaN for every text with one token, and none before training looks at it."""
    model = tiny.folder(folder / "model")
    (folder / "poison.py").write_text(
        "import math, torch\n"
        "from fulltune.objectives import NextToken\n"
        "class Poisoned(NextToken):\n"
        "    def forward(self, batch):\n"
        "        sums = super().forward(batch)\n"
        f"        bad = bool((batch.ids == {tiny.tokenizer().convert_tokens_to_ids(token)}).any())\n"
        "        return {'next_token': sums['next_token'] * (math.nan if bad and self.training else 1.0)}\n"
    )
    return model


@pytest.fixture
def poison(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Rows of which the 5th makes the loss NaN while training."""
    monkeypatch.syspath_prepend(tmp_path)
    rows = tiny.rows(40)
    rows[4] = {"prompt": "Q", "completion": "QQ"}  # no other row has this letter
    model = poisoned(tmp_path, "Q")
    data = tiny.jsonl(tmp_path / "rows.jsonl", rows)
    return tiny.recipe(
        model,
        data,
        data={"heldout": [str(tiny.jsonl(tmp_path / "held.jsonl", tiny.rows(5, seed=3)))]},
        train={"objective": "poison:Poisoned", "epochs": 2, "batch_examples": 8, "micro_examples": 2},
        evaluate={"samples": 0},
    )


def test_landmine_D13_an_update_that_is_not_finite_moves_nothing_and_is_skipped(
    tmp_path: Path, poison: dict[str, Any]
) -> None:
    del poison["train"]["steps"]
    record = fulltune.train(poison, out=tmp_path / "run")
    warnings = list(read(tmp_path / "run/journal.jsonl", "warning"))
    assert record.progress.skipped == len(warnings) == 2, "once in each epoch"
    assert record.progress.update == record.plan.updates - 2
    rows = str(tmp_path / "rows.jsonl")
    assert all(f"{rows}:5" in line["rows"] and len(line["rows"]) == 2 for line in warnings), "its micro-batch alone"
    weights = load_file(tmp_path / "run/model/model.safetensors")
    assert all(bool(torch.isfinite(value).all()) for value in weights.values())


def test_landmine_D13_the_run_stops_when_too_many_were_skipped(tmp_path: Path, poison: dict[str, Any]) -> None:
    del poison["train"]["steps"]
    poison["train"]["max_skipped"] = 2
    with pytest.raises(DivergedError, match="2 updates were skipped") as caught:
        fulltune.train(poison, out=tmp_path / "run")
    assert "rows.jsonl:5" in caught.value.faults[0].where
    assert caught.value.exit_code == 5
    assert not (tmp_path / "run/model").exists()


def test_landmine_D14_nan_is_never_hidden(tmp_path: Path, poison: dict[str, Any]) -> None:
    """It stands in the journal by its name, with rows and without their text; a NaN score ends the run."""
    del poison["train"]["steps"]
    fulltune.train(poison, out=tmp_path / "run")
    journal = (tmp_path / "run/journal.jsonl").read_text()
    assert '"loss": "NaN"' in journal
    assert "QQ" not in journal
    for line in journal.splitlines():
        values = json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
        if values["kind"] == "step":
            assert math.isfinite(values["loss"])


def test_landmine_D14_a_start_that_is_not_finite_is_seen_before_the_first_step(tmp_path: Path, data: Path) -> None:
    from fulltune.base.errors import DataError

    model = tiny.folder(tmp_path / "model")
    tensors = load_file(model / "model.safetensors")
    tensors["model.norm.weight"][3] = math.nan
    save_file(tensors, model / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(DataError, match="model.norm.weight: 1 values are not finite"):
        fulltune.train(tiny.recipe(model, data), out=tmp_path / "run")


def test_landmine_D13_the_first_may_stop_the_run(tmp_path: Path, poison: dict[str, Any]) -> None:
    del poison["train"]["steps"]
    poison["train"]["on_nonfinite"] = "stop"
    with pytest.raises(DivergedError, match="not finite after update") as caught:
        fulltune.train(poison, out=tmp_path / "run")
    assert "rows.jsonl:5" in caught.value.faults[0].where
    assert caught.value.exit_code == 5


def test_landmine_D13_a_run_may_go_back_and_on_behind_the_examples(tmp_path: Path, poison: dict[str, Any]) -> None:
    del poison["train"]["steps"]
    poison["train"] |= {"on_nonfinite": "rollback", "max_rollbacks": 2}
    poison["checkpoint"] = {"every": 1}
    record = fulltune.train(poison, out=tmp_path / "run")
    lines = list(read(tmp_path / "run/journal.jsonl", "rollback"))
    assert record.progress.rollbacks == len(lines) == 2, "once in each epoch"
    assert record.progress.skipped == 0
    assert record.progress.update == record.plan.updates - 2
    assert all(f"{tmp_path / 'rows.jsonl'}:5" in line["rows"] for line in lines)
    weights = load_file(tmp_path / "run/model/model.safetensors")
    assert all(bool(torch.isfinite(value).all()) for value in weights.values())
    poison["train"]["max_rollbacks"] = 1
    with pytest.raises(DivergedError, match="1 rollbacks before it"):
        fulltune.train(poison, out=tmp_path / "again")


def test_landmine_D14_what_a_person_sees_says_nan_too() -> None:
    said = io.StringIO()
    line = ProgressLine(Console(file=said, width=200))
    line.hear("start", {"updates": 9})
    line.hear("step", {"step": 1, "loss": "NaN", "lr": 1e-3, "tokens": 8, "seconds": 0.5})
    line.hear("evaluation", {"step": 1, "scores": {"heldout.loss": "NaN"}})
    rows = [f"rows.jsonl:{n}" for n in range(1, 9)]
    line.hear(
        "warning", {"what": "update skipped: loss or gradient not finite", "step": 1, "loss": "NaN", "rows": rows}
    )
    line.hear("warning", {"what": "out of memory: 64 bytes; halved", "step": 1})
    line.hear("rollback", {"what": "loss spike: back to update 0", "step": 1, "rows": rows[:1]})
    heard = said.getvalue().splitlines()
    assert "loss nan" in heard[0]
    assert heard[1] == "after      1 updates: heldout.loss nan"
    assert heard[2].endswith(f"not finite (update 1, {', '.join(rows[:5])})")
    assert heard[3] == "warning: out of memory: 64 bytes; halved (update 1)"
    assert heard[4] == "rollback: loss spike: back to update 0 (update 1, rows.jsonl:1)"
