"""Which number format everything gets, what it costs, and what does not go together. Pure."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from fulltune.base.errors import RecipeError
from fulltune.base.formats import BYTES, MOMENT_BYTES, NumberFormat, PrecisionPlan
from fulltune.base.records import Machine, ModelFacts, Precision
from fulltune.planning.pulls import pulls_of
from fulltune.recipe.schema import OptimSection, Recipe

_FORMATS: Mapping[Precision, tuple[NumberFormat, NumberFormat]] = {
    "float32": ("float32", "float32"),
    "bf16-mixed": ("float32", "bfloat16"),
    "fp16-mixed": ("float32", "float16"),
    "bf16-sr": ("bfloat16", "bfloat16"),
}
"""Of weights (and gradients), and of computing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Kept:
    """What an optimizer keeps for each weight, and what it must see of one."""

    values: Callable[[Mapping[str, Any]], int]
    """Numbers for each weight at least, by the optimizer's options."""
    beside: float = 0.0
    """Numbers for each weight that it may keep besides, by the shapes of the weights."""
    spares_matrices: bool = False
    """Whether it keeps these for sure, but for matrices inside of blocks."""
    rank: int = 0
    """Unless its options say another: to how many numbers it projects a side of matrices inside of blocks."""
    parts: bool = True
    """Whether it treats each number by itself, so that it may be given parts of a weight."""
    rounded: bool = True
    """Whether weights that it moves may be rounded stochastically."""


_KEPT: Mapping[str, _Kept] = {
    # A row and a column instead of a matrix: of 80 rows and columns or more, less than a fortieth of it.
    "adafactor": _Kept(values=lambda _: 0, beside=1 / 40, parts=False),
    "adamw": _Kept(values=lambda options: 3 if options.get("amsgrad") else 2),
    "apollo": _Kept(values=lambda _: 0, beside=2, spares_matrices=True, rank=256, parts=False),
    "apollo_mini": _Kept(values=lambda _: 0, beside=2, spares_matrices=True, rank=1, parts=False),
    # It keeps a projection, which rounding would bend.
    "galore": _Kept(values=lambda _: 0, beside=2, spares_matrices=True, rank=128, parts=False, rounded=False),
    "lion": _Kept(values=lambda _: 1),
    "muon": _Kept(values=lambda _: 1, beside=1, spares_matrices=True, parts=False),
    # Its average is counted among pulls; it lies so near to the weights that rounding those would tell.
    "schedule_free_adamw": _Kept(values=lambda _: 1, parts=False, rounded=False),
    "sgd": _Kept(values=lambda options: 1 if options.get("momentum") else 0),
}
"""By optimizer. These treat each weight tensor by itself, as bf16-sr must, and moving them in the backward pass."""


def require_precision(recipe: Recipe) -> None:
    """RecipeError for what bf16-sr alone can do, and for what it cannot."""
    rounded = recipe.train.precision == "bf16-sr"
    if recipe.optim.moments != "float32" and not rounded:
        raise RecipeError(
            f"{recipe.optim.moments} moments are rounded stochastically, and train.precision is "
            f"{recipe.train.precision}",
            where="optim.moments",
            mend="optim.moments=float32, or train.precision=bf16-sr",
        )
    if rounded and not rounds(recipe.optim.name):
        raise RecipeError(
            "bf16-sr moves one weight tensor at a time and rounds it, which is known to be right for "
            + ", ".join(filter(rounds, _KEPT)),
            where="optim.name",
            mend="optim.name=adamw, or train.precision=bf16-mixed",
        )
    if recipe.optim.moments == "int8" and not takes_parts(recipe.optim.name):
        raise RecipeError(
            f"moments in 8 bits are for optimizers that treat each number by itself, and {recipe.optim.name} does not",
            where="optim.moments",
            mend="optim.moments=bfloat16, or optim.name=adamw",
        )


def rounds(optimizer: str) -> bool:
    """Whether weights that this optimizer moves may be rounded stochastically."""
    return optimizer in _KEPT and _KEPT[optimizer].rounded


def moves_one(optimizer: str) -> bool:
    """Whether this optimizer is known to treat every weight tensor by itself."""
    return optimizer in _KEPT


def takes_parts(optimizer: str) -> bool:
    """Whether this optimizer is known to treat every number of a weight by itself."""
    return optimizer in _KEPT and _KEPT[optimizer].parts


def resolve(recipe: Recipe, machine: Machine) -> Precision:
    """What `auto` means on this machine."""
    asked = recipe.train.precision
    return ("bf16-mixed" if machine.bf16 else "float32") if asked == "auto" else asked


def precision_plan(precision: Precision, optim: OptimSection, *, several: bool) -> PrecisionPlan:
    """`several`: whether an update may have more than one micro-batch, whose gradients are added up in float32."""
    weights, compute = _FORMATS[precision]
    pulls = pulls_of(optim).values()
    wide = several or any(pull.on_gradients for pull in pulls)  # these add to gradients in float32
    sizes: dict[str, int | float]
    sizes = {"weights": BYTES[weights], "gradients": BYTES["float32" if wide else weights]}
    if optim.in_backward != "off":
        sizes["gradients"] = 0
    beside, spares_matrices, projected = 0.0, False, 0.0
    if optim.name in _KEPT:
        kept = _KEPT[optim.name]
        sizes["moments"] = kept.values(optim.options) * MOMENT_BYTES[optim.moments]
        beside, spares_matrices = kept.beside * MOMENT_BYTES[optim.moments], kept.spares_matrices
        asked = optim.options.get("rank", kept.rank)
        projected = (asked if kept.rank and isinstance(asked, int) else kept.rank) * MOMENT_BYTES[optim.moments]
    if pulls:
        sizes["pulls"] = BYTES["float32"] * sum(len(pull.remembers) + pull.holds for pull in pulls)
    return PrecisionPlan(
        weights=weights,
        gradients=weights,
        moments=optim.moments,
        compute=compute,
        reduction="float32",
        bytes=sizes,
        beside=float(beside),
        spares_matrices=spares_matrices,
        projected=float(projected),
        parts=weights != "float32" and takes_parts(optim.name),
    )


def precision_notes(recipe: Recipe, precision: Precision, model: ModelFacts, machine: Machine) -> list[str]:
    """What a reader of the plan should know of it."""
    notes = []
    if recipe.train.precision == "auto":
        fast = "has" if machine.bf16 else "has no"
        notes.append(f"precision: {machine.name} {fast} fast bf16 arithmetic")
    if precision == "fp16-mixed" and model.dtype == "bfloat16":
        notes.append("precision: a model that was made in bf16 may compute values beyond 65504, the largest of float16")
    if precision == "bf16-sr" and model.dtype == "float32":
        notes.append("precision: the model's float32 weights are rounded to bf16 before the first update")
    return notes
