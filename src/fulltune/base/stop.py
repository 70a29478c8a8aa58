"""Signals that ask for an end: the first sets a flag that is polled where work may stop, a second leaves at once."""

import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Literal

from fulltune.base.errors import Interrupted

Signal = Literal["SIGTERM", "SIGINT", "SIGUSR1", "SIGUSR2", "SIGHUP"]
DEFAULT: tuple[Signal, ...] = ("SIGTERM", "SIGINT", "SIGUSR1")
"""A scheduler's or a container's request, Ctrl-C, and what Slurm is told to send some time before the end."""

_AHEAD = ("SIGUSR1", "SIGUSR2")
"""Sent ahead of another signal: Slurm's SIGTERM, minutes after its SIGUSR1, is no second wish but the same one."""
_SAID = b"stopping at the next border; the same signal again leaves at once\n"

_listens = False
_asked: str | None = None


@contextmanager
def listening(signals: Sequence[Signal] = DEFAULT) -> Iterator[None]:
    """In here the first of these signals sets the flag that `asked` and `check` read; a second ends the process.

    Only the main thread can listen; in another, and inside of an outer `listening`, this does nothing. At the end the
    handlers are those from before, and the flag is cleared.
    """
    global _listens, _asked
    if _listens or threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {signal.Signals[name]: signal.getsignal(signal.Signals[name]) for name in signals}
    _listens = True
    try:
        for number in before:
            signal.signal(number, _hear)
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)  # None: set by no Python code
        _listens, _asked = False, None


def asked() -> str | None:
    """The name of the signal that asked for an end, if one did."""
    return _asked


def check() -> None:
    """Interrupted if a signal asked for an end. Called wherever everything done so far can be left as it is."""
    if _asked is not None:
        raise Interrupted(f"stopped by {_asked}", mend="the same command goes on")


def check_all(any_of: Callable[[bool], bool]) -> None:
    """As `check`, agreed on by all processes of a run: Interrupted on each if any was asked; `any_of` asks them."""
    if any_of(_asked is not None):
        check()
        raise Interrupted("another process was asked to stop", mend="the same command goes on")


def _hear(number: int, _frame: FrameType | None) -> None:
    """Writes by a system call alone: the signal may have come in the middle of a print."""
    global _asked
    name = signal.Signals(number).name
    if _asked is not None and (name == _asked or _asked not in _AHEAD):
        os._exit(128 + number)
    _asked = name
    os.write(2, _SAID)
