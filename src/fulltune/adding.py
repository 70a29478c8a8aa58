"""Gradients that our layers add to a weight's `.grad` themselves.

Autograd wants each of them as a tensor of the weight's size and format, then adds it to the one that is there. Of a
vocabulary's matrix that is the largest tensor of a pass, made and added twice where head and embedding are tied,
though an embedding's gradient has one row for each token.
"""

from collections.abc import Iterable, MutableMapping
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.functional import embedding
from torch.utils.weak import WeakTensorKeyDictionary

_added: MutableMapping[Tensor, bool] = WeakTensorKeyDictionary()
"""Weights of which it was asked."""
_first: MutableMapping[Tensor, Tensor] = WeakTensorKeyDictionary()
"""Gradients of 16 bits to which none was added yet: as float32 they would hold the same numbers in twice the memory."""


def add_in_place(model: nn.Module) -> None:
    """From now on layers of this package add the gradients of this model's weights to `.grad`, and the embedding too.

    For a model whose gradients nobody else waits for: neither hooks that autograd calls when one has arrived, nor
    `torch.autograd.grad`, hear of them.
    """
    # Others are left to autograd, which lays a gradient as its weight lies: fused kernels take them number by number.
    _added.update((weight, True) for weight in model.parameters() if weight.is_contiguous())
    module = cast(Any, model).get_input_embeddings()
    if type(module) is nn.Embedding and not (module.max_norm or module.scale_grad_by_freq or module.sparse):
        cast(Any, module).forward = partial(_embedded, module, module.forward)


def given(weight: Tensor, gradient: Tensor, factor: Tensor | None = None) -> Tensor | None:
    """What a Function's backward returns for a weight, of a gradient that is nobody else's and will be multiplied."""
    if weight not in _added:
        return _whole(weight, gradient, factor)
    if factor is None and gradient.dtype != weight.dtype and weight.grad is None and weight not in _first:
        _first[weight] = gradient
        return None
    settle([weight])
    if weight.grad is None:
        weight.grad = _whole(weight, gradient, factor)
    else:
        weight.grad.add_(gradient, alpha=1 if factor is None else float(factor))
    return None


def _whole(weight: Tensor, gradient: Tensor, factor: Tensor | None) -> Tensor:
    whole = gradient.to(weight.dtype)
    return whole if factor is None else whole.mul_(factor)


def settle(weights: Iterable[Tensor]) -> None:
    """All gradients of these lie in `.grad`, in the weight's format: whoever added them may look."""
    for weight in weights:
        first = _first.pop(weight, None)
        if first is not None:
            whole = first.to(weight.dtype)
            weight.grad = whole if weight.grad is None else weight.grad.add_(whole)


def drop(weights: Iterable[Tensor]) -> None:
    """Those that `settle` would see to are of no use."""
    for weight in weights:
        _first.pop(weight, None)


def _embedded(module: nn.Embedding, before: Any, tokens: Tensor) -> Tensor:
    if not torch.is_grad_enabled() or not module.weight.requires_grad:
        return cast(Tensor, before(tokens))
    return cast(Tensor, _Embedded.apply(module.weight, tokens, module.padding_idx))  # type: ignore[no-untyped-call]


class _Embedded(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weight: Tensor, tokens: Tensor, padding: int | None) -> Tensor:
        ctx.save_for_backward(weight, tokens)
        ctx.padding = padding
        return embedding(tokens, weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slope: Tensor) -> tuple[None, None, None]:
        weight, tokens = ctx.saved_tensors
        if weight.grad is None:
            weight.grad = torch.zeros_like(weight)
        rows = slope.reshape(-1, slope.shape[-1]).to(weight.dtype)
        if ctx.padding is not None:
            rows = rows.masked_fill(tokens.reshape(-1, 1) == ctx.padding, 0)
        weight.grad.index_add_(0, tokens.reshape(-1), rows)
        return None, None, None
