"""Causal attention on a CPU as matrix products, in blocks of rows: less time than torch's own kernel takes.

That kernel makes some products once more in its backward pass, and leaves little of what lies above the diagonal out.
Here a block of rows sees keys up to its end and no further; examples that are packed into one row are laid beside each
other, each with its own keys; heads that share keys and values are rows of one product; and the weights of attention
are kept for the backward pass.
Products and softmax are float32. Of a run in bfloat16 what comes in, what is kept and what goes out is bfloat16: its
own products of such small matrices save no time with two threads, and scores of 8 bits would cost exactness.
`benchmarks/results/attention.md` has what it saves.
"""

import math
from collections.abc import Iterator, MutableMapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, cast
from weakref import WeakSet

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.utils.weak import WeakTensorKeyDictionary
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
    if ours and _suits(query, key, value) and plain(module, **said):
        examples = _examples(query, attention_mask)
        if max((example.length for example in examples), default=math.inf) <= ATTENDED:
            return causal(query, key, value, said.get("scaling"), examples), None
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


def plain(module: nn.Module, *, dropout: float = 0.0, is_causal: bool | None = None, **others: Any) -> bool:
    """Whether a token is to see itself and what comes before it, and no more is asked for: what is unknown is more."""
    return (
        vars(module).get("is_causal") is True
        and is_causal in (None, True)
        and not dropout
        and all(value is None or value is False or name in _WITHOUT_MEANING for name, value in others.items())
    )


@dataclass(frozen=True, slots=True)
class _Example:
    """Where one lies: tokens of a row that see each other and no others."""

    row: int
    start: int
    length: int


_told: MutableMapping[Tensor, tuple[_Example, ...]] = WeakTensorKeyDictionary()
"""By mask, since all blocks of a model are given the same one."""


def _examples(query: Tensor, mask: Tensor | None) -> tuple[_Example, ...]:
    """Empty if the mask is not that of one row of examples, in which a token sees its own up to itself and no more."""
    rows, length = len(query), query.shape[2]
    if mask is None:
        return tuple(_Example(row, 0, length) for row in range(rows))
    if mask.dtype != torch.bool or mask.shape != (1, 1, length, length) or rows != 1:
        return ()
    if mask not in _told:
        _told[mask] = _packed(mask[0, 0])
    return _told[mask]


def _packed(seen: Tensor) -> tuple[_Example, ...]:
    """`seen` [length, length], by query and key: an example begins where a token does not see the one before it."""
    first = torch.ones(len(seen), dtype=torch.bool)
    first[1:] = ~seen.diagonal(-1)
    number = first.cumsum(0)
    if not torch.equal(seen, (number[:, None] == number).tril()):
        return ()
    starts = first.nonzero()[:, 0].tolist()
    ends = [*starts[1:], len(seen)]
    return tuple(_Example(0, start, end - start) for start, end in zip(starts, ends, strict=True))


def causal(
    query: Tensor, key: Tensor, value: Tensor, scaling: float | None, examples: tuple[_Example, ...] | None = None
) -> Tensor:
    """softmax(scaling * query @ key.T) @ value, of each token and those before it [rows, length, heads, size].

    query [rows, heads, length, size]; key, value [rows, groups, length, size], of which each head of a group sees the
    same. `scaling`: None for size ** -0.5. `examples`: all tokens are in one, by default each row is one.
    """
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    chosen = _examples(query, None) if examples is None else examples
    laid = _laid(chosen, query.shape[2], key.shape[1], query.shape[1] // key.shape[1])
    return cast(Tensor, _Causal.apply(query, key, value, _Way(scale, laid, _format(query))))  # type: ignore[no-untyped-call]


@dataclass(frozen=True, slots=True)
class _Block:
    """Queries of the tokens from `start` to `stop` of a band's first `count` examples, which see all up to there."""

    count: int
    start: int
    stop: int
    above: Tensor
    """What is added to scores of their own keys [tokens * heads of a group, tokens]: -inf above the diagonal."""


@dataclass(frozen=True, slots=True)
class _Band:
    """Examples beside each other, the longest first and none less than half as long; behind shorter ones lies any."""

    examples: Sequence[_Example]
    blocks: Sequence[_Block]
    rows: slice
    """Of what is laid."""

    def of(self, laid: Tensor, size: int) -> Tensor:
        """Its part, [examples * groups, tokens of the longest * heads of a group, size]."""
        groups = (self.rows.stop - self.rows.start) // (len(self.examples) * self.examples[0].length)
        return laid[self.rows].view(len(self.examples) * groups, -1, size)

    def clear(self, part: Tensor) -> None:
        """Of what `of` gave, zeros behind shorter examples."""
        longest, (lines, rows, _) = self.examples[0].length, part.shape
        groups, each = lines // len(self.examples), rows // longest
        for number, one in enumerate(self.examples):
            if one.length < longest:
                part[number * groups : (number + 1) * groups, one.length * each :] = 0


@dataclass(frozen=True, slots=True)
class _Laid:
    """How numbers of tokens, which come by token and group, lie by band, example, group and token."""

    bands: Sequence[_Band]
    there: Tensor
    """Which of them lies at each place; behind shorter examples any."""
    back: Tensor
    """The places of them all, in the order in which they come."""

    def lay(self, tensor: Tensor) -> Tensor:
        """[rows, length, heads, size] -> [places, heads of a group * size]."""
        return tensor.reshape(len(self.back), -1).index_select(0, self.there)

    def give_back(self, laid: Tensor, shape: torch.Size) -> Tensor:
        """What `lay` did, the other way round."""
        return laid.index_select(0, self.back).view(shape)


@lru_cache(maxsize=8)
def _laid(examples: tuple[_Example, ...], length: int, groups: int, each: int) -> _Laid:
    """`length`: of rows; `each`: heads of a group. All blocks of a model ask the same."""
    bands, places, start = [], [], 0
    for part in _alike(examples):
        place = torch.full((len(part), groups, part[0].length), -1)
        for number, one in enumerate(part):
            tokens = torch.arange(one.length) + one.row * length + one.start
            place[number, :, : one.length] = tokens * groups + torch.arange(groups)[:, None]
        rows = slice(start, start + place.numel())
        bands.append(_Band(part, list(_blocks(part, each)), rows))
        places.append(place.view(-1))
        start = rows.stop
    there = torch.cat(places)
    filled = (there >= 0).nonzero()[:, 0]
    back = torch.empty(len(filled), dtype=torch.long)
    back[there[filled]] = filled
    return _Laid(bands, there.clamp_(min=0), back)


def _alike(examples: Sequence[_Example]) -> list[list[_Example]]:
    """In bands, the longest first."""
    parts: list[list[_Example]] = []
    for example in sorted(examples, key=lambda one: -one.length):
        if parts and 2 * example.length >= parts[-1][0].length:
            parts[-1].append(example)
        else:
            parts.append([example])
    return parts


def _blocks(part: Sequence[_Example], each: int) -> Iterator[_Block]:
    step = min(64, max(32, _WANTED // each))
    above = torch.full((step, step), -torch.inf).triu_(1).repeat_interleave(each, 0)
    longest = part[0].length
    for start in range(0, longest, step):
        stop, count = min(longest, start + step), sum(example.length > start for example in part)
        yield _Block(count, start, stop, above[: (stop - start) * each, : stop - start])


@dataclass(frozen=True, slots=True)
class _Way:
    scale: float
    laid: _Laid
    kept: torch.dtype
    """Of what is kept for the backward pass, and of what is found."""


class _Causal(torch.autograd.Function):
    """Products are made whole and then copied or added to their place.

    Into a part of a tensor torch makes each by itself, in one thread, which in training took up to six times as long.
    """

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, way: _Way) -> Tensor:
        groups, size = key.shape[1], key.shape[3]
        each, laid = query.shape[1] // groups, way.laid
        given = [tensor.transpose(1, 2) for tensor in (query, key, value)]
        kept = [laid.lay(tensor.to(way.kept)) for tensor in given]
        queries, keys, values = kept[0].to(torch.float32, copy=True).mul_(way.scale), kept[1].float(), kept[2].float()
        found, weights = torch.empty_like(queries), []
        with torch.autocast("cpu", enabled=False):
            for band in laid.bands:
                asked, known, told, answer = (band.of(tensor, size) for tensor in (queries, keys, values, found))
                for block in band.blocks:
                    own, part = slice(block.count * groups), slice(block.start * each, block.stop * each)
                    scores = torch.bmm(asked[own, part], known[own, : block.stop].transpose(1, 2))
                    scores[..., block.start :].add_(block.above)
                    torch.softmax(scores, -1, out=scores)
                    answer[own, part] = torch.bmm(scores, told[own, : block.stop])
                    weights.append(scores.to(way.kept))
        ctx.save_for_backward(*kept, *weights)
        ctx.way, ctx.groups, ctx.given = way, groups, [(tensor.shape, tensor.dtype) for tensor in given]
        return laid.give_back(found.to(way.kept), given[0].shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor | None, ...]:
        (query, key, value, *weights), way, groups, size = ctx.saved_tensors, ctx.way, ctx.groups, slope.shape[3]
        each, laid, kept = slope.shape[2] // groups, way.laid, iter(weights)
        queries, keys, values, slopes = (tensor.float() for tensor in (query, key, value, laid.lay(slope)))
        found = torch.empty_like(queries), torch.zeros_like(keys), torch.zeros_like(values)
        with torch.autocast("cpu", enabled=False):
            for band in laid.bands:
                asked, known, told, sloping = (band.of(tensor, size) for tensor in (queries, keys, values, slopes))
                of_query, of_key, of_value = (band.of(tensor, size) for tensor in found)
                band.clear(sloping)
                for block in band.blocks:
                    own, part = slice(block.count * groups), slice(block.start * each, block.stop * each)
                    seen = slice(block.stop)
                    chosen = next(kept).float()
                    of_value[own, seen] += torch.bmm(chosen.transpose(1, 2), sloping[own, part])
                    scores = torch.bmm(sloping[own, part], told[own, seen].transpose(1, 2))
                    torch.ops.aten._softmax_backward_data.out(scores, chosen, -1, scores.dtype, grad_input=scores)
                    of_query[own, part] = torch.bmm(scores, known[own, seen])
                    of_key[own, seen] += torch.bmm(scores.transpose(1, 2), asked[own, part])
        for tensor in found[:2]:
            tensor.mul_(way.scale)
        made = (laid.give_back(g.to(dtype), shape) for g, (shape, dtype) in zip(found, ctx.given, strict=True))
        return *(gradient.transpose(1, 2) for gradient in made), None
