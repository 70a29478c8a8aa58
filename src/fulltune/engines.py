"""The one place where an engine is made: a model on the one that was chosen for it."""

from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from fulltune.adding import add_in_place
from fulltune.base.allocator import LARGEST, keeping, returning
from fulltune.base.errors import RecipeError
from fulltune.base.groups import GroupPlan
from fulltune.base.records import EngineName, Plan
from fulltune.engine.contract import Engine, MakeOptimizer, Pull, World
from fulltune.engine.in_backward import InBackward
from fulltune.engine.launch import Meeting
from fulltune.engine.layout import Layout
from fulltune.engine.native import NativeEngine
from fulltune.engine.replicated import Replicated
from fulltune.engine.room import keep_within
from fulltune.engine.sharded import Sharded
from fulltune.engine.single import Single
from fulltune.engine.zero import ZeroEngine
from fulltune.model.attention import attend_in_blocks
from fulltune.model.compiled import compile_blocks
from fulltune.model.facts import (
    blocks,
    checkpoint_blocks,
    layers,
    matrices,
    require_inner_checkpoints,
    set_dropout,
    undecayed,
)
from fulltune.model.norms import fuse_norms
from fulltune.model.probe import leaves_unused
from fulltune.model.projections import keep_less
from fulltune.model.tiled import tile_mlps
from fulltune.model.waiting import let_wait
from fulltune.objectives import Objective
from fulltune.optim.groups import Parting, Rule, begins, groups
from fulltune.optim.optimizers import make
from fulltune.optim.pulls import ScheduleFreeAverage
from fulltune.planning.deepspeed import configuration
from fulltune.planning.way import DIVIDED
from fulltune.recipe.schema import ZERO, OptimSection, Recipe


@dataclass(frozen=True, slots=True)
class By:
    """The engine that was chosen for a run."""

    name: EngineName
    offload: bool = False
    """Whether weights, gradients and moments wait on the host; of `zero1` and `zero2`, what the optimizer moves."""


def engine_for(
    recipe: Recipe,
    plan: Plan,
    model: nn.Module,
    objective: Objective,
    meeting: Meeting,
    by: By,
    pulls: Sequence[Pull] = (),
) -> Engine:
    """The model on its engine."""
    keep_within(recipe.memory.budget_gb, meeting.world.device)
    if recipe.model.dropout is not None:
        set_dropout(model, recipe.model.dropout)
    checkpointing = plan.checkpointing or recipe.memory.checkpointing
    if checkpointing in ("selective", "full"):
        checkpoint_blocks(model, keep_products=checkpointing == "selective")
    if meeting.world.device == "cpu" and not recipe.train.compile and not DIVIDED[by.name]:
        keep_less(model)
        fuse_norms(model)
        if by.name == "single" and recipe.optim.in_backward == "off" and plan.dtypes.weights == "float32":
            add_in_place(model)
    if recipe.memory.mlp_tile is not None:
        tile_mlps(model, recipe.memory.mlp_tile)
    if recipe.memory.activations_wait:
        if checkpointing in ("selective", "full"):
            require_inner_checkpoints(model)
        let_wait(model)
    if recipe.train.compile:
        compile_blocks(blocks(model), meeting.world.device)
    if recipe.model.attention == "auto":
        attend_in_blocks(model)
    make_optimizer = _optimizer(recipe.optim, parting(recipe.optim, model), pulls)
    if by.name in ZERO:
        zero = configuration(recipe, plan.dtypes, width(model))
        return ZeroEngine(model, objective, make_optimizer, meeting, zero, precision=plan.dtypes, pulls=pulls)
    layout = _layout(recipe, plan, model, meeting, by)
    named: Any = {"clip": recipe.optim.clip, "precision": plan.dtypes, "pulls": pulls}
    if recipe.optim.in_backward != "off":
        named["two_passes"] = recipe.optim.in_backward == "two_passes"
        return InBackward(model, objective, make_optimizer, layout, **named)
    return NativeEngine(model, objective, make_optimizer, layout, **named)


def reusing(world: World, by: By, largest: int, *, frugal: bool = False) -> AbstractContextManager[None]:
    """In here freed memory is kept for the next pass, where the model lies on the host, and whole.

    If `frugal` it goes back to the system at once: gradients that are freed one by one would leave holes that nothing
    fits into, and take nearly as much as if they stayed (docs/memory.md).

    `largest`: bytes of a pass's largest activations. Beyond what glibc keeps anyhow such blocks would leave holes into
    which the next ones do not fit: a model of one layer and micro-batches of 17,000 tokens took 1,500 MiB in place of
    900. So would weights that are gathered and dropped. What a GPU computes with is not the host's.
    """
    if world.device != "cpu" or DIVIDED[by.name]:
        return nullcontext()
    if frugal:
        return returning()
    return keeping() if largest <= LARGEST else nullcontext()


def _layout(recipe: Recipe, plan: Plan, model: nn.Module, meeting: Meeting, by: By) -> Layout:
    world, crew, section, wait = meeting.world, meeting.crew, recipe.engine, recipe.memory.moments_wait
    match by.name:
        case "single":
            return Single(world, moments_wait=wait)
        case "ddp":
            unused = leaves_unused(model, embedding(model).shape[0])
            return Replicated(world, crew, some_unused=unused, moments_wait=wait)
        case "fsdp2":
            return Sharded(
                world,
                crew,
                blocks(model),
                reshard=section.reshard,
                replicas=section.replicas,
                compute=cast(torch.dtype, vars(torch)[plan.dtypes.compute]),
                offload=by.offload,
            )
        case _:
            raise AssertionError(f"{by.name} has no layout")


def _optimizer(section: OptimSection, by: Parting, pulls: Sequence[Pull]) -> MakeOptimizer:
    """A maker, since an engine must shape the parameters first. `pulls`: one of them may be the optimizer's own."""
    averages = [pull for pull in pulls if isinstance(pull, ScheduleFreeAverage)]
    own = {"average": averages[0]} if averages else {}

    def build(named: Iterable[tuple[str, nn.Parameter]]) -> Optimizer:
        return make(
            section.name,
            groups(named, by),
            lr=section.lr,
            weight_decay=section.weight_decay,
            options={**section.options, **own},
        )

    return build


def parting(section: OptimSection, model: nn.Module) -> Parting:
    """By what the weights of a model are parted; to be asked before an engine has taken them apart."""
    return Parting(
        undecayed=undecayed(model),
        matrices=matrices(model),
        layers=layers(model) if section.by_layer else {},
        layer_decay=section.layer_decay,
        unfreeze=section.unfreeze,
        freeze=section.freeze,
        train_only=section.train_only,
        rules=[Rule(asked.match, asked.rate, asked.weight_decay) for asked in section.groups],
    )


def grouped(section: OptimSection, model: nn.Module, updates: int) -> tuple[GroupPlan, ...]:
    """The groups as a plan shows them. RecipeError if something asked for is of no weight, or if nothing trains."""
    by = parting(section, model)
    by.require_all_used({name for name, _ in model.named_parameters()})
    made = groups(model.named_parameters(), by)
    moved = [begins(group.start, updates) for group in made if group.rate]
    if not moved or min(moved) > 0:
        said = (
            f"nothing is trained before update {min(moved)}" if moved else "nothing is trained: all weights are frozen"
        )
        raise RecipeError(said, where="optim", mend="leave something of optim.freeze, train_only, groups, unfreeze out")
    return tuple(
        GroupPlan(
            rate=section.lr * group.rate,
            weight_decay=section.weight_decay * group.decay,
            begins=begins(group.start, updates),
            tensors=len(group.names),
            parameters=sum(parameter.numel() for parameter in group.parameters),
            example=group.names[0],
        )
        for group in made
    )


def embedding(model: nn.Module) -> Tensor:
    """The input embedding [rows, hidden]."""
    return cast(Tensor, cast(Any, model).get_input_embeddings().weight)


def width(model: nn.Module) -> int:
    """Numbers of a hidden state; to be asked before an engine has taken the weights apart."""
    return embedding(model).shape[1]
