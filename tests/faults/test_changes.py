"""What changed between a kill and the same command (F18), and what must not: order, patience, layers."""

import json
import signal
from pathlib import Path

import pytest

from tests import tiny
from tests.faults.forkserver import Case, ForkServer
from tests.faults.ground import Ground, checkpoints, copied, lines, require, steps


def kill(call: int) -> dict[str, object]:
    """In the n-th update of a process."""
    return {"do": "befall", "target": "fulltune.training.updating:step", "act": "KILL", "calls": [call]}


@pytest.fixture
def own(server: ForkServer, tmp_path: Path) -> Ground:
    """A ground that may be changed."""
    return Ground.make(tmp_path / "ground", server)


@pytest.fixture
def run(own: Ground, server: ForkServer, tmp_path: Path) -> Path:
    """Killed in its eighth update."""
    run = own.copy(tmp_path / "run")
    require(server.run(own.job(run, kill(8))), -signal.SIGKILL)
    return run


def test_F18_another_rate_is_refused_and_can_be_accepted(own: Ground, run: Path, server: ForkServer) -> None:
    ended = require(server.run(own.job(run, more=("optim.lr=0.01",))), 6)
    assert "optim.lr: 0.001 -> 0.01" in ended.stderr
    assert "--accept-change optim.lr" in ended.stderr
    require(server.run(own.job(run, more=("optim.lr=0.01", "--accept-change", "optim.lr"))), 0)
    (change,) = lines(run, "change")
    assert (change["field"], change["before"], change["now"]) == ("optim.lr", 0.001, 0.01)
    saved = lines(run, "start")[-1]["resumed_at"]  # 6, or 3 where that was not yet on the disk when it was killed
    assert steps(run)[:saved] == steps(own.whole)[:saved] != []
    assert steps(run)[-1]["lr"] != steps(own.whole)[-1]["lr"]


def test_F18_rows_that_changed(own: Ground, run: Path, server: ForkServer) -> None:
    rows = own.recipe.parent / "rows.jsonl"
    before = rows.read_text()
    rows.write_text(before.replace("0: ", "O: ", 1))
    assert "data" in require(server.run(own.job(run)), 6).stderr
    accepted = copied(run, run.parent / "accepted")
    require(server.run(own.job(accepted, more=("--accept-change", "data"))), 0)
    assert lines(accepted, "change")
    rows.write_text(before)
    require(server.run(own.job(run)), 0)
    own.require_same_end(run)


def test_F18_another_tokenizer_or_template(own: Ground, run: Path, server: ForkServer) -> None:
    base = own.recipe.parent / "base"
    for name, old, new, said in (
        ("tokenizer.json", '"<|end|>"', '"<|fin|>"', "tokenizer"),
        ("chat_template.jinja", "<|assistant|>", "<|user|>", "template"),
    ):
        before = (base / name).read_text()
        (base / name).write_text(before.replace(old, new))
        assert said in require(server.run(own.job(run)), 6, 3).stderr
        (base / name).write_text(before)
    require(server.run(own.job(run)), 0)
    own.require_same_end(run)


def test_F18_what_may_change_freely(own: Ground, run: Path, server: ForkServer) -> None:
    """Another cadence of checkpoints changes no bit; more updates make the run longer, also after its end."""
    require(server.run(own.job(run, more=("checkpoint.every=2",))), 0)
    own.require_same_end(run)
    require(server.run(own.job(run, more=("checkpoint.every=2", "train.steps=15"))), 0)
    assert len(steps(run)) == 15
    assert steps(run)[:12] == steps(own.whole)


@pytest.mark.faults
def test_landmine_G1_and_G8_killed_in_a_later_epoch_and_exactly_at_an_epochs_end(
    server: ForkServer, tmp_path: Path
) -> None:
    """Six updates an epoch, three epochs, a checkpoint at each epoch's end: no example twice, none left out."""
    folder = tmp_path / "ground"
    folder.mkdir()
    heldout = tiny.jsonl(folder / "heldout.jsonl", tiny.rows(8, seed=7, longest=8))
    changes = {
        "data": {"heldout": str(heldout), "duplicates": "keep"},
        "train": {"steps": 18},
        "checkpoint": {"every": "1 epochs", "keep": 3},
        "evaluate": {"every": 18},
    }
    ground = Ground.make(folder, server, rows=48, **changes)
    assert [step.name for step in checkpoints(ground.whole)][-2:] == ["step-00000012", "step-00000018"]

    def course(calls: tuple[int, ...]) -> Case:
        run = ground.copy(tmp_path / "-".join(map(str, calls)))
        for call in calls:
            require((yield ground.job(run, kill(call))), -signal.SIGKILL)
        require((yield ground.job(run)), 0)
        ground.require_same_end(run, f"killed at {calls}")

    server.drive(map(course, [(7,), (13,), (7, 7), (9, 10), (18,)]))


@pytest.mark.faults
def test_landmine_G5_patience_goes_on_where_it_was(server: ForkServer, tmp_path: Path) -> None:
    """Nothing gets better with such a rate: four evaluations later the run is over, however often it was killed."""
    changes = {
        "train": {"steps": 40},
        "optim": {"lr": 0.5, "schedule": "constant"},
        "evaluate": {"every": 2},
        "checkpoint": {"every": 2, "keep": 2, "patience": 4},
    }
    ground = Ground.make(tmp_path / "ground", server, **changes)
    made = len(steps(ground.whole))
    assert made < 40
    run = ground.copy(tmp_path / "run")
    for _ in range(3):
        require(server.run(ground.job(run, kill(4))), -signal.SIGKILL, 0)
    require(server.run(ground.job(run)), 0)
    ground.require_same_end(run)
    assert json.loads((checkpoints(run)[-1] / "progress.json").read_text())["stale"] == 4


def test_landmine_G7_layers_without_gradients_have_no_state_and_resume(server: ForkServer, tmp_path: Path) -> None:
    """Cross-attention that nothing uses: its weights have neither gradient nor moments."""
    folder = tmp_path / "ground"
    tiny.folder(folder / "base", "gpt2", add_cross_attention=True, resid_pdrop=0.1)
    ground = Ground.make(folder, server)
    run = ground.copy(tmp_path / "run")
    require(server.run(ground.job(run, kill(5))), -signal.SIGKILL)
    require(server.run(ground.job(run)), 0)
    ground.require_same_end(run)
