"""The one place where an engine is made: a model on the one that was chosen for it."""

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from fulltune.base.records import EngineName, Plan
from fulltune.engine.contract import Engine, MakeOptimizer
from fulltune.engine.launch import Meeting
from fulltune.engine.layout import Layout
from fulltune.engine.native import NativeEngine
from fulltune.engine.replicated import Replicated
from fulltune.engine.sharded import Sharded
from fulltune.engine.single import Single
from fulltune.engine.zero import ZeroEngine
from fulltune.model.facts import blocks, checkpoint_blocks, set_dropout, undecayed
from fulltune.model.probe import leaves_unused
from fulltune.objectives import Objective
from fulltune.optim.groups import groups
from fulltune.optim.optimizers import make
from fulltune.planning.deepspeed import configuration
from fulltune.recipe.schema import ZERO, EngineSection, OptimSection, Recipe


@dataclass(frozen=True, slots=True)
class By:
    """The engine that was chosen for a run."""

    name: EngineName
    offload: bool = False
    """Whether weights, gradients and moments wait on the host; of `zero1` and `zero2`, what the optimizer moves."""


def engine_for(recipe: Recipe, plan: Plan, model: nn.Module, objective: Objective, meeting: Meeting, by: By) -> Engine:
    """The model on its engine."""
    if recipe.model.dropout is not None:
        set_dropout(model, recipe.model.dropout)
    if recipe.memory.checkpointing == "full":
        checkpoint_blocks(model)
    make_optimizer = _optimizer(recipe.optim, undecayed(model))
    if by.name in ZERO:
        zero = configuration(recipe, plan.dtypes, width(model))
        return ZeroEngine(model, objective, make_optimizer, meeting, zero, precision=plan.dtypes)
    layout = _layout(recipe.engine, plan, model, meeting, by)
    return NativeEngine(model, objective, make_optimizer, layout, clip=recipe.optim.clip, precision=plan.dtypes)


def _layout(section: EngineSection, plan: Plan, model: nn.Module, meeting: Meeting, by: By) -> Layout:
    world, crew = meeting.world, meeting.crew
    match by.name:
        case "single":
            return Single(world)
        case "ddp":
            return Replicated(world, crew, some_unused=leaves_unused(model, embedding(model).shape[0]))
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


def _optimizer(section: OptimSection, spared: Collection[str]) -> MakeOptimizer:
    """A maker, since an engine must shape the parameters first."""

    def build(named: Iterable[tuple[str, nn.Parameter]]) -> Optimizer:
        return make(
            section.name,
            groups(named, spared),
            lr=section.lr,
            weight_decay=section.weight_decay,
            options=section.options,
        )

    return build


def embedding(model: nn.Module) -> Tensor:
    """The input embedding [rows, hidden]."""
    return cast(Tensor, cast(Any, model).get_input_embeddings().weight)


def width(model: nn.Module) -> int:
    """Numbers of a hidden state; to be asked before an engine has taken the weights apart."""
    return embedding(model).shape[1]
