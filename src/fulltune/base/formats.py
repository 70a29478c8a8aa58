"""In which number formats a model is held and computed."""

from dataclasses import dataclass
from typing import Literal

NumberFormat = Literal["float32", "bfloat16", "float16"]
BYTES: dict[NumberFormat, int] = {"float32": 4, "bfloat16": 2, "float16": 2}


@dataclass(frozen=True, slots=True, kw_only=True)
class PrecisionPlan:
    """In which number format everything is held and computed. An engine acts on these and knows no other setting."""

    weights: NumberFormat
    gradients: NumberFormat
    """As the backward pass of one micro-batch makes them."""
    moments: NumberFormat
    """What the optimizer keeps for each weight."""
    compute: NumberFormat
    """Matrix products of the forward and backward pass; they add up in float32 inside, losses are float32 anyway."""
    reduction: NumberFormat
    """In which gradients of several micro-batches are added up, and losses and norms."""
    bytes: dict[str, int]
    """Per parameter, by `weights`, `gradients` and `moments`; no moments where only the user's own optimizer knows.
    Besides, `pulls`: what these remember, where there are any.
    """

    def __str__(self) -> str:
        told = "; ".join(f"{name} {value}" for name, value in self.rows().items())
        return f"{told}; {sum(self.bytes.values())} bytes per parameter together"

    def rows(self) -> dict[str, str]:
        """The plan as a table: a number format for each name, and what it costs."""
        held: dict[str, NumberFormat]
        held = {"weights": self.weights, "gradients": self.gradients, "moments": self.moments}
        shown = {name: f"{number}, {_cost(self.bytes.get(name))}" for name, number in held.items()}
        if self.bytes["gradients"] > BYTES[self.gradients]:
            total = f"added up in {self.reduction}, {_cost(self.bytes['gradients'])}"
            shown["gradients"] = f"{self.gradients} of a micro-batch, {total}"
        if self.weights != "float32":
            shown["weights"] += ", rounded stochastically"
        if "pulls" in self.bytes:
            shown["pulls"] = f"float32, {_cost(self.bytes['pulls'])}"
        return {**shown, "compute": self.compute, "reduction": self.reduction}


def _cost(size: int | None) -> str:
    return "size unknown" if size is None else f"{size} bytes"
