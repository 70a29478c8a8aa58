"""Cross-entropy behind a linear head, with its gradients made in the forward pass."""

from collections.abc import MutableMapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import pad
from torch.utils.weak import WeakTensorKeyDictionary

from fulltune.adding import given
from fulltune.base.memory import NARROWED


def head_loss(hidden: Tensor, weight: Tensor, labels: Tensor, weights: Tensor, *, scale: float, size: int) -> Tensor:
    """Sum of weight * -log p(label) over the tokens, float32, where logits = scale * hidden @ weight.T.

    hidden [tokens, width]; weight [vocab, width]; labels, weights [tokens]. Logits of `size` tokens exist at once.
    While they do, the gradients of hidden and weight are made of them, so that the backward pass needs neither logits
    nor their matrix product again (Hsu et al. 2024, arXiv 2410.10989); they are the only tensor of their size, but for
    NARROWED tokens in float32 where products are made in 16 bits. Products are made in autocast's format, the softmax
    in float32; gradients of several pieces are added up in float32. Not for float16, in which gradients that no loss
    scale has lifted vanish.
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


_STEP = 32
"""In 16 bits a multiple of so many tokens is computed: on a CPU each new number has kernels and memory of its own."""


_held: MutableMapping[Tensor, Tensor] = WeakTensorKeyDictionary()


class _HeadLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, labels: Tensor, weights: Tensor, way: _Way) -> Tensor:
        total, tokens = hidden.new_zeros((), dtype=torch.float32), len(hidden)
        narrow, head = hidden.to(way.computed), _narrowed(weight, way.computed)
        if way.computed != torch.float32:  # by tokens that weigh nothing
            more = -tokens % _STEP
            narrow, labels, weights = pad(narrow, (0, 0, 0, more)), pad(labels, (0, more)), pad(weights, (0, more))
        of_hidden = narrow.new_empty(narrow.shape, dtype=hidden.dtype) if ctx.needs_input_grad[0] else None
        of_weight: Tensor | None = None
        room = hidden.new_empty(min(way.size, len(labels)), len(weight), dtype=way.computed)
        for start in range(0, len(labels), way.size):
            part = slice(start, start + way.size)
            slopes = room[: len(labels[part])]
            losses, sums = _softmax(narrow[part], head, labels[part, None], way.scale, slopes)
            total += (losses * weights[part]).sum()
            # d(-log p(label)) / d(logits) = slopes / sums; the factors go to the narrow side of both products.
            factors = way.scale * weights[part, None] / sums
            if of_hidden is not None:
                of_hidden[part] = (slopes @ head) * factors
            if ctx.needs_input_grad[1]:
                of_weight = _added(of_weight, slopes, (narrow[part] * factors).to(way.computed))
        if ctx.needs_input_grad[1]:
            of_weight = torch.zeros_like(weight) if of_weight is None else of_weight
        ctx.made, ctx.weight = (None if of_hidden is None else of_hidden[:tokens], of_weight), weight
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor | None, ...]:
        made, ctx.made = ctx.made, None
        if made is None:
            raise AssertionError("these gradients are made once, and were given away")
        of_hidden, of_weight = made
        if of_hidden is not None:
            of_hidden.mul_(slope)
        if of_weight is not None:  # widened here, where there are no logits any more
            of_weight = given(ctx.weight, of_weight, slope)
        return of_hidden, of_weight, None, None, None


def _narrowed(weight: Tensor, computed: torch.dtype) -> Tensor:
    """The weight in another format, each time in the same memory: it is large, and others lie where it lay."""
    if weight.dtype == computed:
        return weight
    held = _held.get(weight)
    if held is None or (held.shape, held.dtype, held.device) != (weight.shape, computed, weight.device):
        held = _held[weight] = torch.empty_like(weight, dtype=computed)
    return held.copy_(weight)


def _softmax(hidden: Tensor, head: Tensor, label: Tensor, scale: float, slopes: Tensor) -> tuple[Tensor, Tensor]:
    """-log p(label) [tokens], and the sums [tokens, 1] by which `slopes` [tokens, vocab], which is filled, is divided.

    In 16 bits logits become float32 a few tokens at a time.
    """
    if slopes.dtype == torch.float32:
        return _in_place(torch.mm(hidden, head.T, out=slopes), label, scale)
    room = slopes.new_empty(min(NARROWED, len(slopes)), len(head), dtype=torch.float32)
    losses, sums = label.new_empty(len(label), dtype=torch.float32), label.new_empty(label.shape, dtype=torch.float32)
    for start in range(0, len(label), NARROWED):
        now = slice(start, start + NARROWED)
        narrow = torch.mm(hidden[now], head.T, out=slopes[now])
        logits = room[: len(narrow)].copy_(narrow)
        losses[now], sums[now] = _in_place(logits, label[now], scale)
        narrow.copy_(logits)
    return losses, sums


def _in_place(logits: Tensor, label: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """As `_softmax`, of logits before the scale, which become slopes: exp(logit - top), the label's less their sum."""
    if scale != 1:
        logits.mul_(scale)
    top, chosen = logits.amax(1, keepdim=True), logits.gather(1, label)
    sums = logits.sub_(top).exp_().sum(1, keepdim=True)
    logits.scatter_add_(1, label, -sums)
    return (sums.log() + top - chosen)[:, 0], sums


def _added(total: Tensor | None, slopes: Tensor, hidden: Tensor) -> Tensor:
    """The weight's gradient [vocab, width] with that of one more piece; of several pieces it is float32."""
    if total is None:
        return slopes.T @ hidden
    if slopes.dtype == torch.float32:
        return total.addmm_(slopes.T, hidden)
    return total.float().add_(slopes.T @ hidden)
