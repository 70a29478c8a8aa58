"""Answers to prompts: greedy, one at a time with a cache, up to the model's stop tokens."""

from collections.abc import Iterable, Sequence
from typing import Any, cast

import torch
from torch import nn
from transformers import GenerationConfig


def greedy(
    model: nn.Module, prompts: Iterable[Sequence[int]], *, stop_ids: Sequence[int], tokens: int
) -> list[list[int]]:
    """For each prompt the token ids that the model adds, without the stop token. The model's mode is left as it was."""
    before = model.training
    model.eval()
    try:
        return [_answer(model, prompt, stop_ids, tokens) for prompt in prompts]
    finally:
        model.train(before)


@torch.no_grad()
def _answer(model: nn.Module, prompt: Sequence[int], stop_ids: Sequence[int], tokens: int) -> list[int]:
    ids = torch.tensor([list(prompt)], device=next(model.parameters()).device)
    made = cast(Any, model).generate(
        ids,
        attention_mask=torch.ones_like(ids),
        generation_config=_config(stop_ids, tokens),
    )
    answer: list[int] = made[0, len(prompt) :].tolist()
    ends = [place for place, token in enumerate(answer) if token in set(stop_ids)]
    return answer[: ends[0]] if ends else answer


def _config(stop_ids: Sequence[int], tokens: int) -> GenerationConfig:
    """Plain greedy decoding: every value that a model's own generation config could slip in is said here."""
    return GenerationConfig(
        max_new_tokens=tokens,
        do_sample=False,
        num_beams=1,
        repetition_penalty=1.0,
        no_repeat_ngram_size=0,
        eos_token_id=list(stop_ids) or None,
        pad_token_id=stop_ids[0] if stop_ids else 0,
        use_cache=True,
    )
