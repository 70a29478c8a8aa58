"""Every place where a process changes a folder on disk, counted; at one of them it dies, or the disk says no.

In a forked child only: what is patched here stays patched. Python's audit events tell of opened, renamed, removed, made
and truncated files; writing, flushing and fsync have none, so those functions are replaced. safetensors writes in Rust,
unseen: its writing is two boundaries, before the file and in the middle of it.
"""

import builtins
import errno
import fcntl
import io
import os
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors import torch as safetensors_torch

_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
TAKES_SPACE = ("open", "mkdir", "write", "flush", "fsync", "safetensors", "torn")
"""What a full disk refuses; it lets one rename and remove."""
_AUDITED = {  # event -> boundary, and where its arguments hold (path, dir_fd)
    "os.rename": ("rename", ((0, 2), (1, 3))),
    "os.remove": ("remove", ((0, 1),)),
    "os.rmdir": ("rmdir", ((0, 1),)),
    "os.mkdir": ("mkdir", ((0, 2),)),
    "os.chmod": ("chmod", ((0, 2),)),
    "os.link": ("link", ((1, 3),)),
    "os.symlink": ("symlink", ((1, 2),)),
    "os.truncate": ("truncate", ((0, None),)),
}


class Boundaries:
    """Counts from 1; what is `seen` can be asked for at the end."""

    def __init__(
        self, folder: Path, *, at: int | None = None, act: str = "kill", only: str = "", lasting: bool = False
    ) -> None:
        """At boundary `at`, counting those alone whose text holds `only`: `kill`, or an OSError of the name `act`.

        `lasting`: a disk that is full from there on; what takes no space is not counted then, and never fails.
        """
        self._folder, self._at, self._act, self._only = str(folder.resolve()), at, act, only
        self._lasting = lasting
        self._lock = threading.RLock()
        self.seen: list[str] = []

    def install(self) -> None:
        """From now on; there is no way back."""
        real = {name: vars(os)[name] for name in ("fsync", "fdatasync", "write", "pwrite")}
        os.fsync = self._of_handle("fsync", real["fsync"])
        os.fdatasync = self._of_handle("fsync", real["fdatasync"])
        os.write = self._of_handle("write", real["write"])
        os.pwrite = self._of_handle("write", real["pwrite"])
        serialise, opened, flock = safetensors_torch.serialize_file, builtins.open, fcntl.flock

        def serialize_file(tensors: Any, filename: Any, *more: Any, **named: Any) -> None:
            place = self._within(filename)
            if place is not None:
                self.boundary("safetensors", place)
            serialise(tensors, filename, *more, **named)
            if place is not None:
                self.boundary("torn", place, lambda: os.truncate(filename, os.path.getsize(filename) // 2))

        def open_(file: Any, mode: str = "r", *more: Any, **named: Any) -> Any:
            handle = opened(file, mode, *more, **named)
            place = self._within(file) if set(mode) & set("wax+") else None
            return handle if place is None else _Watched(handle, place, self)

        def flock_(handle: Any, operation: int) -> None:
            if (place := self._within(handle)) is not None:
                self.boundary("flock", place)
            flock(handle, operation)

        safetensors_torch.serialize_file = serialize_file
        builtins.open = io.open = open_
        fcntl.flock = flock_
        sys.addaudithook(self._heard)

    def boundary(self, kind: str, place: str, tear: Callable[[], Any] | None = None) -> None:
        """Count one; if it is the one, leave things half done with `tear`, then die or raise."""
        text = f"{kind} {place}"
        if self._only not in text or (self._lasting and kind not in TAKES_SPACE):
            return
        with self._lock:
            self.seen.append(text)
            number = len(self.seen)
            if self._at is None or number < self._at:
                return
            if number > self._at and not self._lasting:
                return
            if tear is not None:
                self._at, before = None, self._at  # what tears is not counted
                tear()
                self._at = before
            if number == self._at:
                sys.stderr.write(f"{self._act} at boundary {number}: {text}\n")
                sys.stderr.flush()
            if self._act == "kill":
                os.kill(0, signal.SIGKILL)
            code = vars(errno)[self._act]
            raise OSError(code, os.strerror(code), place)

    def _heard(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open":
            path, _, flags = arguments
            if isinstance(flags, int) and flags & _WRITES and (place := self._within(path)) is not None:
                self.boundary("open", place)
        elif event in _AUDITED:
            kind, where = _AUDITED[event]
            if kind == "mkdir" and os.path.isdir(arguments[0]):  # changes nothing
                return
            places = [self._within(arguments[at], None if by is None else arguments[by]) for at, by in where]
            if any(place is not None for place in places):
                self.boundary(kind, " -> ".join(map(str, places)))

    def _of_handle(self, kind: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(handle: Any, *more: Any) -> Any:
            if (place := self._within(handle)) is None:
                return real(handle, *more)
            self.boundary(
                kind, place, (lambda: real(handle, more[0][: len(more[0]) // 2], *more[1:])) if more else None
            )
            return real(handle, *more)

        return call

    def _within(self, path: Any, folder: int | None = None) -> str | None:
        """A path, from the watched folder; None outside of it. Paths may be open files, or begin at one."""
        if hasattr(path, "fileno"):
            path = path.fileno()
        if isinstance(path, int):
            try:
                path = os.readlink(f"/proc/self/fd/{path}")
            except OSError:
                return None
        path = os.fsdecode(path)
        if folder is not None and folder >= 0 and not path.startswith("/"):
            path = os.path.join(os.readlink(f"/proc/self/fd/{folder}"), path)
        path = os.path.join(os.path.realpath(os.path.dirname(path) or "."), os.path.basename(path))
        if path != self._folder and not path.startswith(self._folder + os.sep):
            return None
        return path[len(self._folder) + 1 :] or "."


class _Watched:
    """A file opened for writing, whose writes, flushes and truncations are boundaries."""

    def __init__(self, handle: Any, place: str, boundaries: Boundaries) -> None:
        self._handle, self._place, self._boundaries = handle, place, boundaries

    def write(self, content: Any) -> Any:
        def half() -> None:
            self._handle.write(content[: len(content) // 2])
            self._handle.flush()

        self._boundaries.boundary("write", self._place, half)
        return self._handle.write(content)

    def flush(self) -> None:
        self._boundaries.boundary("flush", self._place)
        self._handle.flush()

    def truncate(self, size: int | None = None) -> Any:
        self._boundaries.boundary("truncate", self._place)
        return self._handle.truncate(size)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._handle, name)

    def __enter__(self) -> "_Watched":
        self._handle.__enter__()
        return self

    def __exit__(self, *about: Any) -> Any:
        return self._handle.__exit__(*about)

    def __iter__(self) -> Any:
        return iter(self._handle)
