"""Muon for the matrices inside of blocks, AdamW for everything else: two of torch's optimizers as one."""

from collections.abc import Collection, Sequence
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer


class MuonAdamW(Optimizer):
    """Muon (Jordan et al. 2024, kellerjordan.github.io/posts/muon): a momentum made orthogonal by Newton-Schulz.

    That is for matrices that hidden states are multiplied by. Embeddings, the head, norms and biases are moved by
    AdamW, as its authors do. `adjust_lr_fn: match_rms_adamw` (Liu et al. 2025, arXiv 2502.16982) makes its updates as
    large as AdamW's are, so that both take the same rate and decay; `original` is that of its authors.

    Both keep what they remember in this optimizer's `state`, and take rate and decay from its groups.
    """

    def __init__(
        self,
        params: Sequence[dict[str, Any]],
        *,
        matrices: Collection[nn.Parameter],
        lr: float,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        adjust_lr_fn: str = "match_rms_adamw",
        **muon: Any,
    ) -> None:
        """`betas` and `eps` are AdamW's; `muon`: what torch's Muon takes besides (`momentum`, `nesterov`, `ns_steps`).

        ValueError if there is no matrix.
        """
        if not matrices:
            raise ValueError("no matrix inside of a block is trained, and Muon is for nothing else")
        super().__init__(params, {"lr": lr, "weight_decay": 0.0})
        numbers = {id(matrix) for matrix in matrices}

        def those(inside: bool) -> list[dict[str, Any]]:
            return [
                {**group, "params": [p for p in group["params"] if (id(p) in numbers) is inside]}
                for group in self.param_groups
            ]

        self._muon = torch.optim.Muon(those(True), adjust_lr_fn=adjust_lr_fn, **muon)
        self._adamw = torch.optim.AdamW(those(False), betas=betas, eps=eps, fused=True)
        self._muon.state = self._adamw.state = self.state

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]  # noqa: ARG002 - torch's signature
        """Move every parameter that has a gradient."""
        for each in (self._muon, self._adamw):
            for group, own in zip(self.param_groups, each.param_groups, strict=True):
                own.update(lr=group["lr"], weight_decay=group["weight_decay"])
            each.step()  # type: ignore[no-untyped-call]
