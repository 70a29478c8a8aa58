"""Buffers that no file holds, as a model's code makes them, and whether loading the model left them so."""

from collections.abc import Iterator
from typing import Any, cast

import torch
import transformers
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook
from transformers import AutoModelForCausalLM

from fulltune.base.errors import DataError


def require_buffers(model: nn.Module, config: Any, where: str) -> None:
    """DataError if a buffer that is not saved came back with other values than the model's code gives it.

    transformers builds a model without memory and fills it from the file; what the file lacks is whatever the memory
    held before, unless the model's `_init_weights` knows of it. transformers' own models do, foreign code often does
    not. Mending it here would not help whoever loads the result.
    """
    made = dict(_unsaved(outline(config, trust_remote_code=True)))
    lost = [name for name, value in _unsaved(model) if not _equal(value, made.get(name))]
    if lost:
        raise DataError(
            f"transformers {transformers.__version__} leaves buffers of this model's code undefined: {', '.join(lost)}",
            where=where,
            mend="set them in _init_weights of the model's code, or register them with persistent=True and save anew",
        )


def outline(config: Any, **how: Any) -> nn.Module:
    """The model as its code builds it, buffers in memory and float32 parameters without.

    `how`: what transformers is told besides.
    """

    def on_meta(_module: nn.Module, _name: str, parameter: nn.Parameter | None) -> nn.Parameter | None:
        if parameter is None or parameter.is_meta:
            return None  # nothing is replaced
        return nn.Parameter(parameter.to("meta"), requires_grad=parameter.requires_grad)

    hook = register_module_parameter_registration_hook(on_meta)  # type: ignore[arg-type]  # it may return one
    try:
        return cast(nn.Module, AutoModelForCausalLM.from_config(config, dtype=torch.float32, **how))
    finally:
        hook.remove()


def _unsaved(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    saved = model.state_dict(keep_vars=True).keys()
    return ((name, buffer) for name, buffer in model.named_buffers() if name not in saved)


def _equal(found: Tensor, made: Tensor | None) -> bool:
    if made is None or (found.dtype, found.shape) != (made.dtype, made.shape):
        return False
    return bool(((found == made) | (found.isnan() & made.isnan())).all())
