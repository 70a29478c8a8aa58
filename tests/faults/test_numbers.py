"""Numbers that are none, losses that jump, memory that runs out (F11 to F14)."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.faults.forkserver import ForkServer
from tests.faults.ground import AT_LENGTH, Ground, checkpoints, digest, lines, require, steps

HEALTHY = {"evaluate": {"every": 24}, "checkpoint": {"every": 3, "keep": 9}}
LONG = {**HEALTHY, "train": {"steps": 24, "on_spike": "rollback"}, "model": {"dropout": 0.0}}


def require_finite(run: Path) -> None:
    """Nothing that was published holds a number that is none."""
    assert checkpoints(run)
    for path in run.rglob("*.safetensors"):
        assert all(bool(torch.isfinite(tensor).all()) for tensor in load_file(path).values()), path


@pytest.mark.parametrize("what", ["NAN", "GRADIENT", pytest.param("INF", marks=AT_LENGTH)])
def test_F11_F12_a_skipped_update_never_was(what: str, server: ForkServer, ground: Ground, tmp_path: Path) -> None:
    """`skip`: the end is that of a run in which these examples were taken away before anything was computed."""
    removed, run = ground.copy(tmp_path / "removed"), ground.copy(tmp_path / "run")
    require(server.run(ground.job(removed, {"do": "poison", "update": 5, "what": "REMOVED"})), 0)
    require(server.run(ground.job(run, {"do": "poison", "update": 5, "what": what, "micro": 2})), 0)
    assert digest(run) == digest(removed) != digest(ground.whole)
    assert steps(run) == steps(removed)
    (warning,) = lines(run, "warning")
    assert warning["step"] == 4
    assert all("rows.jsonl:" in row for row in warning["rows"])
    assert len(warning["rows"]) == (4 if what != "GRADIENT" else 8), "only the guilty micro-batch is named"
    require_finite(run)


@pytest.mark.parametrize("what", ["NAN", pytest.param("GRADIENT", marks=AT_LENGTH)])
def test_F11_F12_stop_ends_with_the_rows(what: str, server: ForkServer, tmp_path: Path) -> None:
    """`stop`: exit code 5, the rows named; what was saved before is finite, and the run could go on from it."""
    ground = Ground.make(tmp_path / "ground", server, train={"on_nonfinite": "stop"})
    run = ground.copy(tmp_path / "run")
    ended = require(server.run(ground.job(run, {"do": "poison", "update": 5, "what": what})), 5)
    assert "rows.jsonl:" in ended.stderr
    assert len(steps(run)) == 4
    require_finite(run)
    require(server.run(ground.job(run)), 0)
    ground.require_same_end(run)


def test_F11_rollback_goes_back_and_past(server: ForkServer, tmp_path: Path) -> None:
    ground = Ground.make(tmp_path / "ground", server, train={"on_nonfinite": "rollback"}, evaluate={"every": 12})
    run = ground.copy(tmp_path / "run")
    require(server.run(ground.job(run, {"do": "poison", "update": 6, "what": "NAN"})), 0)
    (line,) = lines(run, "rollback")
    assert line["to"] == 3
    assert steps(run)[-1]["step"] == 12
    require_finite(run)


def test_F12_weights_that_are_none_are_never_published(ground: Ground, server: ForkServer, tmp_path: Path) -> None:
    """Whatever made them so: the checkpoint is refused with exit code 5, and the one before it is whole."""
    run = ground.copy(tmp_path / "run")
    require(server.run(ground.job(run, {"do": "poison", "update": 6, "what": "WEIGHT"})), 5)
    require_finite(run)
    require(server.run(ground.job(run)), 0)
    ground.require_same_end(run)


def spike(update: int, **more: Any) -> dict[str, Any]:
    return {"do": "poison", "update": update, "what": "SPIKE", **more}


def test_F13_a_spike_is_taken_back_once(server: ForkServer, tmp_path: Path) -> None:
    """Back to the last healthy checkpoint and past these examples; a second one ends the run with 5."""
    ground = Ground.make(tmp_path / "ground", server, **LONG)
    run = ground.copy(tmp_path / "once")
    require(server.run(ground.job(run, spike(20))), 0)
    (line,) = lines(run, "rollback")
    assert line["to"] == 18
    assert max(step["loss"] for step in steps(run)) < 2 * steps(run)[0]["loss"], "it was not learned from"
    twice = ground.copy(tmp_path / "twice")
    ended = require(server.run(ground.job(twice, spike(20, updates=4))), 5)
    assert "spike" in ended.stderr


@pytest.mark.faults
def test_F13_the_count_survives_a_resume(server: ForkServer, tmp_path: Path) -> None:
    """One rollback, a kill after the next checkpoint, a spike: that is the second."""
    ground = Ground.make(tmp_path / "ground", server, **LONG)
    run = ground.copy(tmp_path / "run")
    kill = {"do": "befall", "target": "fulltune.training.updating:step", "act": "KILL", "calls": [25]}
    require(server.run(ground.job(run, spike(20), kill)), -9)
    assert lines(run, "rollback")
    require(server.run(ground.job(run, spike(1, updates=2))), 5)


@pytest.fixture(scope="module")
def steady(server: ForkServer, tmp_path_factory: pytest.TempPathFactory) -> Ground:
    """Without dropout, whose masks depend on how an update is cut."""
    return Ground.make(tmp_path_factory.mktemp("steady"), server, model={"dropout": 0.0})


@pytest.mark.parametrize("examples", [2, *(pytest.param(n, marks=AT_LENGTH) for n in (3, 1))])
def test_F14_smaller_micro_batches_and_the_same_losses(
    examples: int, steady: Ground, server: ForkServer, tmp_path: Path
) -> None:
    run = steady.copy(tmp_path / "run")
    require(server.run(steady.job(run, {"do": "memory", "examples": examples})), 0)
    assert any("out of memory" in line["what"] for line in lines(run, "warning"))
    for one, other in zip(steps(run), steps(steady.whole), strict=True):
        assert abs(one["loss"] - other["loss"]) < 1e-6
        assert one["tokens"] >= other["supervised_tokens"] == one["supervised_tokens"]


def test_F14_killed_it_does_not_try_the_large_ones_again(steady: Ground, server: ForkServer, tmp_path: Path) -> None:
    whole, run = steady.copy(tmp_path / "whole"), steady.copy(tmp_path / "run")
    little = {"do": "memory", "examples": 2}
    require(server.run(steady.job(whole, little)), 0)
    kill = {"do": "befall", "target": "fulltune.training.updating:step", "act": "KILL", "calls": [8]}
    require(server.run(steady.job(run, little, kill)), -9)
    require(server.run(steady.job(run, little)), 0)
    assert digest(run) == digest(whole)
    assert len(lines(run, "warning")) == len(lines(whole, "warning"))


def test_F14_not_even_one_example_fits(steady: Ground, server: ForkServer, tmp_path: Path) -> None:
    ended = require(server.run(steady.job(steady.copy(tmp_path / "run"), {"do": "memory", "examples": 0})), 4)
    assert "mend:" in ended.stderr
    assert "memory.checkpointing" in ended.stderr
