"""One rank that starts a run under FSDP2: how much memory the process needs until the model has its weights."""

import ctypes
import gc
import json
import os
import re
import sys
import threading
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

from torch import nn

from fulltune.engine.launch import Meeting, joined
from fulltune.engine.native import fill
from fulltune.engine.sharded import Sharded
from fulltune.model.facts import blocks
from fulltune.model.load import load_model
from fulltune.model.probe import ask
from fulltune.objectives import NextToken
from fulltune.recipe.schema import ModelSection
from fulltune.starting import start

_LOOK_EVERY = 0.002


def _laid(model: nn.Module, here: Meeting) -> Sharded:
    layout = Sharded(here.world, here.crew, blocks(model))
    layout.lay(NextToken(model, None, keeps_logits=False))
    return layout


def whole(section: ModelSection, here: Meeting) -> nn.Module:
    """Each process loads the model, asks it, and keeps its rows."""
    model = load_model(section)
    ask(model, packed=False)
    _laid(model, here)
    return model


def by_rows(section: ModelSection, here: Meeting) -> nn.Module:
    """As a run starts: each process reads its rows."""
    begun = start(section, here, "fsdp2", replicas=1, packed=False)
    assert begun.read is not None, "with its weights it would have been loaded whole"
    layout = _laid(begun.model, here)
    fill(begun.model, layout, begun.read)
    return begun.model


WAYS: Mapping[str, Callable[[ModelSection, Meeting], nn.Module]] = {"whole": whole, "by rows": by_rows}


def _said(entry: str) -> int:
    """Bytes of an entry of this process's status."""
    found = re.search(rf"{entry}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) * 1024


def _give_back() -> None:
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)


def _watch(over: threading.Event, most: list[int]) -> None:
    """Look at what is no file's until it is over; the most of it stands in `most`."""
    while not over.is_set():
        most[0] = max(most[0], _said("RssAnon"))
        over.wait(_LOOK_EVERY)


def main(way: str, model: Path, folder: Path) -> None:
    """Write `rank-N.json` into the folder."""
    with joined(600) as here:
        _give_back()
        before, with_files = _said("RssAnon"), _said("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")  # the kernel's own high-water mark starts anew
        over, most = threading.Event(), [before]
        watching = threading.Thread(target=partial(_watch, over, most))
        watching.start()
        begun = time.perf_counter()
        made = WAYS[way](ModelSection(path=str(model)), here)
        seconds = time.perf_counter() - begun
        over.set()
        watching.join()
        peak = _said("VmHWM") - with_files
        _give_back()
        found = {
            "parameters": sum(parameter.numel() for parameter in made.parameters()),
            "peak": most[0] - before,
            "peak_with_files": peak,
            "held": _said("RssAnon") - before,
            "seconds": seconds,
        }
        (folder / f"rank-{here.world.rank}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]))
    sys.stdout.flush()
    os._exit(0)  # gloo's threads may abort a process that ends in order
