"""Blocks of a model compiled: what lies between their matrix products is done by fewer passes over memory."""

from collections.abc import Sequence

import torch
import torch._dynamo
from torch import nn
from torch._dynamo.exc import BackendCompilerFailed

from fulltune.base.errors import RecipeError

_GRAPHS = 32
"""Of the code of a block, at most: for training and measuring, one row and several, checkpointing, kinds of attention.

Beyond it torch goes on uncompiled; it would from 8 on.
"""


def compile_blocks(blocks: Sequence[nn.Module], device: str) -> None:
    """Have each block's forward pass compiled when it is first made; RecipeError if nothing can be compiled here.

    One graph holds for all lengths and all blocks that are alike, so that no length is compiled anew. It is the forward
    of a block that is replaced and not the block: its weights keep their names, and hooks of engines and gradient
    checkpointing stay around it.
    """
    torch.compiler.reset()  # earlier runs of this process have graphs of the same code, whose number is limited
    torch._dynamo.config.recompile_limit = _GRAPHS
    _require_compiler(device)
    for block in blocks:
        block.forward = torch.compile(block.forward, dynamic=True)


def _require_compiler(device: str) -> None:
    """Compiles next to nothing, so that what is missing is known before anything is trained."""
    try:
        torch.compile(torch.sin, dynamic=True)(torch.zeros(2, device=device))
    except BackendCompilerFailed as fault:
        raise RecipeError(
            f"nothing can be compiled here: {str(fault).splitlines()[0]}",
            where="train.compile",
            mend="install a C++ compiler (g++), or what the message names; or train.compile=false",
        ) from fault
