"""Checkpointing and the size of micro-batches, where the recipe leaves them to the plan: the first that fit. Pure."""

from collections.abc import Callable, Iterator
from functools import partial

from fulltune.base.memory import Forecast, between, gib
from fulltune.base.records import Checkpointing
from fulltune.planning.engine import Case, choose_engine

WAYS: tuple[Checkpointing, ...] = ("none", "selective", "full")
"""From the one that makes nothing again to the one that keeps least."""

FILLING = {"cpu": 256, "cuda": 4096}
"""Tokens of a micro-batch that fill a device: down to them smaller ones cost less than to make blocks again, which is
up to a third more arithmetic. On a CPU it was measured (docs/performance.md), on a GPU it is a guess.
"""


def deeper_than(way: Checkpointing, case: Case) -> tuple[Checkpointing, ...]:
    """The ways that keep less, if the model can make blocks again; what tiles make is kept by none of them."""
    deeper = WAYS[WAYS.index(way) + 1 :] if case.model.checkpoints else ()
    return tuple(one for one in deeper if case.recipe.memory.mlp_tile is None or one != "selective")


def fitted(case: Case) -> Case:
    """The case with checkpointing and micro-batches that fit, where they were left open; the least if none does.

    What costs least comes first: micro-batches as they are, smaller ones that fill the device still, `selective`,
    `full`, and only then micro-batches that are smaller than that.
    """
    held = _holding(case)
    tried = list(_candidates(case, held))
    return next((one for one in tried if held(one).high <= case.room), tried[-1])


def told(case: Case, made: Case) -> Iterator[str]:
    """What was decided of checkpointing and why, where the recipe left it open and not everything fits."""
    if case.recipe.memory.checkpointing != "auto":
        return
    kept = _holding(case)(made.changed("memory", checkpointing="none"))
    if kept.high <= case.room:
        return
    need = f"{between(kept.low, kept.high)} GiB of {gib(case.room)} GiB for each process"
    if made.checkpointing != "none":
        yield f"checkpointing: {made.checkpointing}, since without it the run may take {need}"
    elif not case.model.checkpoints:
        yield f"checkpointing: none, though the run may take {need}: {case.model.architecture} does not support it"


def _holding(case: Case) -> Callable[[Case], Forecast]:
    """What cases take by the engine that is chosen for this one."""
    chosen = choose_engine(case)
    return partial(Case.by, engine=chosen.name, offload=chosen.forecast.offload)


def _candidates(case: Case, held: Callable[[Case], Forecast]) -> Iterator[Case]:
    """From the one that costs least time to the one that holds least."""
    sizes = [case, *case.cuts()] if case.free else [case]
    filling = [one for one in sizes if one.load.tokens >= FILLING[case.machine.kind]] or sizes[:1]
    ways = _ways(case, held)
    for way in ways:
        for size in filling:
            yield size.changed("memory", checkpointing=way)
    for size in sizes[len(filling) :]:
        yield size.changed("memory", checkpointing=ways[-1])


def _ways(case: Case, held: Callable[[Case], Forecast]) -> list[Checkpointing]:
    """That the plan may choose among, each of which holds less than the one before."""
    ways = [case.checkpointing]
    for way in deeper_than("none", case) if case.recipe.memory.checkpointing == "auto" else ():
        before, now = (held(case.changed("memory", checkpointing=one)) for one in (ways[-1], way))
        ways += [way] if now.high < before.high else []
    return ways
