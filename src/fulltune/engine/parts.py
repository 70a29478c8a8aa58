"""A weight that is moved part by part, so that what its update takes besides does not grow with it.

For optimizers that treat each number by itself. Of the head of Llama 3 with 8 billion parameters, 525 million numbers,
float32 copies of weight, gradient and moments with all that is made on the way would be 14.7 GiB by the
forecast's formula.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from fulltune.base.formats import BLOCK
from fulltune.engine.moments import SCALES


def in_parts(state: dict[str, Any], shape: torch.Size, numbers: int) -> Iterator[slice]:
    """Parts of so many numbers of a weight of this shape; meanwhile the optimizer's `state` is that of the part alone.

    `numbers` is a multiple of 256, that is of moments in 8 bits which share a scale. In the end the state is the
    weight's again, in the formats in which its parts were left. What counts updates counts one.
    """
    before, count = dict(state), shape.numel()
    whole: dict[str, Any] = {}
    for start in range(0, count, numbers):
        part = slice(start, min(start + numbers, count))
        state.clear()
        state.update({key: _of(key, value, part) for key, value in before.items()})
        yield part
        for key, value in state.items():
            if not _divided(value):
                whole[key] = value
                continue
            if key not in whole:
                whole[key] = _room(key, value, before.get(key), shape)
            _of(key, whole[key], part).copy_(value)
    state.clear()
    state.update(whole)


def _divided(value: Any) -> bool:
    return isinstance(value, Tensor) and value.ndim > 0


def _of(key: str, value: Any, part: slice) -> Any:
    """What of it belongs to the part: a view of what has a number for each of the weight's; else a copy."""
    if not _divided(value):
        return value.clone() if isinstance(value, Tensor) else value
    each = BLOCK if key.endswith(SCALES) else 1
    return value.view(-1)[part.start // each : -(-part.stop // each)]


def _room(key: str, value: Tensor, before: Tensor | None, shape: torch.Size) -> Tensor:
    """Where all parts of this go: what was there, if it has the format."""
    if before is not None and before.dtype == value.dtype:
        return before
    size = (-(-shape.numel() // BLOCK),) if key.endswith(SCALES) else shape
    return torch.empty(size, dtype=value.dtype, device=value.device)
