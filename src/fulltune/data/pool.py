"""Tasks to processes: one after the other here if there are few, else in worker processes that share them."""

import ctypes
import gc
import itertools
import os
import signal
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import contextmanager
from multiprocessing.reduction import ForkingPickler
from multiprocessing.resource_tracker import ensure_running
from typing import Any, Protocol, cast

from loky import ProcessPoolExecutor
from loky.process_executor import TerminatedWorkerError

from fulltune.base import stop, torchless
from fulltune.base.errors import DataError, Fault, MachineError

_FEW = 3
"""Tasks that one process does sooner than a second one would have started (it imports transformers)."""
_AHEAD = 2
"""Tasks that wait beside those in work; each holds its rows in memory."""
_LOOKS = 0.5
"""Seconds after which a process that waits for others looks whether a signal came."""
_SELDOM = (200_000, 50, 100)
"""Rows hold no cycles, and to look for them among a hundred thousand texts takes 7% of the time."""
_PARENT_DIES = 1
"""PR_SET_PDEATHSIG of prctl(2)."""


class Work(Protocol):
    """Does a task and leaves its outcome on disk."""

    def __call__(self, task: Any) -> None: ...


def do(tasks: Iterable[Any], here: Callable[[], Work], elsewhere: Callable[[], Work] | None, processes: int) -> None:
    """Every task, by a worker that `here` makes in this process, or by those that `elsewhere` makes in others.

    DataError as a worker raised it; MachineError if one was killed; Interrupted between two tasks.
    """
    waiting = iter(tasks)
    first = list(itertools.islice(waiting, _FEW))
    if elsewhere is None or processes == 1 or len(first) < _FEW:
        with _seldom_collected():
            _alone(itertools.chain(first, waiting), here)
        return
    begin = (bytes(ForkingPickler.dumps(elsewhere)), torchless.begun(), os.getpid())
    executor = ProcessPoolExecutor(processes, initializer=_begin, initargs=begin, env=_ENVIRONMENT)
    try:
        _feed(executor, itertools.chain(first, waiting), here, processes + _AHEAD)
    except TerminatedWorkerError as fault:
        stop.check()  # a signal to all processes of a group ends the workers too
        raise MachineError(
            "a process that prepares data was killed, most likely since memory ran out",
            where="data.processes",
            mend="data.processes=1 needs the least memory; what is prepared already is kept",
        ) from fault
    finally:
        executor.shutdown(wait=True, kill_workers=True)


def _alone(tasks: Iterable[Any], here: Callable[[], Work]) -> None:
    work: Work | None = None
    for task in tasks:
        stop.check()
        work = work or here()
        work(task)


@contextmanager
def _seldom_collected() -> Iterator[None]:
    """Within the block cycles are looked for as seldom as in a worker."""
    before = gc.get_threshold()
    gc.set_threshold(*_SELDOM)
    try:
        yield
    finally:
        gc.set_threshold(*before)


_ENVIRONMENT = {
    "TOKENIZERS_PARALLELISM": "false",
    "OMP_NUM_THREADS": "1",  # each worker is one of as many as there are cores
    "OPENBLAS_NUM_THREADS": "1",
    # Where psutil is installed, loky takes a worker that grew by 300 MB for one that leaks, and starts another.
    "LOKY_MAX_MEMORY_LEAK_SIZE": "1e15",
}
_worker: Work | None = None


def _begin(make: bytes, without_torch: bool, parent: int) -> None:
    """`make`: pickled, since to read it loads what it takes to work; torch too, unless the first process has none."""
    global _worker
    # Workers wait for their next task forever: let them not outlive a process that was killed or left at once.
    ctypes.CDLL(None).prctl(_PARENT_DIES, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)
    os.environ.update(_ENVIRONMENT)
    gc.set_threshold(*_SELDOM)
    if without_torch:
        torchless.begin()
    _worker = cast(Callable[[], Work], ForkingPickler.loads(make))()


def _do(task: Any) -> tuple[Fault, ...]:
    """Faults are handed over as values: exceptions with arguments of their own do not travel."""
    assert _worker is not None
    try:
        _worker(task)
    except DataError as fault:
        return fault.faults
    return ()


def _feed(executor: Any, tasks: Iterable[Any], here: Callable[[], Work], most: int) -> None:
    """Hands tasks out, not more than `most` at a time; while the others still start, this process does some itself."""
    pending: set[Future[tuple[Fault, ...]]] = set()
    work: Work | None = None
    started = False
    for task in tasks:
        stop.check()
        started = started or any(future.done() for future in pending)
        if len(pending) < most:
            pending.add(_submit(executor, task))
        elif started:
            pending = _settle(pending)
            pending.add(_submit(executor, task))
        else:
            work = work or here()
            work(task)
    while pending:
        pending = _settle(pending)


def _submit(executor: Any, task: Any) -> Future[tuple[Fault, ...]]:
    """Ctrl-C goes to the workers too, but is for this process: those that start here are born without an ear for it."""
    ensure_running()  # with the first worker it would start a process of its own, and let the signal through again
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        future: Future[tuple[Fault, ...]] = executor.submit(_do, task)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return future


def _settle(pending: set[Future[tuple[Fault, ...]]]) -> set[Future[tuple[Fault, ...]]]:
    """Waits for one, and tells its faults."""
    done: set[Future[tuple[Fault, ...]]] = set()
    while not done:
        done, left = wait(pending, _LOOKS, FIRST_COMPLETED)
        stop.check()
    for future in done:
        if faults := future.result():
            raise DataError(faults=faults)
    return left
