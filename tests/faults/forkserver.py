"""A process that has imported everything once and forks a child for each case: a real process, to be really killed.

Importing torch and transformers takes 5 s; a fork of a process that has them takes 10 ms. The server runs apart from
pytest, because a fork copies one thread only and every lock as it stands: it has exactly one thread, and says so before
each fork.
"""

import ctypes
import faulthandler
import gc
import importlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Generator, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

ROOT = Path(__file__).resolve().parent.parent.parent
ALONE = {
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "RAYON_NUM_THREADS": "1",
    "ARROW_IO_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_OFFLINE": "1",
    "COLUMNS": "200",
}
"""Libraries that would start threads of their own do without."""
WARM = (
    "fulltune.cli",
    "fulltune.stages",
    "transformers.models.gpt2.modeling_gpt2",
    "torch._dynamo",  # optimizers import it when they are first made, which takes a second
    "rich.progress",
    "tests.faults.jobs",
)
"""What is imported before the first fork."""
_PR_SET_PDEATHSIG = 1


@dataclass(frozen=True, slots=True)
class Job:
    """What a child is to do: `module:name` of a function, and its arguments, which must be JSON.

    The function's number is the exit code; that of None is 0, and a traceback's 1.
    """

    call: str
    arguments: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Ended:
    """How a child ended. `returncode` as in subprocess: an exit code, or minus the signal that killed it."""

    returncode: int
    stdout: str
    stderr: str
    seconds: float
    """Processor time that it took."""


Case = Generator[Job, Ended, None]
"""A test's course: gives jobs and receives how each ended, one after the other."""


class Child:
    """A running child, leader of a process group of its own."""

    def __init__(self, server: "ForkServer", number: int, pid: int, place: Path) -> None:
        self.pid, self._server, self._number, self._place = pid, server, number, place

    @property
    def ended(self) -> bool:
        """Whether it is dead, as far as the server has heard."""
        self._server.listen(0)
        return self._number in self._server.deaths

    def signal(self, number: int) -> None:
        """Send a signal to its whole group, unless it is dead."""
        if not self.ended:
            try:
                os.killpg(self.pid, number)
            except ProcessLookupError:  # it died this moment, and the server is about to say so
                self._server.listen(5.0)

    def wait(self, timeout: float = 60.0) -> Ended:
        """How it ended; TimeoutError, with where each of its threads stood, if it did not: then it is killed."""
        until = time.monotonic() + timeout
        while not self.ended:
            if (left := until - time.monotonic()) <= 0:
                self.signal(signal.SIGABRT)  # faulthandler writes all stacks
                while not self.ended and time.monotonic() < until + 5.0:
                    self._server.listen(0.1)
                self.signal(signal.SIGKILL)
                said = "".join(self._read(name)[-8000:] for name in ("stdout", "stderr"))  # a rank says all in one
                raise TimeoutError(f"process {self.pid} did not end in time:\n{said}")
            self._server.listen(left)
        status, seconds = self._server.deaths[self._number]
        return Ended(os.waitstatus_to_exitcode(status), self._read("stdout"), self._read("stderr"), seconds)

    def _read(self, name: str) -> str:
        return (self._place / name).read_text(encoding="utf-8", errors="replace")


class ForkServer:
    """Starts the server, and speaks with it. It dies with the process that started it, and its children with it."""

    def __init__(self, warm: Sequence[str] = WARM) -> None:
        self.deaths: dict[int, tuple[int, float]] = {}
        """Number of a child -> how it ended, and the seconds it took; numbers of processes are used again."""
        self._scratch = tempfile.TemporaryDirectory(prefix="forkserver-")
        self._count = 0
        self._socket, theirs = socket.socketpair()
        source = os.environ.get("PYTHONPATH")
        paths = [str(ROOT), *([source] if source else [])]
        with theirs, (Path(self._scratch.name) / "server").open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-W", "ignore", "-m", "tests.faults.forkserver", str(theirs.fileno()), *warm],
                pass_fds=[theirs.fileno()],
                cwd=ROOT,
                env={**os.environ, **ALONE, "PYTHONPATH": os.pathsep.join(paths)},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # an interrupt at the keyboard is for pytest; the server dies with it
            )
        self._rest = b""
        self._answers: list[dict[str, Any]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, at: TracebackType | None) -> None:
        self._socket.close()
        self._process.wait(30)
        self._scratch.cleanup()

    def start(self, job: Job) -> Child:
        """Fork a child for a job."""
        self._count += 1
        place = Path(self._scratch.name) / str(self._count)
        place.mkdir()
        for name in ("stdout", "stderr"):  # a child may be dead before it writes a word
            (place / name).touch()
        _say(self._socket, number=self._count, call=job.call, arguments=job.arguments, place=str(place))
        answer = self._answer()
        if "refused" in answer:
            raise RuntimeError(answer["refused"])
        return Child(self, self._count, answer["begun"], place)

    def run(self, job: Job, *, timeout: float = 60.0) -> Ended:
        """Fork a child and wait for its end."""
        return self.start(job).wait(timeout)

    def drive(self, cases: Iterable[Case], *, width: int | None = None, timeout: float = 60.0) -> int:
        """Lead many cases to their ends, `width` of them at the same time; returns their number."""
        waiting, done = iter(cases), 0
        running: dict[int, tuple[Child, Case, float]] = {}
        width = width or len(os.sched_getaffinity(0)) + 1  # one more: they wait for the disk now and then

        def go_on(case: Case, before: Ended | None) -> bool:
            try:
                job = next(case) if before is None else case.send(before)
            except StopIteration:
                return False
            child = self.start(job)
            running[child.pid] = (child, case, time.monotonic())
            return True

        try:
            while True:
                while len(running) < width and (case := next(waiting, None)) is not None:
                    done += 1
                    go_on(case, None)
                if not running:
                    return done
                self.listen(1.0)
                for pid, (child, case, begun) in list(running.items()):
                    if child.ended or time.monotonic() - begun > timeout:
                        ended = child.wait(0.001)
                        del running[pid]
                        go_on(case, ended)
        finally:
            for child, _, _ in running.values():
                child.signal(signal.SIGKILL)

    def listen(self, seconds: float) -> None:
        """Take what the server has to say; wait so long for the first word."""
        while select.select([self._socket], [], [], seconds)[0]:
            self._hear()
            seconds = 0

    def _hear(self) -> None:
        if not (read := self._socket.recv(65536)):
            log = (Path(self._scratch.name) / "server").read_text(errors="replace")
            raise RuntimeError(f"the fork server died:\n{log[-4000:]}")
        *told, self._rest = (self._rest + read).split(b"\n")
        for line in told:
            said = json.loads(line)
            if "died" in said:
                self.deaths[said["died"]] = (said["status"], said["seconds"])
            else:
                self._answers.append(said)

    def _answer(self) -> dict[str, Any]:
        while not self._answers:
            self._hear()
        return self._answers.pop()


def threads() -> int:
    """Threads of this process, as the kernel counts them."""
    return len(os.listdir("/proc/self/task"))


def serve(descriptor: int, warm: Sequence[str]) -> None:
    """Fork on demand until the other side is gone; then kill what still runs."""
    die_with_parent()
    for name in warm:
        importlib.import_module(name)
    if "tests.faults.jobs" in warm:
        sys.modules["tests.faults.jobs"].warm_up()
    gc.collect()
    gc.freeze()  # children share these pages as long as no collection writes into them
    line = socket.socket(fileno=descriptor)
    children: dict[int, tuple[int, int]] = {}  # pidfd, which becomes readable when it dies: its pid and number
    rest = b""
    while True:
        ready, _, _ = select.select([line, *children], [], [])
        for handle in children.keys() & ready:
            pid, number = children.pop(handle)
            os.close(handle)
            _, status, usage = os.wait4(pid, 0)
            _say(line, died=number, status=status, seconds=usage.ru_utime + usage.ru_stime)
        if line in ready:
            if not (read := line.recv(65536)):
                break
            *orders, rest = (rest + read).split(b"\n")
            for order in orders:
                _fork(line, json.loads(order), children)
    for pid, _ in children.values():
        os.killpg(pid, signal.SIGKILL)


def _fork(line: socket.socket, order: dict[str, Any], children: dict[int, tuple[int, int]]) -> None:
    if (count := threads()) != 1:
        _say(line, refused=f"a fork would copy one thread of {count}, and the locks of all")
        return
    parent = os.getpid()
    leads, led = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.setsid()
        os.close(leads)
        os.close(led)  # tells the server that it leads a group, so that signals to that find it
        die_with_parent()
        if os.getppid() != parent:
            os._exit(1)
        for handle in children:
            os.close(handle)
        line.close()
        _become(Path(order["place"]), order["call"], order["arguments"])
    os.close(led)
    os.read(leads, 1)
    os.close(leads)
    children[os.pidfd_open(pid)] = (pid, order["number"])
    _say(line, begun=pid)


def _become(place: Path, call: str, arguments: dict[str, Any]) -> None:
    """The child: its own output, the job, its exit code. Whoever left a thread behind loses what it has not written."""
    for number, name in ((1, "stdout"), (2, "stderr")):
        handle = os.open(place / name, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(handle, number)
        os.close(handle)
    code = 1
    faulthandler.enable()
    _own_threads()
    try:
        module, _, name = call.partition(":")
        code = vars(importlib.import_module(module))[name](**arguments) or 0
    except SystemExit as leaving:
        code = leaving.code if isinstance(leaving.code, int) else 1
    except BaseException:  # noqa: BLE001 - here it ends, as at the top of any process
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _own_threads() -> None:
    """Have torch make its threads anew, which a fork does not copy, while this process has one thread.

    It does so when any thread first asks; where two of them ask at once, as when transformers reads weights, the second
    may find none: "Invalid thread pool!".
    """
    if (torch := sys.modules.get("torch")) is not None:
        torch.set_num_threads(torch.get_num_threads())


def _say(line: socket.socket, **words: Any) -> None:
    line.sendall(json.dumps(words).encode() + b"\n")


def die_with_parent() -> None:
    """Have the kernel kill this process when its parent dies, however that happens."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


if __name__ == "__main__":
    serve(int(sys.argv[1]), sys.argv[2:])
