"""What each rank runs for the penalty on the divergence from the base: its records made, updates, a return, a score.

`python -m tests.distributed.held FOLDER LAYOUT...`, started by `together`.
"""

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import save_file

from fulltune.data.feed import once
from fulltune.data.lay import Budget
from fulltune.engine.contract import World
from fulltune.engine.crew import Crew
from fulltune.engine.launch import joined
from fulltune.evaluation.heldout import measure
from fulltune.training.reference import References
from tests.distributed.ranks import Case, curve, ground, put_away, weights

UPDATES = 8
REPLAY = range(0, 40, 3)
"""Of 40 examples: an update of 7 has 2 or 3 of them, and some micro-batches of some ranks none."""


def go(folder: Path, layout: str, world: World, crew: Crew) -> None:
    """Updates that are held to the model as it was; from a checkpoint on the same ones, to the bit."""
    made = ground(folder / f"rank-{world.rank}", Case(layout, "llama-tied", 2), world, crew, kl=50.0)
    place = {"rank": world.rank, "size": world.size}
    refer = References(folder / "base-replay", "k", 20, {})
    refer.make(
        once(made.store, Budget(3, 10_000, "padded"), members=REPLAY, rank=world.rank, size=world.size),
        made.engine,
        made.objective,
        crew,
    )
    assert References(folder / "base-replay", "k", 20, {}).stand(crew)
    made.refer = refer
    found = curve(made, range(UPDATES // 2))
    put_away(folder / "saved", made, crew, {})
    found += curve(made, range(UPDATES // 2, UPDATES))
    first = weights(made)
    crew.rest()
    made.engine.load(folder / "saved")
    made.refer = References(folder / "base-replay", "k", 20, {})
    assert curve(made, range(UPDATES // 2, UPDATES)) == found[UPDATES // 2 :]
    last = weights(made)
    assert all(torch.equal(first[name], last[name]) for name in last)
    split = {"x": {"all": lambda: once(made.store, made.budget, refer=refer, **place)}}
    report = measure(split, made.engine, made.objective, step=UPDATES)
    if world.rank == 0:
        (folder / "curve.json").write_text(json.dumps([found, report.scores, report.counts]))
        save_file(last, folder / "last.safetensors")


def main(folder: Path, layouts: Sequence[str]) -> None:
    with joined(60) as meeting:
        for layout in layouts:
            here = folder / str(meeting.world.size) / layout
            here.mkdir(parents=True, exist_ok=True)
            go(here, layout, meeting.world, meeting.crew)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)  # gloo's threads may abort a process that ends in order
