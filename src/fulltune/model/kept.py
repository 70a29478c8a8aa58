"""What is kept of a block that is made again in the backward pass: what is dear to make, and not large.

Matrix products take nearly all of a block's time, and their results are a small part of what it leaves (Korthikanti et
al. 2022, arXiv 2205.05198, choose what is made again by the same measure).
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

import torch
from torch.utils.checkpoint import CheckpointPolicy, create_selective_checkpoint_contexts

# Not bmm: by it attention that writes its weights out makes a number for each pair of tokens, which would be the most.
_PRODUCTS = ("aten::mm", "aten::addmm", "aten::_grouped_mm", "aten::_scaled_mm", "aten::_scaled_grouped_mm")

_ATTENTION = (
    "aten::_scaled_dot_product_flash_attention",
    "aten::_scaled_dot_product_efficient_attention",
    "aten::_scaled_dot_product_cudnn_attention",
    "aten::_scaled_dot_product_flash_attention_for_cpu",
    "flash_attn::_flash_attn_forward",
    "flash_attn::_flash_attn_varlen_forward",
    "torch_attn::_varlen_attn",
)
"""Kernels that hold no weights of attention; those of flash-attn are there where it is installed."""

_DROPOUT = "dropout_p"


def products_kept() -> Callable[[], tuple[AbstractContextManager[Any], AbstractContextManager[Any]]]:
    """Contexts of torch's checkpoint: of the first time, in which results are kept, and of the second."""
    return partial(create_selective_checkpoint_contexts, _policy)


def _policy(_: object, operation: Any, *given: Any, **named: Any) -> CheckpointPolicy:
    name = operation._schema.name if isinstance(operation, torch._ops.OpOverload) else ""
    kept = name in _PRODUCTS or (name in _ATTENTION and not _drops(operation, given, named))
    return CheckpointPolicy.MUST_SAVE if kept else CheckpointPolicy.PREFER_RECOMPUTE


def _drops(operation: Any, given: tuple[Any, ...], named: dict[str, Any]) -> bool:
    """Whether attention draws random numbers.

    If it were left out the second time, they would be drawn by what comes after it, whose masks would be others.
    """
    names = [argument.name for argument in operation._schema.arguments]
    if _DROPOUT not in names:  # torch's kernel of varying lengths has none
        return False
    place = names.index(_DROPOUT)
    asked = given[place] if place < len(given) else named.get(_DROPOUT, 0.0)
    return bool(asked)
