"""One run, one writer: who holds a folder is told to all others, and a dead holder holds nothing."""

import errno
import fcntl
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from fulltune.base.errors import LockedError
from fulltune.base.lock import NAME, locked
from fulltune.base.log import LOGGER
from tests.conftest import ROOT

HOLDER = """
import os, subprocess, sys
from pathlib import Path
from fulltune.base.errors import LockedError
from fulltune.base.lock import locked
folder = Path(sys.argv[1])
"""
HOLDS = "with locked(folder): print('held', flush=True); sys.stdin.read()"


@contextmanager
def process(folder: Path, script: str = HOLDS) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A process of its own, once it has said something, and what it said."""
    command = [sys.executable, "-c", HOLDER + script, str(folder)]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as running:
        assert running.stdout is not None
        try:
            yield running, running.stdout.readline().strip()
        finally:
            running.kill()


@pytest.fixture
def said() -> Iterator[list[str]]:
    """What the package's log says, wherever else it goes."""
    lines: list[str] = []
    handler, level = logging.Handler(), LOGGER.level
    handler.emit = lambda record: lines.append(record.getMessage())  # type: ignore[method-assign]
    LOGGER.addHandler(handler)
    LOGGER.setLevel(logging.INFO)
    yield lines
    LOGGER.removeHandler(handler)
    LOGGER.setLevel(level)


def elsewhere(work: Callable[[], None]) -> BaseException | None:
    """What another thread of this process meets."""
    met: list[BaseException] = []

    def run() -> None:
        try:
            work()
        except LockedError as fault:
            met.append(fault)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    return met[0] if met else None


def take(folder: Path) -> None:
    with locked(folder):
        pass


def test_the_file_says_who_holds_it_and_goes_with_the_lock(tmp_path: Path, said: list[str]) -> None:
    folder = tmp_path / "runs/one"
    with locked(folder):
        told = json.loads((folder / NAME).read_text())
        assert told.keys() == {"pid", "host", "started", "start_ticks"}
        assert (told["pid"], told["host"]) == (os.getpid(), socket.gethostname())
        with locked(tmp_path / "runs/../runs/one"):
            (tmp_path / "link").symlink_to(folder)
            with locked(tmp_path / "link"):
                pass
        assert (folder / NAME).exists(), "the outer one still holds it"
    assert not (tmp_path / "runs").exists(), "folders that it made and nobody used"
    for _ in range(2):
        with locked(folder):
            (folder / "kept").touch()
    assert [path.name for path in folder.iterdir()] == ["kept"]
    (tmp_path / "empty").mkdir()
    take(tmp_path / "empty")
    assert (tmp_path / "empty").is_dir(), "it was there before"
    assert said == []


def test_a_second_process_is_told_who_runs_and_a_dead_one_is_succeeded(tmp_path: Path, said: list[str]) -> None:
    with process(tmp_path) as (holder, _):
        holder.send_signal(signal.SIGSTOP)
        with pytest.raises(LockedError) as caught, locked(tmp_path):
            pass
        (fault,) = caught.value.faults
        assert f"process {holder.pid} on {socket.gethostname()}, running since 20" in fault.what
        assert fault.where == str(tmp_path)
        assert caught.value.exit_code == 9
        assert said == []
        holder.kill()
        holder.wait()
        assert (tmp_path / NAME).exists()
        with locked(tmp_path):
            assert json.loads((tmp_path / NAME).read_text())["pid"] == os.getpid()
        assert said == [
            f"taking over the lock of a process that is gone: {holder.pid} on {socket.gethostname()}",
        ]
        assert not (tmp_path / NAME).exists()


def test_one_that_ends_in_order_leaves_nothing_to_take_over(tmp_path: Path, said: list[str]) -> None:
    with process(tmp_path) as (holder, _):
        holder.communicate("")
        assert holder.returncode == 0
    assert list(tmp_path.iterdir()) == []
    take(tmp_path)
    assert said == []


SUBPROCESS = """
with locked(folder):
    sleeper = subprocess.Popen(["sleep", "60"], close_fds=False, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    print(sleeper.pid, flush=True); sys.stdin.read()
"""
FORK = """
import time
with locked(folder):
    if os.fork() == 0:  # it speaks, since before it runs for the first time it has what its parent had
        print(os.getpid(), flush=True); os.close(0); os.close(1)
        time.sleep(60); os._exit(0)
    sys.stdin.read()
"""


@pytest.mark.parametrize("script", [SUBPROCESS, FORK], ids=["subprocess", "fork"])
def test_what_a_holder_started_does_not_hold(tmp_path: Path, script: str) -> None:
    with process(tmp_path, script) as (holder, pid):
        try:
            holder.kill()
            holder.wait()
            os.kill(int(pid), 0)
            take(tmp_path)
        finally:
            os.kill(int(pid), signal.SIGKILL)


CHILD = """
with locked(folder):
    if (pid := os.fork()) == 0:
        try:
            with locked(folder): os._exit(0)
        except LockedError as fault:
            os._exit(fault.exit_code if str(os.getppid()) in str(fault) else 1)
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), end=" ")
    try:
        if (pid := os.fork()) == 0: raise KeyError
    except KeyError:
        pass  # this child leaves the block in order
    else:
        os.waitpid(pid, 0)
        print((folder / ".lock").exists(), flush=True)
        sys.stdin.read()
"""


def test_a_forked_child_is_another_writer(tmp_path: Path) -> None:
    """It is refused, and does not take its parent's lock away when it leaves the block."""
    with process(tmp_path, CHILD) as (_, said):
        assert said == "9 True"
        with pytest.raises(LockedError):
            take(tmp_path)


def test_another_thread_is_another_writer(tmp_path: Path) -> None:
    with locked(tmp_path):
        assert str(os.getpid()) in str(elsewhere(lambda: take(tmp_path)))
        assert (tmp_path / NAME).exists()
    assert elsewhere(lambda: take(tmp_path)) is None


def test_a_file_that_vanishes_while_it_is_opened_locks_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its holder ends between our opening and our locking: the file of that name would be the next one's alone."""
    real, calls = fcntl.flock, []

    def flock(handle: int, how: int) -> None:
        calls.append(handle)
        if len(calls) == 1:
            (tmp_path / NAME).unlink()
        real(handle, how)

    monkeypatch.setattr(fcntl, "flock", flock)
    with locked(tmp_path):
        assert len(calls) == 2
        assert elsewhere(lambda: take(tmp_path)) is not None


def write(folder: Path, **changes: Any) -> None:
    """A lock file as this process would write it, but for the changes."""
    with locked(folder):
        text = (folder / NAME).read_text()
    (folder / NAME).write_text(json.dumps({**json.loads(text), **changes}))


@pytest.fixture
def no_flock(monkeypatch: pytest.MonkeyPatch) -> None:
    def flock(handle: int, how: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", flock)


@pytest.mark.usefixtures("no_flock")
def test_without_flock_the_text_decides(tmp_path: Path, said: list[str]) -> None:
    ended = subprocess.Popen(["true"])
    os.waitid(os.P_PID, ended.pid, os.WEXITED | os.WNOWAIT)  # it is a zombie, as where nobody waits for it
    ticks = int(Path(f"/proc/{ended.pid}/stat").read_text().rpartition(")")[2].split()[19])
    for changes in ({"start_ticks": 1}, {"pid": ended.pid, "start_ticks": ticks}):
        write(tmp_path, **changes)
        take(tmp_path)
        assert not (tmp_path / NAME).exists()
    assert len(said) == 2
    ended.wait()
    for text in ({}, {"host": "elsewhere", "pid": 1, "start_ticks": 1}):
        write(tmp_path, **text)
        with pytest.raises(LockedError) as caught:
            take(tmp_path)
        assert f"remove {tmp_path / NAME}" in caught.value.faults[0].mend
        (tmp_path / NAME).unlink()
    (tmp_path / NAME).touch()  # another one is about to write
    with pytest.raises(LockedError):
        take(tmp_path)


def test_other_faults_of_the_disk_are_not_taken_for_a_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def flock(handle: int, how: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(fcntl, "flock", flock)
    opened = set(os.listdir("/proc/self/fd"))
    with pytest.raises(OSError, match="Input/output"):
        take(tmp_path)
    assert set(os.listdir("/proc/self/fd")) == opened, "no file stays open"
