"""The memory of a process and of all that it started, looked at from outside every 50 ms."""

import re
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

_PSS = re.compile(r"^(Pss|Pss_Anon|Pss_Shmem):\s+(\d+) kB$", re.MULTILINE)
_SESSION = 3
"""Place of the session id among the fields of /proc/*/stat that follow the name."""


@dataclass(frozen=True, slots=True)
class Memory:
    """What processes hold together at one moment, in bytes; pages that several of them share count once."""

    at: float
    """By time.monotonic."""
    processes: int
    pss: int
    own: int
    """Of it, what the system cannot take back: all but mapped files."""
    main: int
    """As `own`, of the first process alone."""


def memory(session: int) -> Memory:
    """Of every process of a session. All that a process starts belongs to its session, also if its parent is gone."""
    found = {pid: shares for pid in _members(session) if (shares := _shares(pid)) is not None}
    pss, own = (sum(shares[part] for shares in found.values()) for part in (0, 1))
    return Memory(time.monotonic(), len(found), pss, own, found.get(session, (0, 0))[1])


def _members(session: int) -> Iterator[int]:
    for folder in Path("/proc").iterdir():
        stat = _read(folder / "stat") if folder.name.isdigit() else ""
        # The name stands in parentheses and may hold any character, so the fields are counted from behind it.
        if stat and int(stat.rpartition(")")[2].split()[_SESSION]) == session:
            yield int(folder.name)


def _shares(pid: int) -> tuple[int, int] | None:
    """PSS of a process, and the part of it that is no file; None if it has ended."""
    found = {name: int(size) * 1024 for name, size in _PSS.findall(_read(Path(f"/proc/{pid}/smaps_rollup")))}
    return (found["Pss"], found["Pss_Anon"] + found["Pss_Shmem"]) if found else None


def _read(path: Path) -> str:
    """A file of /proc; empty if its process ended meanwhile."""
    try:
        return path.read_text()
    except (FileNotFoundError, ProcessLookupError):
        return ""


class Watch:
    """Looks while its block runs; `seen` afterwards."""

    def __init__(self, session: int, every: float = 0.05) -> None:
        self.seen: list[Memory] = []
        self._session, self._every = session, every
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)

    def __enter__(self) -> "Watch":
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, at: TracebackType | None) -> None:
        self._over.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._over.is_set():
            if (now := memory(self._session)).processes:
                self.seen.append(now)
            self._over.wait(self._every)
