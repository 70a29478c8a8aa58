"""Lion: the sign of an interpolated momentum, and one moment instead of two."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer


class Lion(Optimizer):
    """Lion (Chen et al. 2023, arXiv 2302.06675, algorithm 2), with decoupled decay.

    u = sign(b1 m + (1 - b1) g); w = w - rate (u + decay w); m = b2 m + (1 - b2) g. Every weight moves by the rate, so
    the paper takes a third to a tenth of AdamW's, and as much more decay.

    Each number is treated by itself. One weight tensor after the other: the same over all at once would be no faster on
    large ones, and would hold a second copy of the gradients meanwhile.
    """

    def __init__(
        self,
        params: Iterable[Any],
        *,
        lr: float = 1e-4,
        betas: tuple[float, float] = (0.9, 0.99),
        weight_decay: float = 0.0,
    ) -> None:
        """ValueError for `betas` that are not two numbers from 0 up to 1."""
        if len(betas) != 2 or not all(0 <= beta < 1 for beta in betas):
            raise ValueError(f"betas are two numbers from 0 up to 1, and not {betas}")
        super().__init__(params, {"lr": lr, "betas": tuple(betas), "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]  # noqa: ARG002 - torch's signature
        """Move every parameter that has a gradient."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._move(parameter, parameter.grad, group)

    def _move(self, parameter: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        state, rate, (seen, kept) = self.state[parameter], group["lr"], group["betas"]
        if not state:
            state["exp_avg"] = torch.zeros_like(gradient)
        moment = state["exp_avg"]
        parameter.mul_(1 - rate * group["weight_decay"])
        parameter.add_(moment.lerp(gradient, 1 - seen).sign_(), alpha=-rate)
        moment.lerp_(gradient, 1 - kept)
