"""Something befalls a process at the n-th call of one of its functions: a signal, an error, a number that is none.

In a forked child only: what is patched here stays patched.
"""

import ctypes
import errno
import functools
import importlib
import itertools
import os
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import torch

STEP = "fulltune.training.updating:step"
FORWARD = "fulltune.engine.native:NativeEngine.forward"
UPDATE = "fulltune.engine.native:NativeEngine.update"


def befall(target: str, act: str, *, calls: list[int] | None = None, after: bool = False) -> None:
    """At these calls (counted from 1; by default all) of `module:name` or `module:Class.name`, before it or after.

    `act`: signals to the whole group by their names, `TERM` or `TERM,TERM`; or the name of an errno.
    """
    count = itertools.count(1)

    def call(real: Any, *arguments: Any, **named: Any) -> Any:
        now = calls is None or next(count) in calls
        if now and not after:
            _do(act)
        result = real(*arguments, **named)
        if now and after:
            _do(act)
        return result

    _replace(target, call)


def poison(update: int, what: str, *, micro: int = 1, updates: int = 1) -> None:
    """From the `update`-th on, so many updates that are tried go wrong, in their `micro`-th forward pass.

    `NAN`, `INF` and `SPIKE` change the loss, `GRADIENT` one number of the gradient alone, `WEIGHT` one of the weights
    after the update; `REMOVED` takes the update away before it begins: nothing is computed of it.
    """
    tries, passes = itertools.count(1), [0]
    factors = {"NAN": float("nan"), "INF": float("inf"), "SPIKE": 20.0}

    def step(real: Any, *arguments: Any, **named: Any) -> Any:
        passes[0] = 0
        ill = update <= next(tries) < update + updates
        if ill and what == "REMOVED":
            from fulltune.training.step import Outcome

            return Outcome(loss=float("nan"), why="loss or gradient not finite")
        passes.append(int(ill))
        try:
            return real(*arguments, **named)
        finally:
            passes.pop()

    def forward(real: Any, engine: Any, batch: Any) -> Any:
        sums = real(engine, batch)
        passes[0] += 1
        if passes[-1] == 1 and len(passes) > 1 and passes[0] == micro and what in factors:
            return {term: value * factors[what] for term, value in sums.items()}
        return sums

    def moved(real: Any, engine: Any, *arguments: Any, **named: Any) -> Any:
        ill = len(passes) > 1 and passes[-1] == 1
        parameters = [parameter for parameter in engine._names if parameter.grad is not None]
        if ill and what == "GRADIENT":
            parameters[0].grad.view(-1)[0] = float("nan")
        result = real(engine, *arguments, **named)
        if ill and what == "WEIGHT":
            parameters[0].data.view(-1)[0] = float("nan")
        return result

    _replace(STEP, step)
    _replace(FORWARD, forward)
    _replace(UPDATE, moved)


def memory(examples: int) -> None:
    """The device has room for so many examples in a forward pass with gradients."""

    def forward(real: Any, engine: Any, batch: Any) -> Any:
        if len(batch.examples) > examples and torch.is_grad_enabled():
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return real(engine, batch)

    _replace(FORWARD, forward)


def clock(hours: float, after: int) -> None:
    """The wall's clock goes wrong by so much, after so many looks at it."""
    real, count = time.time, itertools.count()
    time.time = lambda: real() + (3600 * hours if next(count) >= after else 0.0)


def free(bytes_: int) -> None:
    """All disks say that they have so many free bytes."""
    real = shutil.disk_usage
    shutil.disk_usage = lambda path: real(path)._replace(free=bytes_)  # type: ignore[assignment]


def fill(folder: str, update: int) -> None:
    """Before this update somebody else fills the disk that the folder lies on."""
    count = itertools.count(1)

    def step(real: Any, *arguments: Any, **named: Any) -> Any:
        if next(count) == update:
            with (Path(folder) / "somebody-elses").open("wb", buffering=0) as file:
                try:
                    while True:
                        file.write(b"\0" * 4096)
                except OSError as fault:
                    assert fault.errno == errno.ENOSPC
        return real(*arguments, **named)

    _replace(STEP, step)


def ordinary() -> None:
    """An ordinary user, for whom permissions count also where this is root: all capabilities are dropped."""
    libc = ctypes.CDLL(None, use_errno=True)
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)  # _LINUX_CAPABILITY_VERSION_3, this process
    if libc.capset(header, (ctypes.c_uint32 * 6)()):
        raise OSError(ctypes.get_errno(), "capset")


def _replace(target: str, call: Any) -> None:
    """Have `call(real, ...)` take the place of a function."""
    module, _, path = target.partition(":")
    *above, name = path.split(".")
    owner = functools.reduce(lambda place, inner: vars(place)[inner], above, importlib.import_module(module))
    real = vars(owner)[name]

    @functools.wraps(real)
    def replaced(*arguments: Any, **named: Any) -> Any:
        return call(real, *arguments, **named)

    setattr(owner, name, replaced)


def _do(act: str) -> None:
    if act in vars(errno):
        raise OSError(vars(errno)[act], os.strerror(vars(errno)[act]), "the disk")
    for number, name in enumerate(act.split(",")):
        if number:  # two signals of one kind that no handler has seen yet are one
            time.sleep(0.2)
        os.kill(0, signal.Signals[f"SIG{name}"])
