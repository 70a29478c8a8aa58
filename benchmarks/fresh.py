"""One contestant, run in a fresh process: its answer, and what its processes held meanwhile."""

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from benchmarks.contestants.task import Answer, Task
from benchmarks.watch import Memory, Watch

ROOT = Path(__file__).resolve().parent.parent
_LAST_LINES = 30


class Failed(Exception):
    """A contestant that ended with an error; its last words are the message."""


@dataclass(frozen=True, slots=True)
class Contestant:
    """Something that prepares data, or trains."""

    name: str
    module: str
    """Under benchmarks.contestants."""
    python: Path = Path(sys.executable)
    options: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    """Variables that it alone has."""


class Told(Protocol):
    """What a contestant is told: a Task, or another one of its kind."""

    @property
    def out(self) -> str:
        """A place for all that it writes, in a folder that is there."""

    def write(self, path: Path) -> None:
        """The file that it reads."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Peak:
    """The most that a contestant's processes held together while it was timed, and what they held before."""

    pss: int
    own: int
    """The most that was no mapped file."""
    main: int
    """As `own`, of the process that was started alone."""
    before: int
    """PSS just before the clock ran: interpreter and imports."""
    processes: int
    looks: int
    """How often was looked; a peak of few looks may have been missed."""


@dataclass(frozen=True, slots=True)
class Ran:
    """One run."""

    answer: Answer
    peak: Peak | None
    """None if nobody looked."""


def run(contestant: Contestant, task: Task, *, watched: bool) -> Ran:
    """The contestant's answer to a task; Failed if it gives none."""
    seen = execute(contestant, task, watched=watched)
    answer = Answer.read(Path(task.answer))
    return Ran(answer, peak(seen, answer.window) if watched else None)


def execute(contestant: Contestant, task: Told, *, watched: bool) -> list[Memory]:
    """Run it to its end; Failed, with its last words, if that was no good one. What it cached and logged is removed."""
    # Dirty pages of the run before would be written during this one, and fulltune waits for the disk (fsync).
    os.sync()
    with tempfile.TemporaryDirectory(dir=Path(task.out).parent, prefix=".run-") as folder:
        work = Path(folder)
        task.write(work / "task.json")
        words = ["-m", f"benchmarks.contestants.{contestant.module}", str(work / "task.json"), *contestant.options]
        with (work / "log").open("wb") as log:
            process = subprocess.Popen(
                [str(contestant.python), *words],
                cwd=work,
                env=_environment(contestant, work),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            seen = _wait(process, watched=watched)
        if process.returncode != 0:
            last = (work / "log").read_text(encoding="utf-8", errors="replace").splitlines()[-_LAST_LINES:]
            raise Failed(f"{contestant.name} ended with exit code {process.returncode}:\n" + "\n".join(last))
    return seen


def peak(seen: list[Memory], window: tuple[float, float]) -> Peak:
    """The most of what was seen within a window of time."""
    before = [look for look in seen if look.at < window[0]]
    within = [look for look in seen if window[0] <= look.at <= window[1]]
    if not within:
        raise Failed("it was over before anybody looked: take more rows")
    return Peak(
        pss=max(look.pss for look in within),
        own=max(look.own for look in within),
        main=max(look.main for look in within),
        before=before[-1].pss if before else 0,
        processes=max(look.processes for look in within),
        looks=len(within),
    )


def _wait(process: subprocess.Popen[bytes], *, watched: bool) -> list[Memory]:
    """Until the process has ended. If we are interrupted, it ends too, with all that it started."""
    try:
        if not watched:
            process.wait()
            return []
        with Watch(process.pid) as watch:
            process.wait()
        return watch.seen
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _environment(contestant: Contestant, work: Path) -> dict[str, str]:
    """Ours, with caches that are empty, without a network and without a GPU."""
    paths = [str(ROOT)]
    if contestant.python == Path(sys.executable):  # where fulltune may be imported from; another Python has its own
        paths += [str(Path(path).resolve()) for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
    return dict(os.environ) | {
        "PYTHONPATH": os.pathsep.join(paths),
        "HF_HOME": str(work / "hub"),
        "HF_DATASETS_CACHE": str(work / "cache"),
        "HF_HUB_OFFLINE": "1",
        "CUDA_VISIBLE_DEVICES": "",
        **contestant.environment,
    }
