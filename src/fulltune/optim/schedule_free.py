"""Schedule-free AdamW: an average of the weights in place of a rate that falls."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from fulltune.optim.groups import Group
from fulltune.optim.pulls import ScheduleFreeAverage


class ScheduleFreeAdamW(Optimizer):
    """Schedule-free AdamW (Defazio et al. 2024, arXiv 2405.15682, algorithm 1), its decay at y.

    Weights while training are y, between the average x and a sequence z that moves: y = (1 - b1) z + b1 x. At update t
    z' = z - rate (g / (sqrt(v) + eps) + decay y) and x' = (1 - c) x + c z', where c is this update's part of all
    squared rates so far, so that updates of the warm-up count less. The model is x: it is what is measured and written.

    z is not kept, since z - x = (y - x) / (1 - b1); so two tensors stand beside the weights, as with AdamW. x is kept
    by `average`, which puts it in the place of the weights wherever the model is looked at.
    """

    def __init__(
        self,
        groups: Sequence[Group],
        params: Sequence[dict[str, Any]],
        *,
        average: ScheduleFreeAverage,
        lr: float,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
    ) -> None:
        """ValueError for `betas` that are not two numbers from 0 up to 1, the first above 0."""
        if len(betas) != 2 or not (0 < betas[0] < 1 and 0 <= betas[1] < 1):
            raise ValueError(f"betas are two numbers below 1, the first of them above 0, and not {betas}")
        super().__init__(params, {"lr": lr, "betas": tuple(betas), "eps": eps, "weight_decay": 0.0})
        self._average = average
        self._names = {p: n for group in groups for n, p in zip(group.names, group.parameters, strict=True)}

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]  # noqa: ARG002 - torch's signature
        """Move every parameter that has a gradient, and its average."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._move(parameter, parameter.grad, group)

    def _move(self, y: nn.Parameter, gradient: Tensor, group: dict[str, Any]) -> None:
        rate, (near, kept) = group["lr"], group["betas"]
        x, state = self._average.of(self._names[y], y), self.state[y]
        if not state:
            state |= {"step": 0, "largest": 0.0, "sum": 0.0, "exp_avg_sq": torch.zeros_like(gradient)}
        state["step"] += 1
        state["largest"] = max(rate, state["largest"])
        state["sum"] += state["largest"] ** 2
        part = state["largest"] ** 2 / state["sum"] if state["sum"] else 0.0
        second = state["exp_avg_sq"].mul_(kept).addcmul_(gradient, gradient, value=1 - kept)
        root = second.div(1 - kept ** state["step"]).sqrt_().add_(group["eps"])
        ahead = (gradient / root).add_(y, alpha=group["weight_decay"])
        apart = (y - x).div_(1 - near)
        y.add_(apart, alpha=near * part).add_(ahead, alpha=-rate * (1 - near * (1 - part)))
        x.add_(apart, alpha=part).add_(ahead, alpha=-rate * part)
