"""Groups of weights as a plan names them: how fast each moves, and from when on."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupPlan:
    """Weights that share a rate."""

    rate: float
    """At its peak; 0: frozen for good."""
    weight_decay: float
    begins: int
    """The first update in which they move, from 0."""
    tensors: int
    parameters: int
    example: str
    """The name of one of them."""

    def __str__(self) -> str:
        later = f" from update {self.begins} on" if self.begins else ""
        how = f"rate {self.rate:.3g}{later}, decay {self.weight_decay:g}" if self.rate else "frozen"
        return f"{how}: {self.parameters:,} parameters of {self.tensors}, such as {self.example}"
