"""What a run starts from: a model with its weights, or its outline and where each process reads the rows that it holds.

Under FSDP2 no process has the whole model, neither on its device nor on its host: it is made without memory, sharded,
given memory for the shards, and filled from the files. Questions to the loaded model (model/probe.py) are asked of such
a model too, laid out in float32 for that alone: in bfloat16 a soft cap that we overlook would pass for noise.
"""

import copy
import gc
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from fulltune.base.allocator import returning
from fulltune.base.errors import RecipeError
from fulltune.base.log import LOGGER
from fulltune.base.records import EngineName, Plan
from fulltune.engine.contract import Engine, Read
from fulltune.engine.launch import Meeting
from fulltune.engine.native import fill, unique_state
from fulltune.engine.pieces import part
from fulltune.engine.sharded import Sharded
from fulltune.model.facts import blocks
from fulltune.model.liger import fuse
from fulltune.model.load import load_model, outline_model, unfit
from fulltune.model.probe import Answers, ask
from fulltune.model.stored import Stored, locate
from fulltune.objectives import NextToken
from fulltune.recipe.schema import ModelSection


class Start:
    """A model, what it answered, and how it comes by its weights."""

    def __init__(self, model: nn.Module, answers: Answers, read: Read | None = None) -> None:
        """`read`: reads the weights, where the model is without; None if it has them."""
        self.model, self.answers = model, answers
        self.read = read

    def fill(self, engine: Engine) -> None:
        """Give the model its weights, if it has none yet."""
        if self.read is not None:
            engine.fill(self.read)
        self.forgo()

    def forgo(self) -> None:
        """No more is read: the model has its weights, maybe from a checkpoint. What was kept of them is let go."""
        self.read = None


@dataclass(frozen=True, slots=True)
class _Kept:
    """What this process holds of a weight, asked for as if the whole of it were there."""

    own: Tensor

    def __getitem__(self, rows: Any) -> Tensor:
        assert rows is ... or rows.stop - rows.start == self.own.shape[0]
        return self.own


@dataclass(frozen=True, slots=True)
class _Grid:
    """How many processes share a model, in how many groups that have it whole."""

    meeting: Meeting
    replicas: int

    def rows(self, total: int) -> slice:
        """Those of this process; as the engine's mesh counts them."""
        shards = self.meeting.crew.size // self.replicas
        return part(total, shards, self.meeting.crew.rank % shards)


def start(section: ModelSection, meeting: Meeting, engine: EngineName, *, replicas: int, packed: bool) -> Start:
    """The model that a run begins with. DataError if its weights are not all there, or no numbers.

    `packed`: whether examples will lie in one row.
    """
    if engine != "fsdp2":
        model = load_model(section).to(meeting.world.device)
        if section.liger and meeting.world.device != "cpu":  # where a run's result is written once more
            fuse(model)
        return Start(model, ask(model, packed=packed))
    grid, crew = _Grid(meeting, replicas), meeting.crew
    model = outline_model(section)
    stored = locate(section, model)
    if isinstance(stored, Stored):
        apart = crew.told(stored.apart)
        if apart is not None:
            stored = f"its config ties {apart}, and its files have two values for it"
    if isinstance(stored, str):
        LOGGER.info(f"the model is loaded whole, by one process of a machine after the other: {stored}")
        model, rows = crew.in_turn(partial(_loaded, section, grid))
        stored = Stored(rows, ())
    with returning():
        answers = _asked(model, stored, grid, section.path, packed=packed)
    crew.rest()  # the weights are read once more, which may take long
    return Start(model, answers, stored.read)


def require_layout(plan: Plan, model: nn.Module, answers: Answers) -> None:
    """RecipeError if examples packed into one row would see each other in this model."""
    if plan.layout == "packed" and not answers.isolates:
        raise RecipeError(
            f"examples packed into one row see each other in {type(model).__name__} as it is loaded",
            where="train.layout",
            mend="train.layout=padded, or another model.attention",
        )


def _asked(model: nn.Module, stored: Stored, grid: _Grid, where: str, *, packed: bool) -> Answers:
    """What the model answers, from a float32 copy of it in shards, which is gone afterwards.

    DataError, on all processes the same, if some weight is no number in the rows of any.
    """
    copied, crew = copy.deepcopy(model), grid.meeting.crew
    layout = Sharded(grid.meeting.world, crew, blocks(copied), replicas=grid.replicas)
    layout.lay(NextToken(copied, None, keeps_logits=False))
    fill(copied, layout, stored.read)
    names = sorted(dict(copied.named_parameters()))
    counts = crew.sum(torch.tensor([stored.broken[name] for name in names])) // grid.replicas
    broken = [(name, count) for name, count in zip(names, counts.tolist(), strict=True) if count]
    if broken:
        raise unfit([f"{name}: {count} values are not finite" for name, count in broken], where)
    found = layout.inside(partial(ask, packed=packed))
    # The same on all: what one denies none may count on.
    agreed = Answers(cut=not crew.any(not found.cut), isolates=not crew.any(not found.isolates))
    del copied, layout
    gc.collect()  # modules and their hooks refer to each other
    return agreed


def _loaded(section: ModelSection, grid: _Grid) -> tuple[nn.Module, Mapping[str, _Kept]]:
    """The whole model, of which its outline is kept, and what this process holds of its weights."""
    model = load_model(section)
    parameters = dict(model.named_parameters())
    rows = {
        name: _Kept(value[grid.rows(value.shape[0])].clone() if name in parameters else value)
        for name, value in unique_state(model).items()
    }
    _forget(model)
    return model, rows


def _forget(model: nn.Module) -> None:
    """Take the memory of a model's parameters; tied ones stay tied."""
    before = {
        parameter: nn.Parameter(parameter.to("meta"), parameter.requires_grad) for parameter in model.parameters()
    }
    for module in model.modules():
        for name, parameter in list(module.named_parameters(recurse=False, remove_duplicate=False)):
            module.register_parameter(name, before[parameter])
