"""The harness itself: children are real, do not share threads, and do not outlive the server."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.faults.forkserver import ROOT, ForkServer, Job
from tests.faults.ground import Ground, require


def test_a_child_dies_by_the_signal_that_it_is_sent(server: ForkServer) -> None:
    child = server.start(Job("tests.faults.jobs:sleep", {"seconds": 60}))
    assert not child.ended
    child.signal(signal.SIGKILL)
    assert child.wait().returncode == -signal.SIGKILL


def test_exit_codes_and_output_are_those_of_the_command(server: ForkServer) -> None:
    ended = server.run(Job("tests.faults.jobs:command", {"words": ["train", "no-such-recipe.yaml"]}))
    assert require(ended, 2).stderr.startswith("error: ")
    assert require(server.run(Job("tests.faults.jobs:command", {"words": ["--version"]})), 0).stdout


def test_a_server_with_threads_refuses_to_fork(server: ForkServer) -> None:
    """The count is the kernel's, taken before each fork; here in a child, which may have threads."""
    assert require(server.run(Job("tests.faults.jobs:counted_threads", {})), 0).stdout.split() == ["1", "2"]


def test_nobody_outlives_the_process_that_asked(tmp_path: Path) -> None:
    """pytest killed: the server goes, and its children with it."""
    script = (
        "import os, signal, sys\n"
        "from tests.faults.forkserver import ForkServer, Job\n"
        "server = ForkServer(['time'])\n"
        "child = server.start(Job('signal:pause', {}))\n"
        "print(server._process.pid, child.pid, flush=True)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    told = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    pids = [int(pid) for pid in told.stdout.split()]
    assert len(pids) == 2, told.stderr
    for _ in range(500):
        if not any(_lives(pid) for pid in pids):
            return
        time.sleep(0.02)
    pytest.fail("still there")


def _lives(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as stat:
            return stat.read().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_boundaries_are_found_and_one_of_them_kills(ground: Ground, server: ForkServer, tmp_path: Path) -> None:
    seen = ground.boundaries(ground.copy(tmp_path / "seen"), server)
    kinds = {text.split()[0] for text in seen}
    assert kinds >= {"open", "write", "flush", "fsync", "rename", "mkdir", "remove", "rmdir", "safetensors", "torn"}
    run = ground.copy(tmp_path / "run")
    ended = server.run(ground.job(run, {"folder": str(run), "at": 40}))
    assert ended.returncode == -signal.SIGKILL
    assert "at boundary 40: " in ended.stderr
    assert os.listdir(run)
