"""Which parameters share a rate, and which are decayed."""

from collections.abc import Collection, Iterable
from dataclasses import dataclass

from torch import nn


@dataclass(frozen=True, slots=True)
class Group:
    """Parameters that share a rate. `rate` is a part of the peak: 1 for all until layers differ."""

    names: tuple[str, ...]
    parameters: tuple[nn.Parameter, ...]
    rate: float
    decayed: bool


def groups(named: Iterable[tuple[str, nn.Parameter]], undecayed: Collection[str]) -> list[Group]:
    """Matrices are decayed; what `undecayed` names (biases, norms, embeddings) is not. Frozen ones are left out."""
    sides: dict[bool, list[tuple[str, nn.Parameter]]] = {True: [], False: []}
    for name, parameter in named:
        if parameter.requires_grad:
            sides[name not in undecayed].append((name, parameter))
    return [
        Group(tuple(n for n, _ in members), tuple(p for _, p in members), 1.0, decayed)
        for decayed, members in sides.items()
        if members
    ]
