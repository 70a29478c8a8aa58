"""What each rank runs for blocks that are computed again, or wait on the host, or neither: FSDP2 in bfloat16.

`python -m tests.distributed.again FOLDER`: curves and counted forward passes go into `FOLDER/rank-N.json`.
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch

from fulltune.engine.launch import Meeting, joined
from fulltune.engine.sharded import Sharded
from fulltune.model.facts import blocks, checkpoint_blocks
from fulltune.model.waiting import let_wait
from tests import tiny
from tests.contract.ground import Ground
from tests.distributed.ranks import curve

UPDATES = range(5)


def found(folder: Path, meeting: Meeting, *, again: str) -> dict[str, Any]:
    """Loss and gradient norm of each update, and how often the first block's MLP was computed."""
    model = tiny.model("gpt2", attn_pdrop=0.1, resid_pdrop=0.1)
    calls: list[bool] = []
    blocks(model)[0].mlp.register_forward_pre_hook(lambda *_: calls.append(True))
    if again in ("selective", "full"):
        checkpoint_blocks(model, keep_products=again == "selective")
    if again == "waits":
        let_wait(model)
    world = meeting.world
    made = Ground(
        folder,
        model,
        count=40,
        micro=3,
        precision="bf16-mixed",
        lay=Sharded(world, meeting.crew, blocks(model), compute=torch.bfloat16),
        clip=1.0,
        rank=world.rank,
        size=world.size,
    )
    torch.manual_seed(world.rank)  # for dropout, which must draw the same when a block is computed again
    return {"curve": curve(made, UPDATES), "calls": len(calls)}


def main(folder: Path) -> None:
    with joined(60) as meeting:
        here = folder / f"rank-{meeting.world.rank}"
        each = [found(here / again, meeting, again=again) for again in ("none", "waits", "selective", "full")]
        here.with_suffix(".json").write_text(json.dumps(each))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)  # gloo's threads may abort a process that ends in order
