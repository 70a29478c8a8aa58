"""Where reports go: a JSON line on disk first, then whoever else listens."""

import hashlib
import json
import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Protocol, Self

from fulltune.base.errors import CheckpointError
from fulltune.base.secrets import masked_tree

_LOOK_EVERY = 0.2
"""Seconds."""


class Sink(Protocol):
    """A listener: progress bar, tracker. It hears every line and can change nothing."""

    def hear(self, kind: str, values: Mapping[str, Any]) -> None:
        """Take one line of the journal."""


class Journal:
    """`journal.jsonl` of a run: one JSON object a line, `kind` first; others can read it when `write` returns.

    Of several processes the first writes it; with `mute` the others have one that hears all and says nothing.
    """

    def __init__(self, path: Path, sinks: Sequence[Sink] = (), *, mute: bool = False) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path, self._sinks, self._mute = path, tuple(sinks), mute
        self._file = (Path(os.devnull) if mute else path).open("a", encoding="utf-8")

    def write(self, kind: str, values: Mapping[str, Any]) -> None:
        """Append one line; numbers that are not finite are to be given by name (base/files.to_json does so)."""
        if self._mute:
            return
        values = masked_tree(values)
        self._file.write(json.dumps({"kind": kind, **values}, ensure_ascii=False, allow_nan=False) + "\n")
        self._file.flush()
        for sink in self._sinks:
            sink.hear(kind, values)

    @property
    def size(self) -> int:
        """Bytes so far: what a checkpoint remembers, to cut back to. They are on the disk when this returns."""
        if self._mute:
            return 0
        os.fsync(self._file.fileno())  # a checkpoint must not outlive a power cut that its journal does not
        return self.path.stat().st_size

    def cut(self, size: int) -> None:
        """Forget what was written after a checkpoint, so that no update stands there twice."""
        if self._mute:
            return
        if self.size < size or not self._ends_a_line(size):
            raise CheckpointError(
                f"the journal has {self.size} bytes, the checkpoint remembers {size}, and no line ends there",
                where=str(self.path),
                mend="the journal was changed by hand; restore it, or use a new run folder",
            )
        self._file.truncate(size)
        self._file.seek(0, 2)

    def _ends_a_line(self, size: int) -> bool:
        with self.path.open("rb") as file:
            file.seek(max(0, size - 1))
            return size == 0 or file.read(1) == b"\n"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, at: TracebackType | None) -> None:
        self._file.close()


@contextmanager
def followed(path: Path, sinks: Sequence[Sink]) -> Iterator[None]:
    """In here sinks hear what another process writes into a journal, a moment later."""
    done, follower = threading.Event(), _Follower(path, sinks)
    thread = threading.Thread(target=follower.follow, args=(done,), name="journal", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


class _Follower:
    """Tells what is added to a journal, also by a run that cuts off what its checkpoint does not know, and goes on."""

    def __init__(self, path: Path, sinks: Sequence[Sink]) -> None:
        self._path, self._sinks = path, sinks
        self._heard: list[tuple[int, bytes]] = []
        """Where each line that is known ended, and its digest."""
        self._look(tell=False)

    def follow(self, done: threading.Event) -> None:
        last = False
        while not last:
            last = done.wait(_LOOK_EVERY)
            self._look()

    def _look(self, *, tell: bool = True) -> None:
        if not self._path.exists():
            return
        with self._path.open("rb") as file:
            self._forget(file)
            file.seek(self._end)
            lines = [line for line in file if line.endswith(b"\n")]  # the rest of the last one comes
            if self._forget(file):  # it was cut while it was read
                return
        for line in lines:
            self._heard.append((self._end + len(line), _digest(line)))
            if tell:
                values = json.loads(line)
                kind = values.pop("kind")
                for sink in self._sinks:
                    sink.hear(kind, values)

    @property
    def _end(self) -> int:
        return self._heard[-1][0] if self._heard else 0

    def _forget(self, file: BinaryIO) -> bool:
        """Forget lines that stand there no more; whether there were any."""
        before = len(self._heard)
        while self._heard:
            end, known = self._heard[-1]
            start = self._heard[-2][0] if len(self._heard) > 1 else 0
            file.seek(start)
            if _digest(file.read(end - start)) == known:
                break
            self._heard.pop()
        return len(self._heard) < before


def _digest(line: bytes) -> bytes:
    return hashlib.blake2b(line, digest_size=8).digest()


def read(path: Path, kind: str) -> Iterator[dict[str, Any]]:
    """The lines of one kind."""
    with path.open(encoding="utf-8") as lines:
        for line in lines:
            values = json.loads(line)
            if values["kind"] == kind:
                yield values


def standing(path: Path, kind: str) -> list[dict[str, Any]]:
    """The lines of one kind that count: those of updates that a rollback took back do not."""
    kept: list[dict[str, Any]] = []
    with path.open(encoding="utf-8") as lines:
        for line in lines:
            values = json.loads(line)
            if values["kind"] == "rollback":
                kept = [one for one in kept if one["step"] <= values["to"]]
            elif values["kind"] == kind:
                kept.append(values)
    return kept
