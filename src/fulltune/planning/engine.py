"""Which engine a run is trained by: as the recipe says, or the first that fits its processes and their memory. Pure."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from fulltune.base.errors import RecipeError
from fulltune.base.formats import BYTES, PrecisionPlan
from fulltune.base.memory import GIB, Forecast, between, gib
from fulltune.base.records import Checkpointing, EngineName, Layout, Machine, ModelFacts
from fulltune.planning.deepspeed import configuration
from fulltune.planning.in_backward import require_one_process
from fulltune.planning.memory import forecast
from fulltune.planning.precision import moves_one, takes_parts
from fulltune.planning.pulls import require_whole
from fulltune.planning.way import Pass, Way
from fulltune.recipe.schema import ZERO, Recipe


@dataclass(frozen=True, slots=True)
class Crowd:
    """How many processes train, and how many of them on this machine."""

    size: int = 1
    here: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """All that decides what a run holds in memory, but for its engine."""

    recipe: Recipe
    dtypes: PrecisionPlan
    layout: Layout
    model: ModelFacts
    machine: Machine
    crowd: Crowd
    load: Pass

    def by(self, engine: EngineName, *, offload: bool = False) -> Forecast:
        """What each process holds, trained by this engine."""
        section = self.recipe.engine
        way = Way(
            engine=engine,
            processes=self.crowd.size,
            dtypes=self.dtypes,
            kind=self.machine.kind,
            layout=self.layout,
            checkpointing=self.checkpointing,
            eager=self.recipe.model.attention == "eager",
            blockwise=self.recipe.model.attention == "auto" and not self.recipe.train.compile,
            compiled=self.recipe.train.compile,
            masks=not self.recipe.model.attention.startswith(("flash", "varlen")),
            reshard=section.reshard,
            replicas=section.replicas,
            offload=offload,
            tile=self.recipe.memory.mlp_tile,
            waits=self.recipe.memory.activations_wait,
            moments_wait=self.recipe.memory.moments_wait,
        )
        return forecast(way, self.model, self.load)

    @property
    def checkpointing(self) -> Checkpointing:
        """What is made again in the backward pass; nothing yet where it is left to the plan."""
        asked = self.recipe.memory.checkpointing
        return "none" if asked == "auto" else asked

    @property
    def budget(self) -> float:
        """Bytes that the recipe allows at most: of a GPU, or of the host to all its processes; infinite by default."""
        asked = self.recipe.memory.budget_gb
        return math.inf if asked is None else asked * GIB

    @property
    def room(self) -> int:
        """Bytes that each process may have: a GPU, or its part of the host's memory."""
        most = int(min(self.machine.bytes_per_device, self.budget))
        return most // (1 if self.machine.kind == "cuda" else self.crowd.here)

    @property
    def divisible(self) -> bool:
        """Whether an optimizer may be given rows of each weight: it must be known to treat every number by itself."""
        known = takes_parts(self.recipe.optim.name) and self.recipe.optim.in_backward == "off"
        whole = self.recipe.model.liger or self.recipe.memory.moments_wait
        return self.dtypes.weights == "float32" and known and not whole

    @property
    def free(self) -> bool:
        """Whether the plan chooses the size of micro-batches."""
        return self.recipe.train.micro_examples is None and self.recipe.train.micro_tokens is None

    def cuts(self) -> "list[Case]":
        """With micro-batches of half the size, of a quarter, and so on to the longest example alone.

        None where weights move in the backward pass: an update is one micro-batch there.
        """
        if self.recipe.optim.in_backward != "off":
            return []
        load, packed = self.load, self.layout == "packed"
        size, least = (load.width, load.longest) if packed else (load.rows, 1)
        # Gradients of several micro-batches are added up in float32.
        dtypes = replace(self.dtypes, bytes={**self.dtypes.bytes, "gradients": BYTES[self.dtypes.reduction]})
        cuts = []
        while size > least:
            size = max(least, size // 2)
            rows, width = (1, size) if packed else (size, load.width)
            taught = min(load.taught, rows * width)
            smaller = replace(load, rows=rows, width=width, taught=taught, several=True)
            cuts.append(replace(self, load=smaller, dtypes=dtypes))
        return cuts

    def least(self) -> "Case":
        """With the smallest passes that the plan may choose, and nothing kept that it may make again."""
        smallest = [self, *self.cuts()][-1] if self.free else self
        again = self.recipe.memory.checkpointing == "auto" and self.model.checkpoints
        return smallest.changed("memory", checkpointing="full") if again else smallest

    def changed(self, section: str, **fields: Any) -> "Case":
        """With other settings."""
        changed = vars(self.recipe)[section].model_copy(update=fields)
        return replace(self, recipe=self.recipe.model_copy(update={section: changed}))


@dataclass(frozen=True, slots=True)
class Chosen:
    """An engine, why, and what each of its processes holds."""

    name: EngineName
    why: str
    forecast: Forecast

    def __str__(self) -> str:
        return f"{self.name}{' with offload' if self.forecast.offload else ''}, {self.why}"


def choose_engine(case: Case) -> Chosen:
    """RecipeError if what was asked for does not go with so many processes, or with the plan's precision."""
    recipe, processes = case.recipe, case.crowd.size
    _require_groups(case)
    _require_elsewhere(case)
    require_one_process(recipe, processes)
    chosen = _chosen(case)
    if chosen.name == "single" and processes > 1:
        raise RecipeError(
            f"the engine is single, and {processes} processes were started",
            where="engine.name",
            mend="engine.name=auto, or one process",
        )
    require_whole(recipe.optim, chosen.name)
    if recipe.memory.mlp_tile is not None and chosen.name not in ("single", "ddp"):
        raise RecipeError(
            f"{chosen.name} gathers weights for a whole block, and tiles ask for an MLP's again and again",
            where="memory.mlp_tile",
            mend="engine.name=ddp, or one process; or leave memory.mlp_tile out",
        )
    if recipe.memory.moments_wait and chosen.name not in ("single", "ddp"):
        raise RecipeError(
            f"{chosen.name} has a way of its own to let moments wait on the host",
            where="memory.offload",
            mend="engine.offload=true in place of it, or engine.name=ddp",
        )
    if case.dtypes.weights != "float32" and chosen.name != "single":
        raise RecipeError(
            f"bf16-sr rounds the weights of one process; of {processes} processes each would round by itself",
            where="train.precision",
            mend="train.precision=bf16-mixed, or one process",
        )
    if chosen.name not in ("single", "ddp") and not case.divisible:
        optimizer = recipe.optim.name
        why = (
            f"{optimizer} needs whole weights"
            if moves_one(optimizer)
            else f"whether {optimizer} may see parts is not known"
        )
        raise RecipeError(
            f"{chosen.name} gives an optimizer parts of each weight, and {why}",
            where="optim.name",
            mend="optim.name=adamw, or engine.name=ddp",
        )
    if chosen.name in ZERO and case.dtypes.compute == "float16":
        raise RecipeError(
            f"{chosen.name} is built for float32 and bf16-mixed",
            where="train.precision",
            mend="train.precision=bf16-mixed, or engine.name=fsdp2",
        )
    if chosen.name in ZERO:
        configuration(recipe, case.dtypes, case.model.hidden)  # what contradicts is to be said before a model is loaded
    return chosen


def _require_groups(case: Case) -> None:
    if case.crowd.size % case.recipe.engine.replicas:
        raise RecipeError(
            f"{case.crowd.size} processes cannot form {case.recipe.engine.replicas} groups of the same size",
            where="engine.replicas",
            mend="a number that divides that of the processes",
        )


def _require_elsewhere(case: Case) -> None:
    if case.recipe.memory.offload != "none" and case.machine.kind == "cpu":
        raise RecipeError(
            "without a GPU all of it lies on the host already",
            where="memory.offload",
            mend="memory.offload=none; memory.checkpointing and smaller micro-batches save memory here",
        )
    if case.recipe.memory.moments_wait and not moves_one(case.recipe.optim.name):
        raise RecipeError(
            f"weights are moved one by one, which is not known to be right for {case.recipe.optim.name}",
            where="memory.offload",
            mend="optim.name=adamw, or memory.offload=activations or none",
        )


def _chosen(case: Case) -> Chosen:
    section = case.recipe.engine
    if section.name != "auto":
        return Chosen(section.name, "as the recipe says", case.by(section.name, offload=section.offload))
    if case.crowd.size == 1:
        return Chosen("single", "since there is one process", case.by("single"))
    tried: list[str] = []
    for name, offload, smaller in _candidates(case):
        found = case.by(name, offload=offload)
        least = smaller.by(name, offload=offload)
        need = f"{between(least.low, least.high)} GiB"
        need += _how(case, smaller)
        if least.high <= case.room:
            beside = f"; {', '.join(tried)}" if tried else ""
            return Chosen(name, f"since it fits into {gib(case.room)} GiB for each process: {need}{beside}", found)
        tried.append(f"{name}{' with offload' if offload else ''} would take {need}")
    return Chosen(name, f"though {gib(case.room)} GiB for each process may not do: {', '.join(tried)}", found)


def _how(case: Case, smaller: Case) -> str:
    """By what one of them is the smaller one."""
    told = ["one example in a micro-batch"] if smaller.load != case.load else []
    told += ["blocks made again"] if smaller.checkpointing != case.checkpointing else []
    return f" with {' and '.join(told)}" if told else ""


def _candidates(case: Case) -> Iterator[tuple[EngineName, bool, Case]]:
    """From the one that exchanges least to the one that holds least: engine, whether offloaded, with which passes.

    Smaller micro-batches and checkpointing cost less than to offload; where the recipe leaves them to the plan, it
    chooses them so.
    """
    yield "ddp", False, case
    if not case.divisible:
        return
    yield "fsdp2", False, case
    smallest = case.least()
    if smallest is not case:
        yield "fsdp2", False, smallest
    if case.machine.kind == "cuda":  # on a CPU there is nowhere else to put it
        yield "fsdp2", True, smallest
