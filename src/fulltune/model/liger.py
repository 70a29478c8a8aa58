"""Norms and gated MLPs of a model by the fused kernels of liger-kernel (Hsu et al. 2024, arXiv 2410.10989), on a GPU.

That package replaces classes and functions in the modules of transformers, for every model that the process makes
later, also for a result that is loaded to be verified, or on the host. Here it changes one model, and all else is put
back. Its rotary embedding is left out, for it is a function of such a module; its cross-entropy too, for ours needs no
logits; and what it makes of experts, which computes in TF32.
"""

import sys
from typing import Any, cast

import torch
from torch import Tensor, nn

from fulltune.base.errors import MachineError, RecipeError
from fulltune.model.facts import arithmetic, mlps
from fulltune.model.probe import CLOSE, CLOSE_IN_HALF

_WHERE = "model.liger"
_OFF = {"rope": False, "cross_entropy": False, "fused_linear_cross_entropy": False}
_NO_MLPS = {"swiglu": False, "geglu": False}


def fuse(model: nn.Module) -> None:
    """Have this model's norms and MLPs made by them.

    MachineError if the package is not there; RecipeError if it does not know the model, or if that says other things
    with it.
    """
    before = _said(model)
    kind = cast(Any, model).config.model_type
    if not _apply(model, kind):
        raise RecipeError(f"liger-kernel has no norms or MLPs for {kind}", where=_WHERE, mend="leave model.liger out")
    with arithmetic(model):
        close = CLOSE_IN_HALF if torch.is_autocast_enabled(before[0].device.type) else CLOSE
    for what, there, here in zip(("logits", "gradients"), before, _said(model), strict=True):
        apart = float((here - there).abs().max()) / float(there.abs().max())
        if not apart <= close:  # or not a number
            raise RecipeError(
                f"with the kernels of liger-kernel the model's {what} are others, by {apart:.1e} of the largest",
                where=_WHERE,
                mend="leave model.liger out, or take another version of liger-kernel",
            )


def _apply(model: nn.Module, kind: str) -> bool:
    """Whether anything of the model was changed; nothing else is."""
    try:
        from liger_kernel.transformers.monkey_patch import (
            MODEL_TYPE_TO_APPLY_LIGER_FN,
            _apply_liger_kernel_to_instance,
        )
    except ImportError as fault:
        raise MachineError(
            f"liger-kernel cannot be used here: {fault}",
            where=_WHERE,
            mend='pip install "fulltune[liger]", or leave model.liger out',
        ) from fault
    if kind not in MODEL_TYPE_TO_APPLY_LIGER_FN:
        return False
    forwards = {module: vars(module).get("forward") for module in model.modules()}
    modules = {name: module for name, module in sys.modules.items() if name.startswith("transformers.models.")}
    kept = {name: dict(vars(module)) for name, module in modules.items()}
    try:
        _apply_liger_kernel_to_instance(model=model, **_OFF, **({} if mlps(model) else _NO_MLPS))
    finally:
        for name, values in kept.items():
            vars(modules[name]).update(values)
    return any(vars(module).get("forward") is not forward for module, forward in forwards.items())


def _said(model: nn.Module) -> tuple[Tensor, Tensor]:
    """Logits of arbitrary tokens, and the gradient of a part of them with respect to the embedded tokens."""
    foreign, draws = cast(Any, model), torch.Generator().manual_seed(6)
    embed = foreign.get_input_embeddings()
    ids = torch.randint(embed.weight.shape[0], (1, 16), generator=draws).to(embed.weight.device)
    with torch.enable_grad(), arithmetic(model):
        embedded = embed(ids).detach().requires_grad_()
        logits = cast(Tensor, foreign(inputs_embeds=embedded, use_cache=False).logits).float()
        (slope,) = torch.autograd.grad(logits[0, :, :: max(1, logits.shape[-1] // 64)].square().sum(), embedded)
    return logits.detach(), slope.float()
