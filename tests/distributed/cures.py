"""What each rank runs for the pulls: updates with all that the engine can, what they remember saved, then read by one.

`python -m tests.distributed.cures FOLDER LAYOUT...`, started by `together`.
"""

import json
import os
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from fulltune.data.feed import once
from fulltune.engine.contract import World
from fulltune.engine.crew import Crew
from fulltune.engine.launch import joined
from fulltune.engine.native import NativeEngine
from fulltune.engines import parting
from fulltune.optim.groups import begins
from fulltune.optim.pulls import Asked, Pull, make
from fulltune.recipe.schema import OptimSection
from fulltune.training.fisher import estimate
from fulltune.training.pulling import Pulling
from tests import tiny
from tests.contract.ground import Ground
from tests.distributed.ranks import Case, curve, put_away, weights

UPDATES = 8
BEHIND = [Asked("l2_sp", {"alpha": 40}), Asked("ema", {"decay": 0.7})]
"""What ZeRO can."""
ALL = [*BEHIND, Asked("l2_sp_penalty", {"alpha": 0.1}), Asked("ewc", {"strength": 3, "examples": 5})]


MIXED = [Asked("l2_sp_penalty", {"alpha": 0.1}), Asked("mixout", {"probability": 0.3})]
"""What needs whole weights: `ddp-mixed`."""


PARTED = OptimSection(
    layer_decay=0.7,
    unfreeze=0.4,
    freeze=("q_proj",),
    groups=({"match": "mlp", "rate": 10.0}, {"match": ".", "rate": 5.0}),  # type: ignore[arg-type]
)
"""Rates by layer and name, weights that are frozen, weights that begin later: `fsdp2-parted`."""


def asked_of(layout: str) -> list[Asked]:
    if layout.endswith("-parted"):
        return BEHIND
    if layout.endswith("-mixed"):
        return MIXED
    return BEHIND if layout.startswith("zero") or layout.endswith("-behind") else ALL


def held(folder: Path, layout: str, world: World, crew: Crew, asked: Sequence[Asked]) -> tuple[Ground, Pulling]:
    case = Case(layout.partition("-")[0], "llama-tied", 3)
    pulls: dict[str, Pull] = make(asked)
    zero = case.layout.startswith("zero")
    model = tiny.model(case.kind)
    ground = Ground(
        folder / f"rank-{world.rank}",
        model,
        count=40,
        micro=3,
        lay=None if zero else case.lay(model, world, crew),
        make_engine=partial(case.zero(world, crew), pulls=tuple(pulls.values())) if zero else None,
        clip=1.0,
        by=parting(PARTED, model) if layout.endswith("-parted") else None,
        rank=world.rank,
        size=world.size,
        pulls=sorted(pulls.values(), key=lambda pull: not pull.mixes),
    )

    def found(count: int) -> Any:
        assert isinstance(ground.engine, NativeEngine)
        place = {"rank": world.rank, "size": world.size}
        each = (once(ground.store, ground.budget, members=[member], **place) for member in range(count))
        return estimate(ground.engine, ground.objective, (batch for batches in each for batch in batches))

    pulling = Pulling(
        pulls=pulls, engine=ground.engine, crew=crew, files={}, file=folder / "fisher.safetensors", estimate=found
    )
    return ground, pulling


def go(folder: Path, layout: str, world: World, crew: Crew) -> None:
    """Four updates, an evaluation of the average, a save and a return from it, four more."""
    ground, pulling = held(folder, layout, world, crew, asked_of(layout))
    pulling.begin()
    found = mixed(ground, pulling, range(UPDATES // 2))
    average = pulling.instead(lambda: (measured(ground), weights(ground)))
    put_away(folder / "saved", ground, pulling.crew, pulling.remembered())
    middle = weights(ground)
    found += mixed(ground, pulling, range(UPDATES // 2, UPDATES))
    first = weights(ground)
    crew.rest()
    pulling.recall(ground.engine.load(folder / "saved"))
    again = mixed(ground, pulling, range(UPDATES // 2, UPDATES))
    assert again == found[UPDATES // 2 :], "from a checkpoint the same updates, to the bit"
    last = weights(ground)
    assert all(torch.equal(first[name], last[name]) for name in last)
    if world.rank == 0:
        (folder / "curve.json").write_text(json.dumps([*found, (average[0], 0.0)]))
        for name, tensors in {"average": average[1], "middle": middle, "last": last}.items():
            save_file(tensors, folder / f"{name}.safetensors")


def mixed(ground: Ground, pulling: Pulling, updates: range) -> list[tuple[float, float]]:
    """As `curve`, with the weights that mixout gives each update, and the rates that groups have in it."""
    found = []
    for number in updates:
        rates = [1e-3 * g.rate if number >= begins(g.start, UPDATES) else 0.0 for g in ground.groups]
        with pulling.mixing(7 * number):
            found += curve(ground, range(number, number + 1), rates)
    return found


def measured(ground: Ground) -> float:
    """A loss of what is evaluated now."""
    with ground.engine.evaluating():
        sums = [ground.engine.forward(batch)["next_token"] for batch in ground.batches(range(7))]
    return float(ground.engine.sum(torch.stack(sums).sum()))


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
