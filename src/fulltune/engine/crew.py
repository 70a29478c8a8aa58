"""The processes that train one model together, on the host: what they tell each other besides gradients.

Small numbers go through a gloo group of their own, whatever the device; they wait for nobody's graphics card. What one
process does alone for all (reading rows, writing a folder) is told through the store, which knows no time limit: data
may take hours to prepare, a collective may not.
"""

import faulthandler
import json
import math
import socket
import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor
from torch._C._distributed_c10d import Store

from fulltune.base import errors, stop
from fulltune.base.errors import FulltuneError, Interrupted, RankError
from fulltune.base.place import place

T = TypeVar("T")

_ASK_EVERY = 0.05
"""Seconds between two looks at the store."""
_LATE = 2.0
"""Seconds after the others have given up at which a process that hangs is ended."""
_FAREWELL = 3.0
"""Seconds that the first waits for the others to leave."""
_GRACE = 10.0
"""Seconds for which a process that is asked to stop still waits for the first: it is asked too, and says so."""


class Crew(Protocol):
    """The processes of one run. Sums, questions and what is told are called by all of them, in the same order."""

    @property
    def rank(self) -> int:
        """This process's number, from 0."""

    @property
    def size(self) -> int:
        """How many there are."""

    @property
    def patience(self) -> float:
        """Seconds that one waits for another."""

    def rest(self) -> None:
        """This process alone: until the next sum it may take as long as it likes, the others need not worry."""

    def sum(self, value: Tensor) -> Tensor:
        """The sum over all, on the host, the same to the bit on each."""

    def any(self, flag: bool) -> bool:
        """Whether it is set on any."""

    def gathered(self, value: T) -> list[T]:
        """What each has to say, by rank; JSON values. All have to come within the patience of the first to ask."""

    def in_turn(self, act: Callable[[], T]) -> T:
        """`act` on each, on a machine one after the other, however long it takes; returns when all are done."""

    def told(self, act: Callable[[], T]) -> T:
        """What `act` gives on the first, which alone does it; JSON values. What it fails of fails on all."""


class Alone:
    """One process."""

    rank, size, patience = 0, 1, math.inf

    def rest(self) -> None:
        """Nobody waits."""

    def sum(self, value: Tensor) -> Tensor:
        return value

    def any(self, flag: bool) -> bool:
        return flag

    def gathered(self, value: T) -> list[T]:
        return [value]

    def in_turn(self, act: Callable[[], T]) -> T:
        return act()

    def told(self, act: Callable[[], T]) -> T:
        return act()


class Several:
    """Processes that met through torch.distributed."""

    def __init__(self, control: dist.ProcessGroup, store: Store, timeout: float) -> None:
        """`timeout`: seconds from one sum to the next after which a process writes its stack to stderr, and ends."""
        self.rank, self.size = dist.get_rank(control), dist.get_world_size(control)
        self._control, self._store, self.patience = control, store, timeout
        self._told = self._turns = 0

    def _beat(self) -> None:
        """It lives. A timer in C, so that it also ends a process that hangs in C."""
        faulthandler.dump_traceback_later(self.patience + _LATE, exit=True)

    def rest(self) -> None:
        faulthandler.cancel_dump_traceback_later()

    def sum(self, value: Tensor) -> Tensor:
        host = value.detach().to("cpu", copy=True)
        self._reduced(host, dist.ReduceOp.SUM)
        return host

    def any(self, flag: bool) -> bool:
        host = torch.tensor(int(flag))
        self._reduced(host, dist.ReduceOp.MAX)
        return bool(host)

    def gathered(self, value: T) -> list[T]:
        own = torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8)
        sizes = torch.zeros(self.size, dtype=torch.int64)
        sizes[self.rank] = len(own)
        lengths = self.sum(sizes).tolist()
        starts = [sum(lengths[:rank]) for rank in range(self.size)]
        board = torch.zeros(sum(lengths), dtype=torch.uint8)
        board[starts[self.rank] :][: len(own)] = own  # everything else is 0, so the sum is what each wrote
        said = bytes(self.sum(board).tolist())
        return [cast(T, json.loads(said[at : at + size])) for at, size in zip(starts, lengths, strict=True)]

    def _reduced(self, host: Tensor, way: dist.ReduceOp.RedOpType) -> None:
        dist.all_reduce(host, way, group=self._control)
        self._beat()

    def in_turn(self, act: Callable[[], T]) -> T:
        self._turns += 1
        self.rest()
        key, here = f"fulltune/turn/{self._turns}", place()
        machine = f"{key}/{socket.gethostname()}"
        if here.local:
            self._await([f"{machine}/{here.local - 1}"])
        try:
            value = act()
        finally:  # who comes next does not wait for one that failed; it hears of it when they compute together
            self._store.set(f"{machine}/{here.local}", "")
            self._store.set(f"{key}/{self.rank}", "")
        self._await([f"{key}/{rank}" for rank in range(self.size)])
        return value

    def told(self, act: Callable[[], T]) -> T:
        self._told += 1
        key = f"fulltune/told/{self._told}"
        self.rest()  # until the next sum: what comes of it, such as loading a model, may take long too
        if self.rank == 0:
            return self._tell(key, act)
        answer = self._heard(key)
        if "fault" in answer:
            raise errors.again(answer)
        return cast(T, answer["value"])

    def leave(self) -> None:
        """The last word, however it came to it. The first stays a while: what it told lies with it, maybe unread."""
        self.rest()
        try:
            self._store.set(f"fulltune/left/{self.rank}", "")
            until = time.monotonic() + _FAREWELL
            keys = [f"fulltune/left/{rank}" for rank in range(self.size)]
            while self.rank == 0 and time.monotonic() < until and not self._store.check(keys):
                time.sleep(_ASK_EVERY)
        except RuntimeError:  # the store has ended with its process, which was told of the fault that brought us here
            return

    def _tell(self, key: str, act: Callable[[], T]) -> T:
        try:
            value = act()
            self._store.set(key, json.dumps({"value": value}))
        except FulltuneError as fault:
            self._store.set(key, json.dumps(errors.told(fault)))
            raise
        except BaseException as fault:  # whatever it is, nobody is to wait for an answer that never comes
            self._store.set(key, json.dumps(errors.told(RankError(f"process 0: {fault!r}"))))
            raise
        return value

    def _heard(self, key: str) -> dict[str, Any]:
        """What the first process said, however long it takes."""
        self._await([key])
        answer: dict[str, Any] = json.loads(self._store.get(key))
        return answer

    def _await(self, keys: Sequence[str]) -> None:
        """Until all of them were set. A wish to stop is for those to agree to who work meanwhile, but not for ever."""
        asked: float | None = None
        while not self._store.check(list(keys)):
            if stop.asked() is not None:
                asked = asked or time.monotonic()
                if time.monotonic() - asked > _GRACE:
                    raise Interrupted("stopped while another process worked for all", mend="the same command goes on")
            time.sleep(_ASK_EVERY)


def parted(fault: RuntimeError) -> bool:
    """Whether an error says that processes lost each other; gloo has only words for it."""
    return isinstance(fault, dist.DistError) or "gloo/transport" in str(fault)


def lost(fault: RuntimeError) -> RankError:
    """What a collective that failed means: a process that ended, or one that does not come."""
    return RankError(
        f"another process ended, or did not answer in time: {str(fault).splitlines()[0]}",
        where="the processes of this run",
        mend="its own message says why (logs/ in the run folder); the same command goes on from the last checkpoint",
    )
