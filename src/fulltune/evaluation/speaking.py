"""Answers to many questions at once: padded to the left, with a cache, the same as one by one."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList, StoppingCriteria, StoppingCriteriaList

from fulltune.evaluation.asking import Examinee, batches
from fulltune.evaluation.generate import evaluated, generated, padded, plain_config, ways

_LOOK_EVERY = 8
"""Steps between two looks for stop texts: what comes behind one is cut off in any case."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Decoding:
    """How tokens are chosen, and where an answer ends."""

    tokens: int
    """Most tokens of an answer."""
    stop_texts: tuple[str, ...] = ()
    temperature: float = 0.0
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Said:
    """An answer: its ids without the stop token, its text, and whether it came to an end of its own."""

    ids: tuple[int, ...]
    text: str
    ended: bool


class Speaker:
    """Lets one model answer. Which prompts lie together, and whether there is a cache, is asked of the model first."""

    def __init__(self, asked: Examinee, decoding: Decoding) -> None:
        self._asked, self._how = asked, decoding
        self._stops = sorted(asked.stops)
        self._ways = ways(asked.model)

    def __call__(self, prompts: Sequence[Sequence[int]], names: Sequence[str]) -> list[Said]:
        """An answer to each prompt; empty where the context has no room. `names`: what draws are seeded by."""
        model = self._asked.model
        made: dict[int, Said] = {}
        with evaluated(model):
            for batch, room in self._batches([len(prompt) for prompt in prompts]):
                self._asked.check()
                spoken = self._batch([prompts[n] for n in batch], [names[n] for n in batch], room)
                made.update(zip(batch, spoken, strict=True))
        return [made.get(number, Said((), "", False)) for number in range(len(prompts))]

    def _batches(self, lengths: Sequence[int]) -> list[tuple[list[int], int]]:
        """Which prompts lie together, and how many tokens each may be answered by.

        Where the context cuts answers short, only prompts of equal length lie together: each keeps its own room.
        """
        limit, wanted, together = self._asked.context, self._how.tokens, self._ways.together
        budget = 1 if together == "alone" else self._asked.batch_tokens
        rooms = [wanted if limit is None else min(wanted, limit - length) for length in lengths]
        full = [number for number, room in enumerate(rooms) if room == wanted]
        sizes = [lengths[number] + wanted for number in full]
        made = [([full[at] for at in batch], wanted) for batch in batches(sizes, budget, alike=together != "padded")]
        for room in sorted({room for room in rooms if 0 < room < wanted}):
            short = [number for number, other in enumerate(rooms) if other == room]
            sizes = [lengths[number] + room for number in short]
            made += [([short[at] for at in batch], room) for batch in batches(sizes, budget)]
        return made

    def _batch(self, prompts: Sequence[Sequence[int]], names: Sequence[str], room: int) -> list[Said]:
        ids, mask = padded(prompts, self._stops[0] if self._stops else 0)
        width, tokenizer = ids.shape[1], self._asked.tokenizer
        processors, criteria = LogitsProcessorList(), StoppingCriteriaList()
        if self._how.temperature:
            processors.append(_Drawing(self._how.temperature, self._how.seed, names))
        if self._how.stop_texts:
            criteria.append(_Ends(tokenizer, self._how.stop_texts, width))
        config = plain_config(self._stops, room, cache=self._ways.cache)
        made = generated(self._asked.model, ids, mask, config, logits_processor=processors, stopping_criteria=criteria)
        return [self._said(row) for row in made[:, width:].tolist()]

    def _said(self, ids: list[int]) -> Said:
        end = next((place for place, token in enumerate(ids) if token in self._stops), None)
        kept = ids if end is None else ids[:end]
        text = str(self._asked.tokenizer.decode(kept))
        ends = [at for at in (text.find(stop) for stop in self._how.stop_texts) if at >= 0]
        return Said(tuple(kept), text[: min(ends)] if ends else text, end is not None or bool(ends))


class _Drawing(LogitsProcessor):  # type: ignore[misc]  # transformers has no types
    """Draws a token: the largest of logits / temperature + Gumbel noise has the softmax's probability (Gumbel 1954).

    Each row has a generator of its own, seeded by its question, so what is drawn does not depend on its neighbours.
    """

    def __init__(self, temperature: float, seed: int, names: Sequence[str]) -> None:
        self._temperature = temperature
        keys = [hashlib.sha256(f"{seed}/{name}".encode()).digest() for name in names]
        self._draws = [torch.Generator().manual_seed(int.from_bytes(key[:8]) >> 1) for key in keys]

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:  # noqa: ARG002
        noise = torch.stack([torch.empty(scores.shape[1]).exponential_(generator=draw) for draw in self._draws])
        return scores.float() / self._temperature - noise.log().to(scores.device)


class _Ends(StoppingCriteria):  # type: ignore[misc]  # transformers has no types
    """Ends a row in which a stop text stands. Looked for now and then: it saves time and changes nothing."""

    def __init__(self, tokenizer: Any, texts: Sequence[str], width: int) -> None:
        self._tokenizer, self._texts, self._width = tokenizer, texts, width

    def __call__(self, input_ids: Tensor, scores: Any, **_: Any) -> Tensor:  # noqa: ARG002
        said = input_ids[:, self._width :]
        if said.shape[1] % _LOOK_EVERY:
            return torch.zeros(len(said), dtype=torch.bool, device=said.device)
        texts = self._tokenizer.batch_decode(said.tolist())
        ended = [any(stop in text for stop in self._texts) for text in texts]
        return torch.tensor(ended, device=said.device)
