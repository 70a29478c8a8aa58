"""Causal attention of packed examples by torch's kernel for sequences of varying lengths, on a GPU: without a mask.

The kernel is that of flash attention (Dao 2023, arXiv 2307.08691), which torch brings along, so nothing else is to be
installed for it. Where examples begin is known before they are on the device (`Batch.bounds`), so no block asks it.
"""

import inspect
from collections.abc import MutableMapping
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask
from transformers.modeling_utils import AttentionInterface

from fulltune.base.errors import MachineError, RecipeError
from fulltune.model.attention import plain
from fulltune.model.facts import head_size, plainly_causal

VARLEN = "varlen"
"""The name of it for `model.attention`, and for transformers."""

_LARGEST = 256
"""Numbers of a head."""
_NEEDED = frozenset({"scale", "window_size", "enable_gqa"})
"""What the kernel must take; first versions of it did not."""


def offer() -> None:
    """Tell transformers of it; MachineError if this torch has no such kernel."""
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        known: frozenset[str] = frozenset()
    else:
        known = frozenset(inspect.signature(varlen_attn).parameters)
    if not known >= _NEEDED:
        raise MachineError(
            f"torch {torch.__version__} has no attention of varying lengths that knows heads that share keys",
            where="model.attention",
            mend="torch 2.13 or later, or model.attention=flash_attention_2",
        )
    AttentionInterface.register(VARLEN, _attend)
    AttentionMaskInterface.register(VARLEN, _mask)


def require_known(model: nn.Module) -> None:
    """RecipeError if it is not known that a model asks no more of its attention, or if the kernel has no such heads."""
    config = cast(Any, model).config.get_text_config()
    size, what = head_size(config), None
    if not plainly_causal(model, config):
        what = f"of {type(model).__name__} it is not known that its attention is causal and no more"
    elif size % 8 or size > _LARGEST:
        what = f"torch's kernel has heads of at most {_LARGEST} numbers, a multiple of 8, and these have {size}"
    if what is not None:
        raise RecipeError(what, where="model.attention", mend="model.attention=flash_attention_2, or leave it out")


def attends_so(model: nn.Module) -> bool:
    """Whether a model was loaded with it."""
    return bool(cast(Any, model).config._attn_implementation == VARLEN)


def _mask(
    batch_size: int, q_length: int, kv_length: int, *given: Any, attention_mask: Tensor | None = None, **named: Any
) -> Tensor | None:
    """None where tokens see all before them: that is said by bounds. Else as `sdpa` has it, for answers in batches."""
    if attention_mask is None and q_length == kv_length:
        return None
    return cast(
        "Tensor | None", sdpa_mask(batch_size, q_length, kv_length, *given, attention_mask=attention_mask, **named)
    )


def _attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    cu_seq_lens_q: Tensor | None = None,
    max_length_q: int | None = None,
    **said: Any,
) -> tuple[Tensor, None]:
    """As `sdpa_attention_forward`, which says what these are, and makes what has a mask or keys of earlier passes."""
    from torch.nn.attention.varlen import varlen_attn

    rows, heads, length, size = query.shape
    if attention_mask is not None or key.shape[2] != length:
        return cast("tuple[Tensor, None]", sdpa_attention_forward(module, query, key, value, attention_mask, **said))
    others = {name: one for name, one in said.items() if name not in ("cu_seq_lens_k", "max_length_k")}
    if not plain(module, **others):
        raise AssertionError(f"{type(module).__name__} wants more of its attention than that it is causal")
    if cu_seq_lens_q is None or max_length_q is None:
        cu_seq_lens_q, max_length_q = _found(said.get("position_ids"), rows, length, query.device)
    device = query.device.type
    # Norms of queries and keys give float32 under autocast, of which the kernel knows nothing.
    computed = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else query.dtype
    asked, known, told = (tensor.transpose(1, 2).flatten(0, 1).to(computed) for tensor in (query, key, value))
    found = varlen_attn(
        asked,
        known,
        told,
        cu_seq_lens_q,
        cu_seq_lens_q,
        max_length_q,
        max_length_q,
        scale=said.get("scaling"),
        window_size=(-1, 0),
        enable_gqa=heads != key.shape[1],
    )
    return cast(Tensor, found).view(rows, length, heads, size), None


_read: MutableMapping[Tensor, tuple[Tensor, int]] = WeakTensorKeyDictionary()
"""By positions, since all blocks of a model are given the same ones."""


def _found(positions: Tensor | None, rows: int, length: int, device: torch.device) -> tuple[Tensor, int]:
    """Bounds, and tokens of the longest, where nobody told: an example begins where positions do."""
    if positions is None:
        return torch.arange(0, rows * length + 1, length, dtype=torch.int32, device=device), length
    if positions not in _read:
        first = (positions.expand(rows, -1) == 0).clone()
        first[:, 0] = True  # a row is never one with the row before it
        starts = first.flatten().nonzero()[:, 0]
        ends = torch.cat([starts, starts.new_tensor([rows * length])])
        _read[positions] = ends.int(), int(ends.diff().max())
    return _read[positions]
