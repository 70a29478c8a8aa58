"""One rank of an engine: builds a model, makes one update, says what it then holds."""

import ctypes
import gc
import json
import os
import re
import sys
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from fulltune.base.formats import PrecisionPlan
from fulltune.engine.contract import Engine
from fulltune.engine.launch import Meeting, joined
from fulltune.engine.native import NativeEngine
from fulltune.engine.replicated import Replicated
from fulltune.engine.sharded import Sharded
from fulltune.engine.zero import ZeroEngine
from fulltune.model.facts import blocks
from fulltune.planning.deepspeed import configuration
from fulltune.recipe.load import load_recipe

NATIVE: Mapping[str, Callable[[Meeting, Any], Any]] = {
    "ddp": lambda here, _: Replicated(here.world, here.crew),
    "fsdp2": lambda here, model: Sharded(here.world, here.crew, blocks(model)),
    "fsdp2, weights kept": lambda here, model: Sharded(here.world, here.crew, blocks(model), reshard=False),
}
ZERO = ("zero1", "zero2", "zero3")
"""Those that take DeepSpeed."""


def engine(name: str, here: Meeting, model: Any, objective: Any, optimizer: Any, plan: PrecisionPlan) -> Engine:
    """An engine by name, of a model among the processes that met."""
    if name in NATIVE:
        return NativeEngine(model, objective, optimizer, NATIVE[name](here, model), clip=1.0, precision=plan)
    recipe = load_recipe({"model": {"path": "/none"}, "data": {"train": "/none"}, "engine": {"name": name}})
    width = model.config.hidden_size
    return ZeroEngine(model, objective, optimizer, here, configuration(recipe, plan, width), precision=plan)


def held() -> int:
    """Bytes of this process that are no file's, after what was freed went back to the system."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    found = re.search(r"RssAnon:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) * 1024


def main(name: str, shape: str, folder: Path) -> None:
    """Write `rank-N.json` into the folder."""
    from benchmarks.bed import Bed

    with joined(600) as here:
        before = held()
        bed = Bed(shape, "cpu", "float32", rows=1, tokens=16, among=partial(engine, name, here))
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
