"""Fisher information: which weights some texts depend on. Estimated before the first update, kept in a file."""

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from fulltune.base import stop
from fulltune.base.errors import DivergedError, RecipeError
from fulltune.batch import Batch
from fulltune.engine.contract import Read
from fulltune.engine.native import NativeEngine
from fulltune.engine.tensors import write_tensors
from fulltune.objectives import Objective

Estimate = Callable[[int], Mapping[str, Tensor]]
"""From so many examples: by weight, of this process's shard."""


class _Squares:
    """A pull that moves nothing: adds up squared gradients."""

    on_gradients = True

    def __init__(self) -> None:
        self.sums: dict[str, Tensor] = {}

    def before(self, name: str, shard: Tensor, grad: Tensor) -> None:
        if name not in self.sums:
            self.sums[name] = torch.zeros_like(shard)
        self.sums[name].addcmul_(grad, grad)

    def after(self, name: str, shard: Tensor, lr: float) -> None:
        """Nothing is ever moved."""


def estimate(engine: NativeEngine, objective: Objective, batches: Iterable[Batch]) -> dict[str, Tensor]:
    """The diagonal of the empirical Fisher information for each token: sum over examples of g^2 / supervised tokens.

    g is the gradient of one example's summed loss. Tokens of an example are independent given those before them, so
    that the expectation of g^2 is the sum of those of its tokens. Each of `batches` has one example over all ranks.
    Dropout is off. DivergedError if a number is not finite; Interrupted where a signal came.
    """
    squares, weight = _Squares(), 0.0
    before = objective.training
    objective.eval()
    try:
        for batch in batches:
            stop.check_all(engine.any)
            with engine.micro(last=True):
                sums = engine.forward(batch)
                engine.backward(torch.stack([objective.weights[term] * total for term, total in sums.items()]).sum())
            engine.look(squares)
            weight += sum(objective.counts(batch).values())
    finally:
        objective.train(before)
    tokens = float(engine.sum(torch.tensor(weight, dtype=torch.float64)))
    broken = [name for name, value in squares.sums.items() if not bool(torch.isfinite(value).all())]
    if engine.any(bool(broken) or not tokens):
        raise DivergedError(
            f"the Fisher information of {', '.join(broken[:3]) or 'these examples'} is not finite",
            where="data.retention",
            mend="look at these rows, or train.precision=float32",
        )
    return {name: value / tokens for name, value in squares.sums.items()}


def write(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Whole or absent."""
    part = path.with_name(f"{path.name}.part")
    write_tensors(part, {name: value.contiguous() for name, value in tensors.items()})
    part.replace(path)


def reader(path: Path) -> Read:
    """Reads rows of what was written. RecipeError if the file cannot be read, or is of another model."""
    mend = "name the fisher.safetensors of a run of the same model, or leave it out: it is estimated then"
    try:
        opened: Any = safe_open(path, "pt")
    except (OSError, SafetensorError) as fault:
        raise RecipeError(f"the Fisher information cannot be read: {fault}", where=str(path), mend=mend) from fault
    names = set(opened.keys())

    def read(name: str, rows: slice | None) -> Tensor:
        if name not in names:
            raise RecipeError(f"there is no Fisher information of {name}", where=str(path), mend=mend)
        held: Tensor = opened.get_slice(name)[...] if rows is None else opened.get_slice(name)[rows]
        return held

    return read
