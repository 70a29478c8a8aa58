"""Which parameters share a rate: what is decayed, what is slower, frozen, or begins later."""

import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from torch import nn

from fulltune.base.errors import Fault, RecipeError


@dataclass(frozen=True, slots=True)
class Group:
    """Parameters that share a rate."""

    names: tuple[str, ...]
    parameters: tuple[nn.Parameter, ...]
    rate: float
    """As a part of the peak; 0: frozen for good."""
    decay: float
    """As a part of the recipe's weight decay."""
    start: float = 0.0
    """The share of the run behind which they move; before it their rate is 0."""
    matrices: frozenset[str] = frozenset()
    """Those of its names that are matrices inside of blocks."""


@dataclass(frozen=True, slots=True)
class Rule:
    """What is asked of the weights in whose names a regular expression is found."""

    match: str
    rate: float
    decay: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Parting:
    """By what weights are parted."""

    undecayed: Collection[str]
    """Biases, norms, embeddings: never decayed."""
    matrices: Collection[str] = ()
    """Matrices inside of blocks, by which hidden states are multiplied."""
    layers: Mapping[str, int] = field(default_factory=dict)
    """Of each weight: 0 for embeddings, then the blocks, and last what stands behind them."""
    layer_decay: float = 1.0
    """The rate of a layer, as a part of that of the layer above it."""
    unfreeze: float = 0.0
    """The share of the run over which layers begin to move, the highest first."""
    freeze: Sequence[str] = ()
    train_only: Sequence[str] = ()
    rules: Sequence[Rule] = ()
    """The first that matches a weight counts."""

    def of(self, name: str) -> tuple[float, float, float]:
        """Rate, decay and start of a weight."""
        rule = next((rule for rule in self.rules if re.search(rule.match, name)), Rule("", 1.0, 1.0))
        frozen = _found(self.freeze, name) or (bool(self.train_only) and not _found(self.train_only, name))
        top = max(self.layers.values(), default=0)
        below = top - self.layers[name] if self.layers else 0
        rate = 0.0 if frozen else rule.rate * self.layer_decay**below
        decay = 0.0 if name in self.undecayed or rate == 0 else rule.decay
        return rate, decay, self.unfreeze * below / top if top and rate else 0.0

    def require_all_used(self, names: Collection[str]) -> None:
        """RecipeError for every expression that no weight has in its name."""
        asked = {
            "optim.freeze": self.freeze,
            "optim.train_only": self.train_only,
            "optim.groups": [rule.match for rule in self.rules],
        }
        near = ", ".join(sorted(names)[:3])
        faults = [
            Fault(f"no weight has {pattern!r} in its name", where, f"the model's weights have names such as {near}")
            for where, patterns in asked.items()
            for pattern in patterns
            if not any(re.search(pattern, name) for name in names)
        ]
        if faults:
            raise RecipeError(faults=faults)


def _found(patterns: Iterable[str], name: str) -> bool:
    return any(re.search(pattern, name) for pattern in patterns)


def groups(named: Iterable[tuple[str, nn.Parameter]], by: Parting) -> list[Group]:
    """Parameters by what they share, those that are decayed first. What needs no gradient is left out."""
    parts: dict[tuple[float, float, float], list[tuple[str, nn.Parameter]]] = defaultdict(list)
    for name, parameter in named:
        if parameter.requires_grad:
            parts[by.of(name)].append((name, parameter))

    def order(part: tuple[float, float, float]) -> tuple[float, float, float]:
        rate, decay, start = part
        return -decay, -rate, start

    return [
        Group(
            tuple(n for n, _ in members),
            tuple(p for _, p in members),
            rate,
            decay,
            start,
            frozenset(n for n, _ in members if n in by.matrices),
        )
        for (rate, decay, start), members in ((part, parts[part]) for part in sorted(parts, key=order))
    ]


def begins(start: float, updates: int) -> int:
    """The first update, from 0, in which a group moves."""
    return round(start * updates)
