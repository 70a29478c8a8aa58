"""One rank of `fulltune train`, which something may befall: `BEFALL=rank,module:Class.name,call,what`.

`what`: TERM and KILL come from outside; HANG sleeps for ever; RAISE is a bug of ours, REFUSE bad data, ENOSPC a full
disk, MEMORY one without room; NAN makes the losses of that pass none. With `BEFALL_ONCE=FILE` it
befalls the first of several starts.
"""

import errno
import functools
import importlib
import itertools
import os
import signal
import time
from pathlib import Path
from typing import Any

import torch

from fulltune.base.errors import DataError
from fulltune.cli import main


def befall(target: str, call: int, what: str) -> None:
    module, _, path = target.partition(":")
    *outer, name = path.split(".")
    owner: Any = importlib.import_module(module)
    for part in outer:
        owner = vars(owner)[part]
    real, count = vars(owner)[name], itertools.count(1)

    @functools.wraps(real)
    def instead(*arguments: Any, **named: Any) -> Any:
        now = next(count) == call
        if now and what != "NAN":
            _do(what)
        found = real(*arguments, **named)
        return {term: value * float("nan") for term, value in found.items()} if now and what == "NAN" else found

    setattr(owner, name, instead)


def _do(what: str) -> None:
    match what:
        case "TERM" | "KILL":
            os.kill(os.getpid(), signal.Signals[f"SIG{what}"])
        case "HANG":
            while True:  # a signal ends a sleep
                time.sleep(60)
        case "SLEEP":
            time.sleep(25)
        case "MEMORY":
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        case "RAISE":
            raise ValueError("something is wrong here")
        case "REFUSE":
            raise DataError("this question cannot be asked", where="here", mend="ask another")
        case "ENOSPC":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


if __name__ == "__main__":
    if "BEFALL" in os.environ:
        rank, where, number, act = os.environ["BEFALL"].split(",")
        once = os.environ.get("BEFALL_ONCE")
        if os.environ["RANK"] == rank and not (once and Path(once).exists()):
            if once:
                Path(once).touch()
            befall(where, int(number), act)
    raise SystemExit(main())
