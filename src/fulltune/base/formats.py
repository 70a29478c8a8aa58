"""In which number formats a model is held and computed."""

from dataclasses import dataclass
from typing import Literal

NumberFormat = Literal["float32", "bfloat16", "float16"]
BYTES: dict[NumberFormat, int] = {"float32": 4, "bfloat16": 2, "float16": 2}

MomentFormat = Literal["float32", "bfloat16", "int8"]
BLOCK = 256
"""Moments in 8 bits that share a float32 scale."""
MOMENT_BYTES: dict[MomentFormat, int | float] = {"float32": 4, "bfloat16": 2, "int8": 1 + 4 / BLOCK}
"""How moments lie between updates, and what each takes. `int8`: codes (`engine/moments.py`)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PrecisionPlan:
    """In which number format everything is held and computed. An engine acts on these and knows no other setting."""

    weights: NumberFormat
    gradients: NumberFormat
    """As the backward pass of one micro-batch makes them."""
    moments: MomentFormat
    """What the optimizer keeps for each weight."""
    compute: NumberFormat
    """Matrix products of the forward and backward pass; they add up in float32 inside, losses are float32 anyway."""
    reduction: NumberFormat
    """In which gradients of several micro-batches are added up, and losses and norms."""
    bytes: dict[str, int | float]
    """Per parameter, by `weights`, `gradients` and `moments`; no moments where only the user's own optimizer knows;
    gradients 0 where each is freed as soon as its weight was moved.
    Besides, `pulls`: what these remember, where there are any.
    """
    beside: float = 0.0
    """Bytes per parameter that moments may take besides: how many depends on the shapes of the weights."""
    projected: float = 0.0
    """Bytes of the numbers to which moments project a side of matrices inside of blocks; 0 if they do not."""
    spares_matrices: bool = False
    """Whether they take that for sure, but for matrices inside of blocks."""
    parts: bool = False
    """Whether weights that are rounded may be moved part by part: their optimizer treats each number by itself."""

    def __str__(self) -> str:
        told = "; ".join(f"{name} {value}" for name, value in self.rows().items())
        whole = sum(self.bytes.values())
        return f"{told}; {_cost(whole, whole + self.beside)} per parameter together"

    def rows(self) -> dict[str, str]:
        """The plan as a table: a number format for each name, and what it costs."""
        held: dict[str, NumberFormat | MomentFormat]
        held = {"weights": self.weights, "gradients": self.gradients, "moments": self.moments}
        shown = {name: f"{number}, {_cost(self.bytes.get(name))}" for name, number in held.items()}
        if self.beside:
            least = self.bytes["moments"]
            shown["moments"] = f"{self.moments}, {_cost(least, least + self.beside)}"
        if self.bytes["gradients"] > BYTES[self.gradients]:
            total = f"added up in {self.reduction}, {_cost(self.bytes['gradients'])}"
            shown["gradients"] = f"{self.gradients} of a micro-batch, {total}"
        if not self.bytes["gradients"]:
            shown["gradients"] = f"{self.gradients}, of one weight at a time"
        if self.weights != "float32":
            shown["weights"] += ", rounded stochastically"
        if "pulls" in self.bytes:
            shown["pulls"] = f"float32, {_cost(self.bytes['pulls'])}"
        return {**shown, "compute": self.compute, "reduction": self.reduction}


def _cost(size: float | None, most: float = 0.0) -> str:
    if size is None:
        return "size unknown"
    return f"{_number(size)}{f' to {_number(most)}' if most > size else ''} bytes"


def _number(size: float) -> str:
    return f"{round(size, 2):g}"
