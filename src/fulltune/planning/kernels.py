"""What asks for kernels that machine, model or number format lack, known before anything is loaded. Pure."""

from collections.abc import Iterator

from fulltune.base.errors import Fault, RecipeError
from fulltune.base.records import Machine, ModelFacts, Precision
from fulltune.recipe.schema import Recipe

_ATTENTION, _LIGER = "model.attention", "model.liger"


def require_kernels(recipe: Recipe, model: ModelFacts, machine: Machine, precision: Precision) -> None:
    """RecipeError for every kernel that cannot be had. `precision`: what it was resolved to."""
    faults = [*_of_attention(recipe, model, machine, precision), *_of_liger(recipe, machine)]
    if faults:
        raise RecipeError(faults=faults)


def _of_attention(recipe: Recipe, model: ModelFacts, machine: Machine, precision: Precision) -> Iterator[Fault]:
    name = recipe.model.attention
    if name.startswith("flash") and precision == "float32":
        said = "flash attention computes in bf16, and the precision is float32"
        yield Fault(said, _ATTENTION, "model.attention=sdpa, or train.precision=bf16-mixed")
    if name != "varlen":
        return
    if machine.kind == "cpu":
        said = "torch's kernel for examples of varying lengths is one of GPUs"
        yield Fault(said, _ATTENTION, "leave model.attention out: on a CPU `auto` packs and is fast")
    elif not machine.bf16:
        said = f"torch's kernel for examples of varying lengths is not for {machine.name}, which has no bf16"
        yield Fault(said, _ATTENTION, "leave model.attention out")
    elif precision == "float32":
        said = "torch's kernel for examples of varying lengths computes in 16 bits, and the precision is float32"
        yield Fault(said, _ATTENTION, "model.attention=sdpa, or train.precision=bf16-mixed")
    if not model.causal:
        said = f"of {model.architecture} it is not known that its attention is causal and no more"
        yield Fault(said, _ATTENTION, "model.attention=flash_attention_2, or leave it out")
    if recipe.model.dropout:
        said = "torch's kernel for examples of varying lengths has no dropout"
        yield Fault(said, _ATTENTION, "model.attention=sdpa, or leave model.dropout out")


def _of_liger(recipe: Recipe, machine: Machine) -> Iterator[Fault]:
    if not recipe.model.liger:
        return
    if machine.kind == "cpu":
        yield Fault("the kernels of liger-kernel are of GPUs", _LIGER, "leave model.liger out")
    if recipe.engine.name not in ("auto", "single", "ddp"):
        said = f"the kernels of liger-kernel were not tried with {recipe.engine.name}"
        yield Fault(said, _LIGER, "leave model.liger out, or engine.name=ddp")
