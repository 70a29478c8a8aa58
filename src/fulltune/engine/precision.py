"""Computing in fewer bits than the weights have: autocast, and the loss scale that float16 needs."""

from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, cast

import torch
from torch import Tensor

from fulltune.base.formats import PrecisionPlan

_FIRST = 2.0**16
_GROWS_AFTER = 2000
"""Updates in a row without an overflow. Start, growth and halving are those of torch.amp.GradScaler."""


def autocast(precision: PrecisionPlan, device: str) -> AbstractContextManager[Any]:
    """A context in which matrix products are made in the plan's number format, whatever the weights are held in.

    Weights held in 16 bits need it too: losses and norms stay float32 in it, and models that mix formats run (Mamba
    keeps its residual stream in float32).
    """
    if precision.compute == "float32":
        return nullcontext()
    # Uncached: the cache would hold a 2-byte copy of every weight until the forward pass ends, also where checkpointing
    # frees all else; and no weight but a tied one is used twice in it.
    dtype = cast(torch.dtype, vars(torch)[precision.compute])
    return torch.autocast(device.split(":")[0], dtype, cache_enabled=False)


class LossScale:
    """A power of two by which losses are multiplied, so that small gradients do not vanish in float16.

    Micikevicius et al. 2018, arXiv 1710.03740. Gradients are divided by it before anything looks at them.
    It judges by the norm of all gradients, which every rank knows, where torch's scaler asks each device for itself.
    An overflow halves the scale and the same update is made again. Only when a scale of 1 overflows too is it the
    model's own fault; then the scale is as before the first try, since an update that is skipped changes nothing.
    """

    def __init__(self) -> None:
        self._scale, self._calm = _FIRST, 0
        self._before: tuple[float, int] | None = None

    def scaled(self, loss: Tensor) -> Tensor:
        """To call backward on."""
        return loss * self._scale

    def unscale(self, gradients: Iterable[Tensor]) -> None:
        """In place, and before anything else looks at them: clipping would take scaled gradients for long ones."""
        for gradient in gradients:
            gradient.mul_(1 / self._scale)

    def settle(self, *, applied: bool) -> bool:
        """After an update: grow or shrink. Returns whether the update is to be made again."""
        if applied:
            self._before, self._calm = None, self._calm + 1
            if self._calm == _GROWS_AFTER:
                self._scale, self._calm = 2 * self._scale, 0
            return False
        first = self._before or (self._scale, self._calm)
        if self._scale / 2 < 1:
            (self._scale, self._calm), self._before = first, None
            return False
        self._scale, self._calm, self._before = self._scale / 2, 0, first
        return True

    def numbers(self) -> dict[str, Any]:
        """What a checkpoint remembers. Checkpoints lie between updates, so no update is half tried."""
        return {"scale": self._scale, "calm": self._calm}

    def restore(self, numbers: dict[str, Any]) -> None:
        """Go on from there."""
        self._scale, self._calm, self._before = float(numbers["scale"]), int(numbers["calm"]), None
