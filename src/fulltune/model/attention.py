"""Causal attention on a CPU as matrix products, in blocks of rows: less time than torch's own kernel takes.

That kernel makes some products once more in its backward pass, and leaves little of what lies above the diagonal out.
Here a block of rows sees keys up to its end and no further, of packed examples those of its own; heads that share keys
and values are rows of one product; and the weights of attention are kept for the backward pass.
Products and softmax are float32. Of a run in bfloat16 what comes in, what is kept and what goes out is bfloat16: its
own products of such small matrices save no time with two threads, and scores of 8 bits would cost exactness.
`benchmarks/results/attention.md` has what it saves.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast
from weakref import WeakSet

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from fulltune.base.memory import ATTENDED

_WANTED = 96
"""Rows of a product, queries of a key's heads together: more see more keys in vain, fewer are slow to multiply."""
_WITHOUT_MEANING = frozenset({"scaling", "position_ids", "use_cache", "output_router_logits"})
"""What models tell their attention besides: by how much scores are scaled, and what `sdpa` does not read."""

_FORMATS = (torch.float32, torch.bfloat16)

_ours: "WeakSet[nn.Module]" = WeakSet()
"""Modules of the models that were asked to attend so; transformers has one table of functions for all models."""


def attend_in_blocks(model: nn.Module) -> None:
    """Have a model's `sdpa` attention made here, where it is causal and no more; all else goes on to transformers.

    So does all of it where something else has taken the place of transformers' own function before.
    """
    if ALL_ATTENTION_FUNCTIONS["sdpa"] is sdpa_attention_forward:
        ALL_ATTENTION_FUNCTIONS["sdpa"] = _attend
    _ours.update(model.modules())


def _attend(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **said: Any
) -> tuple[Tensor, None]:
    """As `sdpa_attention_forward`, which says what these are."""
    # Asked first: a compiler that reads `_ours` comes by the weights through it, one block's for those of all.
    ours = not torch.compiler.is_compiling() and module in _ours
    if ours and _suits(query, key, value) and _plain(module, **said):
        blocks = _blocks(query, key, attention_mask)
        if max((block.stop - block.first for block in blocks), default=math.inf) <= ATTENDED:
            return causal(query, key, value, said.get("scaling"), blocks), None
    return cast(tuple[Tensor, None], sdpa_attention_forward(module, query, key, value, attention_mask, **said))


def _suits(query: Tensor, key: Tensor, value: Tensor) -> bool:
    """Whether these are what it was made and measured for: training on a CPU, queries of all tokens."""
    tensors, length = (query, key, value), query.shape[2]
    return (
        torch.is_grad_enabled()
        and any(tensor.requires_grad for tensor in tensors)
        and all(tensor.dtype in _FORMATS and tensor.device.type == "cpu" for tensor in tensors)
        and _format(query) in _FORMATS
        and length > 1
        and key.shape == value.shape
        and key.shape[2] == length
        and key.shape[3] == query.shape[3]
        and query.shape[1] % key.shape[1] == 0
    )


def _format(query: Tensor) -> torch.dtype:
    """In which the kernel would compute."""
    return torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else query.dtype


def _plain(module: nn.Module, *, dropout: float = 0.0, is_causal: bool | None = None, **others: Any) -> bool:
    """Whether a token is to see itself and what comes before it, and no more is asked for: what is unknown is more."""
    return (
        vars(module).get("is_causal") is True
        and is_causal in (None, True)
        and not dropout
        and all(value is None or value is False or name in _WITHOUT_MEANING for name, value in others.items())
    )


@dataclass(frozen=True, slots=True)
class _Block:
    """Queries of the tokens from `start` to `stop`, and the keys from `first` on that they see."""

    first: int
    start: int
    stop: int
    mask: Tensor
    """What is added to scores of the last keys [tokens * heads of a group, keys], -inf where none is seen."""


def _blocks(query: Tensor, key: Tensor, mask: Tensor | None) -> list[_Block]:
    """Top first; none if the mask is not that of one row in which every token sees itself and none behind it."""
    length, each = query.shape[2], query.shape[1] // key.shape[1]
    step = min(64, max(32, _WANTED // each))
    starts = range(0, length, step)
    if mask is None:
        above = torch.full((step, step), -torch.inf).triu_(1).repeat_interleave(each, 0)
        ends = [(start, min(length, start + step)) for start in starts]
        return [_Block(0, start, stop, above[: (stop - start) * each, : stop - start]) for start, stop in ends]
    if mask.dtype != torch.bool or mask.shape != (1, 1, length, length) or len(query) != 1:
        return []
    seen = mask[0, 0]
    if seen.triu(1).any() or not seen.diagonal().all():
        return []
    blocks = []
    for start in starts:
        rows = seen[start : start + step]
        first, stop = int(rows.any(0).byte().argmax()), start + len(rows)
        hidden = ~rows[:, first:stop].repeat_interleave(each, 0)
        blocks.append(_Block(first, start, stop, torch.zeros(hidden.shape).masked_fill_(hidden, -torch.inf)))
    return blocks


def causal(
    query: Tensor, key: Tensor, value: Tensor, scaling: float | None, blocks: Sequence[_Block] | None = None
) -> Tensor:
    """softmax(scaling * query @ key.T) @ value, of each token and those before it [rows, length, heads, size].

    query [rows, heads, length, size]; key, value [rows, groups, length, size], of which each head of a group sees the
    same. `scaling`: None for size ** -0.5. `blocks`: what is seen, by default all that comes before.
    """
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    chosen = _blocks(query, key, None) if blocks is None else blocks
    way = _Way(scale, chosen, _format(query))
    return cast(Tensor, _Causal.apply(query, key, value, way))  # type: ignore[no-untyped-call]


@dataclass(frozen=True, slots=True)
class _Way:
    scale: float
    blocks: Sequence[_Block]
    kept: torch.dtype
    """Of what is kept for the backward pass, and of what is found."""


class _Causal(torch.autograd.Function):
    """Inside, queries are [rows * groups, length * heads of a group, size], all heads' of a token beside each other.

    Products are made whole and then copied or added to their place: into a part of a tensor torch makes each by itself,
    in one thread, which in training took up to six times as long.
    """

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, way: _Way) -> Tensor:
        rows, heads, length, size = query.shape
        groups = key.shape[1]
        each = heads // groups
        queries = query.new_empty(rows, groups, length, each, size, dtype=way.kept)
        queries.copy_(query.view(rows, groups, each, length, size).transpose(2, 3))
        queries = queries.view(rows * groups, length * each, size)
        keys, values = (tensor.to(way.kept).reshape(rows * groups, length, size) for tensor in (key, value))
        found, weights = torch.empty_like(queries), []
        with torch.autocast("cpu", enabled=False):
            asked, known, told = queries.float() * way.scale, keys.float(), values.float()
            for block in way.blocks:
                part, seen = slice(block.start * each, block.stop * each), slice(block.first, block.stop)
                scores = torch.bmm(asked[:, part], known[:, seen].transpose(1, 2))
                scores[..., -block.mask.shape[1] :].add_(block.mask)
                torch.softmax(scores, -1, out=scores)
                found[:, part] = torch.bmm(scores, told[:, seen])
                weights.append(scores.to(way.kept))
        ctx.save_for_backward(queries, keys, values, *weights)
        ctx.way, ctx.groups, ctx.formats = way, groups, (query.dtype, key.dtype, value.dtype)
        found = found.view(rows, groups, length, each, size).permute(0, 2, 1, 3, 4)
        return found.reshape(rows, length, heads, size)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor | None, ...]:
        saved, way = ctx.saved_tensors, ctx.way
        queries, keys, values = (tensor.float() for tensor in saved[:3])
        rows, length, heads, size = slope.shape
        groups, each = ctx.groups, heads // ctx.groups
        slope = slope.view(rows, length, groups, each, size).transpose(1, 2).reshape(queries.shape).float()
        of_query, of_key, of_value = torch.empty_like(queries), torch.zeros_like(keys), torch.zeros_like(values)
        with torch.autocast("cpu", enabled=False):
            for block, kept in zip(way.blocks, saved[3:], strict=True):
                part, seen = slice(block.start * each, block.stop * each), slice(block.first, block.stop)
                weights = kept.float()
                of_value[:, seen] += torch.bmm(weights.transpose(1, 2), slope[:, part])
                scores = torch.bmm(slope[:, part], values[:, seen].transpose(1, 2))
                torch.ops.aten._softmax_backward_data.out(scores, weights, -1, scores.dtype, grad_input=scores)
                of_query[:, part] = torch.bmm(scores, keys[:, seen])
                of_key[:, seen] += torch.bmm(scores.transpose(1, 2), queries[:, part])
        of_key.mul_(way.scale)
        back = slope.new_empty(rows, length, groups, each, size)
        torch.mul(of_query.view(rows, groups, length, each, size).transpose(1, 2), way.scale, out=back)
        back = back.view(rows, length, heads, size).transpose(1, 2)
        of_key, of_value = (tensor.view(rows, groups, length, size) for tensor in (of_key, of_value))
        given = zip((back, of_key, of_value), ctx.formats, strict=True)
        return *(gradient.to(dtype) for gradient, dtype in given), None
