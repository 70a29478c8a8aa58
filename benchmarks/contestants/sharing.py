"""One rank of an engine: builds a model, makes one update, says what it then holds."""

import ctypes
import gc
import json
import os
import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from fulltune.engine.launch import Meeting, joined
from fulltune.engine.layout import Layout
from fulltune.engine.replicated import Replicated
from fulltune.engine.sharded import Sharded
from fulltune.model.facts import blocks

LAYOUTS: Mapping[str, Callable[[Meeting, Any], Layout]] = {
    "ddp": lambda here, _: Replicated(here.world, here.crew),
    "fsdp2": lambda here, model: Sharded(here.world, here.crew, blocks(model)),
    "fsdp2, weights kept": lambda here, model: Sharded(here.world, here.crew, blocks(model), reshard=False),
}


def held() -> int:
    """Bytes of this process that are no file's, after what was freed went back to the system."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    found = re.search(r"RssAnon:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) * 1024


def main(engine: str, shape: str, folder: Path) -> None:
    """Write `rank-N.json` into the folder."""
    from benchmarks.bed import Bed

    with joined(600) as here:
        before = held()
        bed = Bed(shape, "cpu", "float32", rows=1, tokens=16, lay=lambda model: LAYOUTS[engine](here, model))
        bed.passes()  # gradients are there; the step below lets them go
        between = held() - before
        bed.step()
        after = held() - before
        found = {"parameters": bed.parameters, "with_gradients": between, "after_update": after}
        (folder / f"rank-{here.world.rank}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], Path(sys.argv[3]))
    sys.stdout.flush()
    os._exit(0)  # gloo's threads may abort a process that ends in order
