"""Asked to stop, a run saves and says so (F3); held up or doubled, it is one run all the same (F19)."""

import json
import os
import signal
import time
from pathlib import Path

import pytest

from tests.faults.forkserver import Case, Child, ForkServer
from tests.faults.ground import AT_LENGTH, Ground, checkpoints, copied, drafts, lines, require, steps

PHASES = {
    "train step": ("fulltune.engine.native:NativeEngine.update", 5),
    "accumulation": ("fulltune.engine.native:NativeEngine.backward", 13),  # the trial before the first update has 4
    "evaluation": ("fulltune.engine.native:NativeEngine.evaluating", 3),
    "data preparation": ("fulltune.data.render:Renderer.render", 1),
    "checkpoint": ("fulltune.training.checkpoint:write_manifest", 2),
    "rehearsal": ("fulltune.outcome:Outcome.write_model", 1),
    "export": ("fulltune.outcome:Outcome.write_model", 2),
}
"""Where a signal comes: a function, and at which of its calls."""


def befall(phase: str, act: str, *, after: bool = False) -> dict[str, object]:
    target, call = PHASES[phase]
    return {"do": "befall", "target": target, "act": act, "calls": [call], "after": after}


@pytest.mark.parametrize("signals", [["TERM"], pytest.param(["INT", "USR1"], marks=AT_LENGTH)], ids="-".join)
def test_F3_asked_to_stop_in_every_phase(
    signals: list[str], ground: Ground, server: ForkServer, tmp_path: Path
) -> None:
    """Exit code 75 and no draft left; what was asked again goes on, and dropout is that of an undisturbed run."""

    def course(phase: str, name: str) -> Case:
        run = tmp_path / f"{phase}-{name}"
        if phase != "data preparation":
            ground.copy(run)
        ended = require((yield ground.job(run, befall(phase, name))), 75)
        assert "the same command goes on" in ended.stderr, phase
        assert f"SIG{name}" in ended.stderr, phase
        assert drafts(run) == [], phase
        if phase in ("train step", "accumulation"):
            assert checkpoints(run)[-1].name == f"step-{len(steps(run)):08d}", "saved where it was asked"
            assert len(steps(run)) in (4, 5), "at the next border of an update"
        require((yield ground.job(run)), 0)
        ground.require_same_end(run, phase)

    server.drive(course(phase, name) for phase in PHASES for name in signals)


def test_F3_a_second_signal_leaves_at_once(ground: Ground, server: ForkServer, tmp_path: Path) -> None:
    def course(phase: str) -> Case:
        run = ground.copy(tmp_path / phase)
        require((yield ground.job(run, befall(phase, "TERM,TERM"))), 128 + signal.SIGTERM)
        require((yield ground.job(run)), 0)
        ground.require_same_end(run, phase)

    server.drive(map(course, ("accumulation", "checkpoint")))


def test_F3_asked_from_outside(ground: Ground, server: ForkServer, tmp_path: Path) -> None:
    """As a scheduler does it, at a moment that nobody chose."""
    run = ground.copy(tmp_path / "run")
    child = server.start(ground.job(run))
    journal = run / "journal.jsonl"
    while not child.ended and (not journal.exists() or journal.read_text().count('"kind": "step"') < 4):
        time.sleep(0.005)
    child.signal(signal.SIGTERM)
    require(child.wait(), 75, 0)  # 0: the last update was made before the signal came
    require(server.run(ground.job(run)), 0)
    ground.require_same_end(run)


def _halted(ground: Ground, server: ForkServer, run: Path) -> Child:
    """A process that was stopped in the middle of its fifth update and holds its run."""
    child = server.start(ground.job(run, befall("train step", "STOP")))
    while not child.ended and Path(f"/proc/{child.pid}/stat").read_text().rpartition(")")[2].split()[0] != "T":
        time.sleep(0.005)
    assert not child.ended, child.wait().stderr
    return child


def test_F19_a_second_process_is_told_who_writes(ground: Ground, server: ForkServer, tmp_path: Path) -> None:
    """The first stands still, for however long; the second ends with 9 and touches nothing; the first goes on."""
    run = ground.copy(tmp_path / "run")
    first = _halted(ground, server, run)
    before = (run / "journal.jsonl").read_bytes()
    second = require(server.run(ground.job(run)), 9)
    assert str(first.pid) in second.stderr
    assert os.uname().nodename in second.stderr
    assert (run / "journal.jsonl").read_bytes() == before
    first.signal(signal.SIGCONT)
    require(first.wait(), 0)
    ground.require_same_end(run)


def test_F19_the_run_of_a_dead_process_is_taken_over(ground: Ground, server: ForkServer, tmp_path: Path) -> None:
    run = ground.copy(tmp_path / "run")
    first = _halted(ground, server, run)
    first.signal(signal.SIGKILL)
    assert first.wait().returncode == -signal.SIGKILL
    second = require(server.run(ground.job(run)), 0)
    assert f"taking over the lock of a process that is gone: {first.pid}" in second.stderr
    ground.require_same_end(run)


def test_F19_a_copied_run_has_no_lock(ground: Ground, server: ForkServer, tmp_path: Path) -> None:
    """A lock is held, not merely present: a copy of the folder, file and all, is free."""
    run = ground.copy(tmp_path / "run")
    first = _halted(ground, server, run)
    copy = copied(run, tmp_path / "copy")
    require(server.run(ground.job(copy)), 0)
    ground.require_same_end(copy)
    first.signal(signal.SIGKILL)
    first.wait()


def test_F3_and_the_journal_says_so(ground: Ground, server: ForkServer, tmp_path: Path) -> None:
    run = ground.copy(tmp_path / "run")
    require(server.run(ground.job(run, befall("train step", "TERM"))), 75)
    require(server.run(ground.job(run)), 0)
    assert [line.get("resumed_at") for line in lines(run, "start")] == [None, 5], json.dumps(lines(run, "start"))
