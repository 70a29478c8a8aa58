"""The MLP of each block, tile by tile: what it makes of one tile of tokens is there at a time, and made again."""

from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from fulltune.base.errors import RecipeError
from fulltune.model.facts import mlps

_WHERE = "memory.mlp_tile"
_PROBED = 4
"""Tokens in two tiles."""


def tile_mlps(model: nn.Module, tokens: int) -> None:
    """From now on MLPs compute so many tokens at once, and again in the backward pass (ALST: arXiv 2506.13996, 3.1.2).

    Inside of an MLP a token takes several times as many numbers as outside. Of each tile its input is kept, which the
    whole pass keeps too. It is the forward of a module that is replaced: weights keep their names and their places.
    RecipeError if blocks have no MLP of their own, or one that looks at other tokens.
    """
    found = mlps(model)
    if not found:
        raise RecipeError(
            f"{type(model).__name__} has no MLP in each block that acts on each token alone",
            where=_WHERE,
            mend="leave memory.mlp_tile out; memory.checkpointing=full and smaller micro-batches save memory too",
        )
    _require_apart(found[0])
    for module in found:
        cast(Any, module).forward = partial(_tiled, module.forward, tokens)


def _tiled(whole: Any, tokens: int, hidden: Tensor) -> Tensor:
    """[..., width] -> [..., width]."""
    line = hidden.reshape(1, -1, hidden.shape[-1])
    if line.shape[1] <= tokens:
        return cast(Tensor, whole(hidden))
    again = partial(checkpoint, whole, use_reentrant=False) if torch.is_grad_enabled() else whole
    return torch.cat([again(tile) for tile in torch.split(line, tokens, dim=1)], dim=1).view(hidden.shape)


@torch.no_grad()
def _require_apart(module: nn.Module) -> None:
    """Some would give a token other numbers beside others: those that mix in the one before it, as RWKV does."""
    weight = max(module.parameters(), key=lambda one: one.ndim)
    width = min(weight.shape)
    before = module.training
    module.eval()
    try:
        given = torch.linspace(-1, 1, _PROBED * width, device=weight.device, dtype=weight.dtype).view(1, _PROBED, width)
        whole = module(given)
        parts = torch.cat([module(tile) for tile in torch.split(given, _PROBED // 2, dim=1)], dim=1)
    finally:
        module.train(before)
    if not torch.allclose(whole, parts, rtol=1e-2, atol=1e-3 * float(whole.abs().max())):
        raise RecipeError(
            f"{type(module).__name__} looks at other tokens than its own, and cannot be computed tile by tile",
            where=_WHERE,
            mend="leave memory.mlp_tile out",
        )
