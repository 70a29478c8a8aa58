"""Cross-entropy behind a linear head, with its gradients made in the forward pass."""

from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


def head_loss(hidden: Tensor, weight: Tensor, labels: Tensor, weights: Tensor, *, scale: float, size: int) -> Tensor:
    """Sum of weight * -log p(label) over the tokens, float32, where logits = scale * hidden @ weight.T.

    hidden [tokens, width]; weight [vocab, width]; labels, weights [tokens]. Logits of `size` tokens exist at once.
    While they do, the gradients of hidden and weight are made of them, so that the backward pass needs neither logits
    nor their matrix product again (Hsu et al. 2024, arXiv 2410.10989); in float32 they are the only tensor of their
    size. Products are made in autocast's format, the softmax in float32; gradients of several pieces are added up in
    float32. Not for float16, in which gradients that no loss scale has lifted vanish.
    """
    device = hidden.device.type
    computed = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype
    way = _Way(scale, size, computed)
    return cast(Tensor, _HeadLoss.apply(hidden, weight, labels, weights, way))  # type: ignore[no-untyped-call]


@dataclass(frozen=True, slots=True)
class _Way:
    scale: float
    size: int
    computed: torch.dtype


class _HeadLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, labels: Tensor, weights: Tensor, way: _Way) -> Tensor:
        total = hidden.new_zeros((), dtype=torch.float32)
        narrow, head = hidden.to(way.computed), weight.to(way.computed)
        of_hidden = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        of_weight: Tensor | None = None
        room = hidden.new_empty(min(way.size, len(labels)), len(weight), dtype=torch.float32)
        for start in range(0, len(labels), way.size):
            part = slice(start, start + way.size)
            label = labels[part, None]
            logits = _logits(narrow[part], head, way.scale, room)
            top, chosen = logits.amax(1, keepdim=True), logits.gather(1, label)
            exps = logits.sub_(top).exp_()
            sums = exps.sum(1, keepdim=True)
            total += ((sums.log() + top - chosen)[:, 0] * weights[part]).sum()
            if not any(ctx.needs_input_grad):
                continue
            # d(-log p(label)) / d(logits) = exps / sums - [label]; the factors go to the narrow side of both products.
            slopes = exps.scatter_add_(1, label, -sums).to(way.computed)
            factors = way.scale * weights[part, None] / sums
            if of_hidden is not None:
                of_hidden[part] = (slopes @ head) * factors
            if ctx.needs_input_grad[1]:
                of_weight = _added(of_weight, slopes, (narrow[part] * factors).to(way.computed))
        if ctx.needs_input_grad[1]:
            of_weight = torch.zeros_like(weight) if of_weight is None else of_weight.to(weight.dtype)
        ctx.made = (of_hidden, of_weight)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor | None, ...]:
        made, ctx.made = ctx.made, None
        if made is None:
            raise AssertionError("these gradients are made once, and were given away")
        of_hidden, of_weight = (None if gradient is None else gradient.mul_(slope) for gradient in made)
        return of_hidden, of_weight, None, None, None


def _logits(hidden: Tensor, head: Tensor, scale: float, room: Tensor) -> Tensor:
    """[tokens, vocab] in float32, written into `room`, which has place for as many tokens or more."""
    logits = room[: len(hidden)]
    if hidden.dtype == torch.float32:
        torch.mm(hidden, head.T, out=logits)
    else:
        logits.copy_(hidden @ head.T)
    return logits if scale == 1 else logits.mul_(scale)


def _added(total: Tensor | None, slopes: Tensor, hidden: Tensor) -> Tensor:
    """The weight's gradient [vocab, width] with that of one more piece; of several pieces it is float32."""
    if total is None:
        return slopes.T @ hidden
    if slopes.dtype == torch.float32:
        return total.addmm_(slopes.T, hidden)
    return total.float().add_(slopes.T @ hidden)
