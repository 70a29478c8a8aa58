"""Answers to prompts: greedy, one at a time with a cache, up to the model's stop tokens."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import nn
from transformers import GenerationConfig

from fulltune.base import stop
from fulltune.model.facts import arithmetic, context


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
    before = model.training
    model.eval()
    try:
        return [_answer(model, prompt, stop_ids, tokens, check) for prompt in prompts]
    finally:
        model.train(before)


def _answer(
    model: nn.Module, prompt: Sequence[int], stop_ids: Sequence[int], tokens: int, check: Callable[[], None]
) -> list[int]:
    check()
    limit = context(cast(Any, model).config.get_text_config())
    room = tokens if limit is None else min(tokens, limit - len(prompt))
    if room < 1:
        return []
    ids = torch.tensor([list(prompt)], device=next(model.parameters()).device)
    config = plain_config(stop_ids, room)
    with torch.no_grad(), arithmetic(model), generating(model, config):
        made = cast(Any, model).generate(ids, attention_mask=torch.ones_like(ids), generation_config=config)
    answer: list[int] = made[0, len(prompt) :].tolist()
    ends = [place for place, token in enumerate(answer) if token in set(stop_ids)]
    return answer[: ends[0]] if ends else answer


def plain_config(stop_ids: Sequence[int], tokens: int) -> GenerationConfig:
    """Plain greedy decoding."""
    return GenerationConfig(
        max_new_tokens=tokens,
        do_sample=False,
        num_beams=1,
        eos_token_id=list(stop_ids) or None,
        pad_token_id=stop_ids[0] if stop_ids else 0,
        use_cache=True,
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
