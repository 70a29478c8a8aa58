"""GaLore and APOLLO: moments of a projected gradient, for matrices inside of blocks; AdamW for all else."""

import hashlib
import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

_GROWTH, _TINY = 1.01, 1e-8
"""How much longer than the one before it an update of APOLLO may be, and what keeps divisors from 0: its authors'."""


class LowRankAdamW(Optimizer):
    """The shorter side of a matrix is projected onto `rank` numbers, and Adam's moments are of what comes of it.

    A gradient [m, n] becomes R = P^T G [rank, n] where m < n, else R = G P [m, rank]. P is made anew every `gap`
    updates; moments go on. A matrix with a side of `rank` or less keeps that side whole. Embeddings, the head, norms
    and biases are moved by AdamW. What both remember stands in this optimizer's `state`.
    """

    def __init__(
        self,
        params: Sequence[dict[str, Any]],
        *,
        matrices: Mapping[nn.Parameter, str],
        lr: float,
        rank: int,
        gap: int = 200,
        scale: float,
        **adam: Any,
    ) -> None:
        """`matrices`: those that are projected, by name; `adam`: `betas` and `eps`, of all weights.

        ValueError if there is no matrix, or for numbers that are none.
        """
        if not matrices:
            raise ValueError("no matrix inside of a block is trained, and nothing else is projected")
        if rank < 1 or gap < 1 or not 0 < scale < math.inf:
            raise ValueError(f"rank and gap are whole numbers from 1 on, scale is above 0, and not {rank, gap, scale}")
        super().__init__(params, {"lr": lr, "weight_decay": 0.0})
        self._matrices, self._rank, self._gap, self._scale = matrices, rank, gap, scale
        adam = {"betas": (0.9, 0.999), "eps": 1e-6, **adam}
        others = [{**g, "params": [p for p in g["params"] if p not in matrices]} for g in self.param_groups]
        self._adamw = torch.optim.AdamW(others, **adam, fused=True)
        self._betas, self._eps = adam["betas"], adam["eps"]
        self._adamw.state = self.state

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]  # noqa: ARG002 - torch's signature
        """Move every parameter that has a gradient."""
        for group, other in zip(self.param_groups, self._adamw.param_groups, strict=True):
            other.update(lr=group["lr"], weight_decay=group["weight_decay"])
            for parameter in group["params"]:
                if parameter in self._matrices and parameter.grad is not None:
                    direction = self._direction(parameter, parameter.grad, self.state[parameter])
                    parameter.mul_(1 - group["lr"] * group["weight_decay"]).add_(direction, alpha=-group["lr"])
        self._adamw.step()

    @abstractmethod
    def _direction(self, matrix: nn.Parameter, gradient: Tensor, state: dict[str, Any]) -> Tensor:
        """By the rate times which a matrix moves; `state` is empty the first time."""

    def _adam(self, projected: Tensor, state: dict[str, Any]) -> Tensor:
        """What Adam makes of a projected gradient, not corrected yet for moments that began at 0; it is counted."""
        if "exp_avg" not in state:
            state |= {"exp_avg": torch.zeros_like(projected), "exp_avg_sq": torch.zeros_like(projected)}
        (kept, squares), state["step"] = self._betas, state.get("step", 0) + 1
        first: Tensor = state["exp_avg"].lerp_(projected, 1 - kept)
        second: Tensor = state["exp_avg_sq"].mul_(squares).addcmul_(projected, projected, value=1 - squares)
        return first.div(second.sqrt().add_(self._eps))

    def _corrected(self, direction: Tensor, state: dict[str, Any]) -> Tensor:
        kept, squares = self._betas
        return direction.mul_(math.sqrt(1 - squares ** state["step"]) / (1 - kept ** state["step"]))

    def _small(self, matrix: Tensor) -> int:
        return int(min(self._rank, *matrix.shape))


class GaLore(LowRankAdamW):
    """GaLore (Zhao et al. 2024, arXiv 2403.03507): P has the gradient's first singular vectors, and leads back.

    A matrix moves by `scale` * P Adam(R). P is kept: [shorter side, rank].
    """

    def _direction(self, matrix: nn.Parameter, gradient: Tensor, state: dict[str, Any]) -> Tensor:
        wide = matrix.shape[0] < matrix.shape[1]
        if state.get("step", 0) % self._gap == 0:
            left, _, right = torch.linalg.svd(gradient, full_matrices=False)
            chosen = left[:, : self._small(matrix)] if wide else right[: self._small(matrix)].T
            state["projection"] = chosen.contiguous()
        projection: Tensor = state["projection"]
        moved = self._adam(projection.T @ gradient if wide else gradient @ projection, state)
        return self._corrected(projection @ moved if wide else moved @ projection.T, state).mul_(self._scale)


class Apollo(LowRankAdamW):
    """APOLLO (Zhu et al. 2024, arXiv 2412.05270): P is random, and only says how much longer the gradient is made.

    A matrix moves by its gradient, of which every row or column (those of the longer side, or with `whole` all of it,
    as APOLLO-Mini does) is made longer by |Adam(R)| / |R| of it, and all by the root of `scale`. An update is at most
    1% longer than the one before it (Chen et al. 2024, arXiv 2410.01623). P is drawn anew each time it is needed, by
    the matrix's name and how often it has changed, so it takes no memory.
    """

    def __init__(self, params: Sequence[dict[str, Any]], *, whole: bool, **given: Any) -> None:
        """`whole`: one factor for all of a matrix."""
        super().__init__(params, **given)
        self._whole = whole

    def _direction(self, matrix: nn.Parameter, gradient: Tensor, state: dict[str, Any]) -> Tensor:
        wide = matrix.shape[0] < matrix.shape[1]
        projection = self._drawn(matrix, state.get("step", 0) // self._gap, min(matrix.shape))
        projected = projection.T @ gradient if wide else gradient @ projection
        side = None if self._whole else (0 if wide else 1)
        longer = _length(self._adam(projected, state), side) / (_length(projected, side) + _TINY)
        return self._corrected(self._limited(gradient * longer, state), state).mul_(math.sqrt(self._scale))

    def _limited(self, direction: Tensor, state: dict[str, Any]) -> Tensor:
        """At most 1% longer than the last one, if that had a length."""
        length = torch.linalg.vector_norm(direction)
        before = state.get("length", torch.zeros_like(length))
        over = (length / (before + _TINY)).clamp(min=_GROWTH) / _GROWTH
        over = torch.where(before > 0, over, torch.ones_like(over))
        state["length"] = length / over
        return direction / over

    def _drawn(self, matrix: nn.Parameter, times: int, side: int) -> Tensor:
        """[shorter side, rank], of variance 1 / rank."""
        generator = torch.Generator(matrix.device)
        seed = hashlib.sha256(f"{self._matrices[matrix]}/{times}".encode()).digest()
        generator.manual_seed(int.from_bytes(seed[:6], "little"))
        rank = self._small(matrix)
        drawn = torch.randn(side, rank, generator=generator, device=matrix.device)
        return drawn.div_(math.sqrt(rank)).to(matrix.dtype)


def _length(tensor: Tensor, side: int | None) -> Tensor:
    """Of each row or column, to be broadcast; or of all."""
    length: Tensor = torch.linalg.vector_norm(tensor, dim=side, keepdim=side is not None)
    return length
