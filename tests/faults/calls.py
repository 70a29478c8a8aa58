"""Something befalls a process at the n-th call of one of its functions: a signal, an error, a number that is none.

In a forked child only: what is patched here stays patched.
"""

import errno
import functools
import importlib
import itertools
import os
import signal
from collections.abc import Callable
from typing import Any

import torch


def befall(target: str, act: str, *, calls: list[int] | None = None, after: bool = False) -> None:
    """At these calls (counted from 1; by default all) of `module:name` or `module:Class.name`, before it or after."""
    module, _, path = target.partition(":")
    *above, name = path.split(".")
    owner = functools.reduce(lambda place, inner: vars(place)[inner], above, importlib.import_module(module))
    real = vars(owner)[name]
    static = isinstance(real, staticmethod | classmethod)
    function = real.__func__ if static else real
    count = itertools.count(1)

    @functools.wraps(function)
    def call(*arguments: Any, **named: Any) -> Any:
        now = calls is None or next(count) in calls
        if now and not after:
            arguments = _BEFORE.get(act, _as_it_is)(arguments)
            do(act)
        result = function(*arguments, **named)
        if now and after:
            do(act)
        return _CHANGED[act](result) if now and act in _CHANGED else result

    setattr(owner, name, type(real)(call) if static else call)


def do(act: str) -> None:
    """A signal to the whole group by its name (KILL, TERM, ...), an OSError by that of its errno, or out of memory."""
    if act in signal.Signals.__members__:
        os.kill(0, signal.Signals[act])
    elif act in vars(errno):
        code = vars(errno)[act]
        raise OSError(code, os.strerror(code), "the disk")
    elif act == "OOM":
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")


def clock(hours: float, after: int) -> None:
    """Every clock of the wall goes wrong by so much, after so many looks at it."""
    import time

    real, count = time.time, itertools.count()
    time.time = lambda: real() + (3600 * hours if next(count) >= after else 0.0)


def no_space(free: int) -> None:
    """All disks say that they have so many free bytes."""
    import shutil

    real = shutil.disk_usage
    shutil.disk_usage = lambda path: real(path)._replace(free=free)  # type: ignore[assignment]


def _times(factor: float) -> Callable[[Any], Any]:
    def change(sums: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {term: value * factor for term, value in sums.items()}

    return change


def _nan_gradient(arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    """The first parameter of an engine's model gets a gradient that is none."""
    engine = arguments[0]
    next(p for p in engine._names if p.grad is not None).grad.view(-1)[0] = float("nan")
    return arguments


def _as_it_is(arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    return arguments


_BEFORE = {"NAN-GRADIENT": _nan_gradient}
_CHANGED = {"NAN": _times(float("nan")), "INF": _times(float("inf")), "SPIKE": _times(20.0)}
