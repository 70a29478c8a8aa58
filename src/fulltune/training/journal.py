"""Where reports go: a JSON line on disk first, then whoever else listens."""

import json
import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

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
    done, at = threading.Event(), path.stat().st_size if path.exists() else 0
    follower = threading.Thread(target=_follow, args=(path, at, sinks, done), name="journal", daemon=True)
    follower.start()
    try:
        yield
    finally:
        done.set()
        follower.join()


def _follow(path: Path, at: int, sinks: Sequence[Sink], done: threading.Event) -> None:
    last = False
    while not last:
        last = done.wait(_LOOK_EVERY)
        if not path.exists():
            continue
        at = min(at, path.stat().st_size)  # a run that goes on cuts off what its checkpoint does not know
        with path.open("rb") as file:
            file.seek(at)
            for line in file:
                if not line.endswith(b"\n"):  # the rest of it comes
                    break
                at += len(line)
                values = json.loads(line)
                kind = values.pop("kind")
                for sink in sinks:
                    sink.hear(kind, values)


def read(path: Path, kind: str) -> Iterator[dict[str, Any]]:
    """The lines of one kind."""
    with path.open(encoding="utf-8") as lines:
        for line in lines:
            values = json.loads(line)
            if values["kind"] == kind:
                yield values
