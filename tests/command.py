"""The command line inside this process: the start of another takes three seconds, nearly all of it imports."""

import contextlib
import io
import os
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

from fulltune import cli


@dataclass(frozen=True)
class Done:
    """As subprocess gives it."""

    returncode: int
    stdout: str
    stderr: str


def run(*arguments: str, cwd: Path, typed: str = "") -> Done:
    """`fulltune` with these arguments, in this folder."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), _called(arguments, cwd, typed):
        code = cli.main()
    return Done(code, out.getvalue(), err.getvalue())


def run_on_terminal(*arguments: str, cwd: Path, errors: bool = False, **env: str) -> tuple[int, str]:
    """Its exit code, and what it writes to a terminal as standard output, or as standard error."""
    leader, follower = os.openpty()
    shown: list[bytes] = []
    reader = threading.Thread(target=lambda: shown.append(read_all(leader)))
    reader.start()
    kept = {key: value for key, value in os.environ.items() if key != "NO_COLOR"}
    with (
        mock.patch.dict(os.environ, {**kept, "TERM": "xterm-256color", **env}, clear=True),
        os.fdopen(follower, "w") as out,
        contextlib.redirect_stdout(io.StringIO() if errors else out),
        contextlib.redirect_stderr(out if errors else io.StringIO()),
        _called(arguments, cwd, ""),
    ):
        code = cli.main()
    reader.join()
    return code, shown[0].decode()


def read_all(leader: int) -> bytes:
    """What was written to a terminal until its last writer left."""
    shown = b""
    while True:
        try:
            piece = os.read(leader, 65536)
        except OSError:  # on Linux a terminal without writers is an input error
            return shown
        if not piece:
            return shown
        shown += piece


@contextlib.contextmanager
def _called(arguments: tuple[str, ...], cwd: Path, typed: str) -> Iterator[None]:
    named: dict[str, Any] = {"argv": ["fulltune", *arguments], "stdin": io.StringIO(typed)}
    with contextlib.chdir(cwd), mock.patch.multiple(sys, **named):
        yield
