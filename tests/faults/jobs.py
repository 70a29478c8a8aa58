"""What a forked child does: a real command, with faults laid in its way."""

import io
import json
import resource
import signal
import sys
import tempfile
import threading
import time
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

import fulltune
from fulltune.cli import main
from tests import tiny
from tests.faults import calls
from tests.faults.boundaries import Boundaries
from tests.faults.forkserver import threads


def warm_up() -> None:
    """A run, for what libraries keep from their first use, and every child would make anew; no thread may come of it.

    A run that comes after it takes 0.8 s of processor time in place of 1.4.
    """
    torch.set_num_threads(1)
    tqdm.monitor_interval = 0  # else a thread watches its bars
    with tempfile.TemporaryDirectory() as scratch, redirect_stderr(io.StringIO()):
        model, rows = tiny.folder(Path(scratch) / "model", "gpt2"), Path(scratch) / "rows.jsonl"
        recipe = tiny.recipe(model, tiny.jsonl(rows, tiny.rows(20)), train={"steps": 1})
        fulltune.train(recipe, out=Path(scratch) / "run")


def command(words: list[str], faults: list[dict[str, Any]] | None = None, seen: str | None = None) -> int:
    """The command line as a user types it; its exit code.

    `faults`: arguments of `Boundaries`, or of a function in `calls` that is named by `do`. `seen`: a file for the
    boundaries that were passed, one a line.
    """
    watched = [_lay(dict(fault)) for fault in faults or []]
    sys.argv = ["fulltune", *words]
    code = main()
    if seen is not None:
        boundaries = next(one for one in watched if one is not None)
        Path(seen).write_text("".join(f"{text}\n" for text in list(boundaries.seen)))
    return code


def _lay(fault: dict[str, Any]) -> Boundaries | None:
    match fault.pop("do", "boundary"):
        case "boundary":  # the n-th change of a folder
            boundaries = Boundaries(Path(fault.pop("folder")), **fault)
            boundaries.install()
            return boundaries
        case "limit":  # a file may have so many bytes; writing more fails with EFBIG in place of a signal
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (fault["bytes"], resource.RLIM_INFINITY))
        case name:
            vars(calls)[name](**fault)
    return None


def python(recipe: dict[str, Any], out: str, arguments: dict[str, Any]) -> int:
    """`fulltune.train`, as a program calls it."""
    record = fulltune.train(recipe, out=out, **arguments)
    print(json.dumps({"result": record.result}))
    return 0


def sleep(seconds: float) -> None:
    """Do nothing for so long."""
    time.sleep(seconds)


def counted_threads() -> None:
    """What the server counts before a fork: alone, and beside a thread."""
    print(threads())
    waiting = threading.Event()
    threading.Thread(target=waiting.wait, daemon=True).start()
    print(threads())
