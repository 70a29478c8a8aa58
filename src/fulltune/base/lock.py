"""One run, one writer: a file in the run's folder that one process holds, and that says which."""

import errno
import fcntl
import json
import os
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path

from fulltune.base.errors import LockedError
from fulltune.base.files import private_folder
from fulltune.base.log import LOGGER

NAME = ".lock"

_NO_FLOCK = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS)
"""What file systems say that cannot lock a file."""


@dataclass(slots=True)
class _Hold:
    """What this process has of a folder: the open file that carries the lock, and how often it was asked for."""

    handle: int
    depth: int = 0


_held: dict[tuple[int, str], _Hold] = {}
"""By thread and real path: two threads of one process are two writers."""


def _forget() -> None:
    """A forked child holds nothing; the file that it has open too would keep the lock beyond its parent's death."""
    for hold in _held.values():
        os.close(hold.handle)
    _held.clear()


os.register_at_fork(after_in_child=_forget)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """In here this process alone writes to the folder; LockedError names the one that does already.

    The lock ends with its process, however that ends; a subprocess does not inherit it. The thread that holds it may
    ask for it again. The folder is made if need be, and removed again if nothing else came into it.
    """
    key, path = (threading.get_ident(), os.path.realpath(folder)), folder / NAME
    made = [one for one in (folder, *folder.parents) if not one.exists()]
    if key not in _held:
        private_folder(folder)
        _held[key] = _Hold(_acquire(path))
    hold = _held[key]
    hold.depth += 1
    try:
        if hold.depth == 1:
            _sign(hold.handle)
        yield
    finally:
        hold.depth -= 1
        if hold.depth == 0 and key in _held:  # it is not in a forked child that comes this way
            path.unlink(missing_ok=True)  # before it is let go: whoever comes next makes a file of their own
            os.close(_held.pop(key).handle)
            _remove_empty(made)


@dataclass(frozen=True, slots=True)
class _Holder:
    """What the file says: a process, where it runs, and when it started."""

    pid: int
    host: str
    started: str
    start_ticks: int
    """In the kernel's ticks since boot, since the number of a dead process may be given to another."""

    @classmethod
    def here(cls) -> "_Holder":
        """This process."""
        ticks = _start_ticks(os.getpid())
        assert ticks is not None
        boot = time.time() - time.clock_gettime(time.CLOCK_BOOTTIME)
        began = datetime.fromtimestamp(boot + ticks / os.sysconf("SC_CLK_TCK")).astimezone()
        return cls(os.getpid(), socket.gethostname(), began.isoformat(timespec="seconds"), ticks)

    @property
    def is_gone(self) -> bool:
        """Whether it has certainly ended; of a process on another host nothing is certain."""
        return self.host == socket.gethostname() and _start_ticks(self.pid) != self.start_ticks

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}, running since {self.started}"


def _acquire(path: Path) -> int:
    """The open file that carries the lock."""
    while True:
        handle, is_new = _open(path)
        try:
            _take(handle, path, is_new=is_new)
            if _stands(path, handle):
                return handle
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)  # its holder removed the file after it was opened here and before it was locked


def _open(path: Path) -> tuple[int, bool]:
    """The file, and whether it is new. What Python opens is closed in subprocesses."""
    try:
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666), True
    except FileExistsError:
        return os.open(path, os.O_RDWR | os.O_CREAT, 0o666), False


def _take(handle: int, path: Path, *, is_new: bool) -> None:
    """LockedError if somebody else has it."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as fault:
        mend = "wait until it is done, or end it; then run the same command"
        raise _refused(_read(handle), path, mend) from fault
    except OSError as fault:
        if fault.errno not in _NO_FLOCK:
            raise
        # Then its text decides; two that take over from a dead process in the same instant would both have it.
        holder = _read(handle)
        if not is_new and (holder is None or not holder.is_gone):
            raise _refused(holder, path, f"if that process is gone, remove {path}") from fault


def _refused(holder: _Holder | None, path: Path, mend: str) -> LockedError:
    who = "" if holder is None else f": {holder}"
    return LockedError(f"another process writes to this run{who}", where=str(path.parent), mend=mend)


def _stands(path: Path, handle: int) -> bool:
    """Whether the open file is still the one of that name."""
    try:
        return os.path.samestat(path.stat(), os.fstat(handle))
    except FileNotFoundError:
        return False


def _sign(handle: int) -> None:
    """Say who holds the lock now."""
    if (before := _read(handle)) is not None:
        LOGGER.info(f"taking over the lock of a process that is gone: {before.pid} on {before.host}")
    text = json.dumps(asdict(_Holder.here())) + "\n"
    os.ftruncate(handle, 0)
    os.pwrite(handle, text.encode(), 0)


def _read(handle: int) -> _Holder | None:
    """None if it says nothing, as in the instant before its holder has signed."""
    try:
        return _Holder(**json.loads(os.pread(handle, 4096, 0)))
    except (ValueError, TypeError):
        return None


def _start_ticks(pid: int) -> int | None:
    """When a process started, in ticks since boot; None if it has ended."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    state, *more = text.rpartition(")")[2].split()  # its name, in brackets before, may hold anything
    return None if state in "ZX" else int(more[18])  # field 22 of the line; a zombie has ended


def _remove_empty(folders: Sequence[Path]) -> None:
    for folder in folders:  # the innermost comes first
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()
