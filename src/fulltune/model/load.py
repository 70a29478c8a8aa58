"""Any transformers causal language model, checked: what is missing or damaged is named."""

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import nn
from transformers import AutoModelForCausalLM

from fulltune.base.errors import DataError
from fulltune.model import trust
from fulltune.model.buffers import outline, require_buffers
from fulltune.model.files import header
from fulltune.model.folder import base_folder, hush, load_config, unusable
from fulltune.model.varlen import VARLEN, attends_so, offer, require_known
from fulltune.recipe.schema import ModelSection

_DTYPES = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}


def load_model(section: ModelSection) -> nn.Module:
    """The model with float32 weights, whatever its file holds, all of them read from it and finite; in eval mode."""
    config = _trainable(section)
    try:
        # Without dtype the file's own is kept; AdamW on bf16 weights leaves 85% of them unchanged at a rate of 1e-5.
        model, info = AutoModelForCausalLM.from_pretrained(
            section.path,
            dtype=torch.float32,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
            **_attention(section),
            **trust.options(section),
            **trust.weights(section),
        )
    except Exception as fault:  # foreign code on foreign files
        raise unusable("model", section, fault) from fault
    _check_weights(model, info, section.path)
    if attends_so(model):
        require_known(model)
    if section.trust_remote_code:
        require_buffers(model, config, section.path)
    return cast(nn.Module, model)


def outline_model(section: ModelSection) -> nn.Module:
    """As `load_model` gives it but for its parameters, which have no memory (the meta device); buffers are made.

    Not for models with code of their own: whether loading them gives the same buffers is known when they are loaded.
    """
    config = _trainable(section)
    try:
        model = outline(config, **_attention(section), **trust.for_config(section, config)).eval()
    except Exception as fault:  # foreign code on a foreign config
        raise unusable("model", section, fault) from fault
    if attends_so(model):
        require_known(model)
    return model


def _trainable(section: ModelSection) -> Any:
    """The model's config; DataError if its weights are rounded."""
    hush()
    config = load_config(section)
    if config.to_dict().get("quantization_config"):
        raise DataError(
            "the weights are quantised, and rounded weights cannot be trained",
            where=section.path,
            mend="start from the model that it was made from",
        )
    return config


def _attention(section: ModelSection) -> dict[str, str]:
    if section.attention == VARLEN:
        if not torch.cuda.is_available():  # no training, which is refused: its result is measured, or written once more
            return {}
        offer()
    return {} if section.attention == "auto" else {"attn_implementation": section.attention}


def empty_model(section: ModelSection) -> nn.Module:
    """The model's shape without its weights (on the meta device): enough to plan by, at no cost."""
    hush()
    config = load_config(section)
    try:
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config, **trust.for_config(section, config))
    except Exception as fault:  # foreign code on a foreign config: an unknown activation is a KeyError
        raise unusable("model", section, fault) from fault
    return cast(nn.Module, model)


def stored_dtype(section: ModelSection) -> str | None:
    """Number format of most weights on disk (`bfloat16`); None if the files do not say."""
    counts: Counter[str] = Counter()
    for path in base_folder(section).glob("*.safetensors"):
        for entry in header(path)[0].values():
            counts[entry["dtype"]] += math.prod(entry["shape"])
    known = [_DTYPES[name] for name, _ in counts.most_common() if name in _DTYPES]
    return known[0] if known else None


def _check_weights(model: Any, info: dict[str, Any], where: str) -> None:
    """Every weight came from the file, with the right shape, and is a number."""
    faults = []
    if info["missing_keys"]:
        faults.append("missing: " + ", ".join(sorted(info["missing_keys"])[:8]))
    for name, found, wanted in sorted(info["mismatched_keys"])[:8]:
        faults.append(f"{name}: the file has shape {tuple(found)}, the config wants {tuple(wanted)}")
    faults += [str(message) for message in info["error_msgs"]]
    if not faults:
        faults = [
            f"{name}: {int((~torch.isfinite(weight)).sum())} values are not finite"
            for name, weight in model.named_parameters()
            if not bool(torch.isfinite(weight).all())
        ]
    if faults:
        raise unfit(faults, where)


def unfit(faults: Sequence[str], where: str) -> DataError:
    """Weights that no run may start from."""
    return DataError(
        "the weights cannot be trained from: " + "; ".join(faults),
        where=where,
        mend="get the model's files again; a weight that is not read would start at random",
    )
