"""What can come between the micro-batches of an update: no memory, or a wish to stop. All ranks hear of it."""

import gc
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TypeVar

import torch

from fulltune.base import stop
from fulltune.engine.contract import Engine
from fulltune.engine.room import explained, first_line, out_of_memory

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Shortage:
    """Memory ran out: what the allocator said, and whether the micro-batch held one example, so cannot be cut."""

    said: str
    alone: bool = False


def attempted(act: Callable[[], T], *, alone: bool = False) -> T | Shortage:
    """What `act` gives, or the shortage that ended it; nothing that it held is held on to."""
    try:
        return act()
    except (RuntimeError, MemoryError) as fault:
        if not out_of_memory(fault):
            raise
        return Shortage(first_line(fault), alone)


def agreed(own: Shortage | None, engine: Engine, stopped: Callable[[], bool]) -> Shortage | None:
    """The one question between micro-batches: whether memory ran out on any rank, or any is asked to stop.

    If so, half-made gradients are dropped on all of them. Interrupted if it was the wish to stop.
    """
    asked = stopped()
    if not engine.any(asked or own is not None):
        return None
    engine.clear()
    if engine.any(asked):
        stop.check_all(lambda _: True)
    alone = engine.any(own is not None and own.alone)
    return Shortage("on another rank" if own is None else own.said, alone)


def release() -> None:
    """Give back what the allocator keeps of an attempt that failed; the graph of a backward pass may be a circle."""
    gc.collect()
    empty()


def empty() -> None:
    """Give back what the allocator keeps, where there is one that does not share it with other processes."""
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def unrepeatable(what: str) -> AbstractContextManager[None]:
    """Around what cannot be cut or made again: MachineError where memory runs out."""
    return explained(
        what,
        where="optim.name",
        mend="smaller micro-batches do not help: a smaller model, an optimizer with less state, or more memory",
    )
