"""Answers to prompts: greedy, one at a time, up to the model's stop tokens; and how a model may be asked at all."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from transformers import GenerationConfig

from fulltune.base import stop
from fulltune.model.facts import arithmetic, context

_SHORT, _LONG, _STEPS = 3, 7, 3
"""Tokens of the prompts that a model is probed with, and of its answers."""
_CLOSE, _CLOSE_IN_HALF = 1e-4, 5e-2
"""Of the largest logit, as in model/probe.py."""


def greedy(
    model: nn.Module,
    prompts: Iterable[Sequence[int]],
    *,
    stop_ids: Sequence[int],
    tokens: int,
    check: Callable[[], None] = stop.check,
) -> list[list[int]]:
    """For each prompt the token ids that the model adds, without the stop token. The model is left as it was.

    At most `tokens` of them, and no more than the model has positions for. `check` is called before
    each prompt: Interrupted where a signal came.
    """
    cache = ways(model).cache
    with evaluated(model):
        return [_answer(model, prompt, plain_config(stop_ids, tokens, cache=cache), check) for prompt in prompts]


def _answer(model: nn.Module, prompt: Sequence[int], config: GenerationConfig, check: Callable[[], None]) -> list[int]:
    check()
    limit = context(cast(Any, model).config.get_text_config())
    tokens, stop_ids = config.max_new_tokens, config.eos_token_id or []
    config.max_new_tokens = tokens if limit is None else min(tokens, limit - len(prompt))
    if config.max_new_tokens < 1:
        return []
    ids, mask = padded([prompt], 0)
    answer: list[int] = generated(model, ids, mask, config)[0, len(prompt) :].tolist()
    ends = [place for place, token in enumerate(answer) if token in set(stop_ids)]
    return answer[: ends[0]] if ends else answer


def padded(prompts: Sequence[Sequence[int]], filler: int) -> tuple[Tensor, Tensor]:
    """Ids and mask [prompts, longest], the prompts at the right end, where the model is to go on."""
    width = max(map(len, prompts))
    ids = torch.full((len(prompts), width), filler, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        ids[row, width - len(prompt) :] = torch.tensor(prompt, dtype=torch.long)
        mask[row, width - len(prompt) :] = 1
    return ids, mask


def generated(model: nn.Module, ids: Tensor, mask: Tensor, config: GenerationConfig, **options: Any) -> Any:
    """What the model's own `generate` makes of these rows, by this config and nothing else."""
    device = next(model.parameters()).device
    with torch.no_grad(), arithmetic(model), generating(model, config):
        return cast(Any, model).generate(
            ids.to(device), attention_mask=mask.to(device), generation_config=config, **options
        )


@contextmanager
def evaluated(model: nn.Module) -> Iterator[None]:
    """In here the model is in eval mode, behind it as before."""
    before = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(before)


@dataclass(frozen=True, slots=True)
class Ways:
    """How a model may be asked so that it says what it says alone and without a cache."""

    cache: bool
    """Whether what it has read may be kept between two tokens."""
    together: Literal["padded", "alike", "alone"]
    """Which prompts may lie in one batch: any, padded to the left; those of equal length; none."""


def ways(model: nn.Module) -> Ways:
    """Ask the model itself, through its own `generate`: logits of three steps, alone and without a cache, are right.

    What has no attention sees padding as text; and with a cache the rows of RWKV in transformers 5.23 mix, also where
    they are equally long, which moves its logits by 0.6.
    """
    limit = context(cast(Any, model).config.get_text_config())
    if limit is not None and limit < _LONG + _STEPS:
        return Ways(cache=False, together="alone")
    rows = cast(Any, model).config.get_text_config().vocab_size  # a sharded embedding may have none here
    draws = torch.Generator().manual_seed(6)
    short, other, long = (torch.randint(rows, (size,), generator=draws).tolist() for size in (_SHORT, _SHORT, _LONG))
    weight = next(model.parameters())
    with arithmetic(model):
        exact = weight.dtype == torch.float32 and not torch.is_autocast_enabled(weight.device.type)
    noise = _CLOSE if exact else _CLOSE_IN_HALF
    with evaluated(model):
        right = [_steps(model, [prompt], False)[0] for prompt in (short, other, long)]

        def agree(made: Sequence[Tensor], wanted: Sequence[Tensor]) -> bool:
            pairs = zip(made, wanted, strict=True)
            return all(float((one - two).abs().max()) <= noise * float(two.abs().max()) for one, two in pairs)

        cache = agree(_steps(model, [short], True), right[:1])
        if agree(_steps(model, [short, long], cache), [right[0], right[2]]):
            return Ways(cache, "padded")
        return Ways(cache, "alike" if agree(_steps(model, [short, other], cache), right[:2]) else "alone")


def _steps(model: nn.Module, prompts: Sequence[Sequence[int]], cache: bool) -> list[Tensor]:
    """Float32 [steps, vocab] for each prompt."""
    config = plain_config([], _STEPS, cache=cache)
    config.output_logits = config.return_dict_in_generate = True
    made = generated(model, *padded(prompts, 0), config).logits
    return list(torch.stack([step.float() for step in made], dim=1))


def plain_config(stop_ids: Sequence[int], tokens: int, *, cache: bool = True) -> GenerationConfig:
    """Plain greedy decoding."""
    return GenerationConfig(
        max_new_tokens=tokens,
        do_sample=False,
        num_beams=1,
        eos_token_id=list(stop_ids) or None,
        pad_token_id=stop_ids[0] if stop_ids else 0,
        use_cache=cache,
    )


@contextmanager
def generating(model: nn.Module, config: GenerationConfig) -> Iterator[None]:
    """In here the model has no generation config of its own, whose penalties and banned words `generate` would add."""
    own = cast(Any, model).generation_config
    cast(Any, model).generation_config = config
    try:
        yield
    finally:
        cast(Any, model).generation_config = own
