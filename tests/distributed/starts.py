"""What each rank runs for the start of a run: the model as its processes share it, against the model loaded whole.

`python -m tests.distributed.starts FOLDER REPLICAS`: what differs of each model folder in there, in `rank-N.json`.
"""

import json
import os
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.distributed.tensor import DTensor

from fulltune.base.errors import DataError
from fulltune.base.log import LOGGER
from fulltune.engine.launch import Meeting, joined
from fulltune.engine.native import fill
from fulltune.engine.sharded import Sharded
from fulltune.model import probe
from fulltune.model.facts import blocks
from fulltune.model.load import load_model
from fulltune.objectives import NextToken
from fulltune.recipe.schema import ModelSection
from fulltune.starting import Start, start


def ties(model: nn.Module) -> set[tuple[str, ...]]:
    """Names of one weight, where it has several."""
    names = defaultdict(list)
    for name, value in model.state_dict(keep_vars=True).items():
        names[id(value)].append(name)
    return {tuple(group) for group in names.values() if len(group) > 1}


def compared(begun: Start, section: ModelSection, meeting: Meeting, replicas: int) -> dict[str, Any]:
    """The model as it starts in shards, in all that can be told apart from the one that was loaded whole.

    What fails in here fails the process, with its trace: one that went on alone would leave the others waiting.
    """
    model: Any = begun.model
    without = all(parameter.is_meta for parameter in model.parameters())
    layout = Sharded(meeting.world, meeting.crew, blocks(model), replicas=replicas, offload=replicas == 1)
    layout.lay(NextToken(model, None, keeps_logits=False))
    assert begun.read is not None
    fill(model, layout, begun.read)
    whole: Any = load_model(section)
    wanted, differ = whole.state_dict(), []
    for name, value in model.state_dict().items():
        full = value.full_tensor() if isinstance(value, DTensor) else value
        if full.dtype != wanted[name].dtype or not torch.equal(full, wanted[name]):
            differ.append(name)
    buffers = dict(whole.named_buffers())
    for name, value in model.named_buffers():
        if value.dtype != buffers[name].dtype or not torch.equal(value, buffers[name]):
            differ.append(name)
    differ += sorted(wanted.keys() ^ model.state_dict().keys()) + sorted(buffers.keys() ^ dict(model.named_buffers()))
    asked = probe.ask(whole, packed=True)
    return {
        "without": without,
        "differ": differ,
        "ties": ties(model) == ties(whole),
        "answers": begun.answers == asked,
        "cut": asked.cut,
        "isolates": asked.isolates,
        "attention": model.config._attn_implementation == whole.config._attn_implementation,
        "training": model.training == whole.training,
        "conversions": list(map(repr, model._weight_conversions)) == list(map(repr, whole._weight_conversions)),
    }


def main(folder: Path, replicas: int) -> None:
    found: dict[str, Any] = {}
    told: list[str] = []
    LOGGER.info = told.append  # type: ignore[assignment]
    with joined(60) as meeting:
        for model in sorted(path for path in folder.iterdir() if path.is_dir()):
            told.clear()
            section = ModelSection(path=str(model))
            try:
                begun = start(section, meeting, "fsdp2", replicas=replicas, packed=True)
            except DataError as fault:
                found[model.name] = {"fault": str(fault)}
            else:
                found[model.name] = compared(begun, section, meeting, replicas)
            found[model.name]["told"] = list(told)
        (folder / f"rank-{meeting.world.rank}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)  # gloo's threads may abort a process that ends in order
