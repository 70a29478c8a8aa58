"""Which engine a run is trained by: as the recipe says, or what its processes and its size ask for. Pure."""

from dataclasses import dataclass
from typing import Literal

from fulltune.base.errors import RecipeError
from fulltune.base.records import EngineName, Machine, ModelFacts, Plan
from fulltune.planning.deepspeed import configuration
from fulltune.recipe.schema import ZERO, Recipe

_STATE = 0.6
"""Part of a device's memory that weights, gradients and moments may fill: the rest is for what passes leave behind."""


@dataclass(frozen=True, slots=True)
class Chosen:
    """An engine, and why."""

    name: EngineName
    why: str

    def __str__(self) -> str:
        return f"{self.name}, {self.why}"


def choose_engine(recipe: Recipe, processes: int, plan: Plan, model: ModelFacts, machine: Machine) -> Chosen:
    """RecipeError if what was asked for does not go with so many processes, or with the plan's precision."""
    section = recipe.engine
    chosen = _chosen(section.name, processes, plan, model, machine)
    if chosen.name == "single" and processes > 1:
        raise RecipeError(
            f"the engine is single, and {processes} processes were started",
            where="engine.name",
            mend="engine.name=auto, or one process",
        )
    if plan.dtypes.weights != "float32" and chosen.name != "single":
        raise RecipeError(
            f"bf16-sr rounds the weights of one process; of {processes} processes each would round by itself",
            where="train.precision",
            mend="train.precision=bf16-mixed, or one process",
        )
    if processes % section.replicas:
        raise RecipeError(
            f"{processes} processes cannot form {section.replicas} groups of the same size",
            where="engine.replicas",
            mend="a number that divides that of the processes",
        )
    if chosen.name not in ("single", "ddp") and "moments" not in plan.dtypes.bytes:
        raise RecipeError(
            f"{chosen.name} gives an optimizer parts of each weight, and whether {recipe.optim.name} may see parts is "
            "not known",
            where="optim.name",
            mend="optim.name=adamw, or engine.name=ddp",
        )
    if chosen.name in ZERO and plan.dtypes.compute == "float16":
        raise RecipeError(
            f"{chosen.name} is built for float32 and bf16-mixed",
            where="train.precision",
            mend="train.precision=bf16-mixed, or engine.name=fsdp2",
        )
    if chosen.name in ZERO:
        configuration(recipe, plan.dtypes, model.hidden)  # what contradicts is to be said before a model is loaded
    return chosen


def _chosen(
    asked: EngineName | Literal["auto"], processes: int, plan: Plan, model: ModelFacts, machine: Machine
) -> Chosen:
    if asked != "auto":
        return Chosen(asked, "as the recipe says")
    if processes == 1:
        return Chosen("single", "since there is one process")
    # On a CPU the processes of a machine share its memory.
    state = model.parameters * sum(plan.dtypes.bytes.values())
    room = machine.bytes_per_device / (1 if machine.kind == "cuda" else processes)
    told = f"{state / 2**30:,.1f} GiB of weights, gradients and moments of {room / 2**30:,.1f} GiB for each process"
    if state <= _STATE * room:
        return Chosen("ddp", f"since they fit: {told}")
    return Chosen("fsdp2", f"since it is too much for each to have all: {told}")
