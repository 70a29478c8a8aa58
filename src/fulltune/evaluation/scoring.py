"""Log-likelihoods of given tokens: many rows at once, whatever the batch; logits only where they are asked for."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from fulltune.base.memory import CHUNK_BYTES
from fulltune.evaluation.asking import Examinee, batches
from fulltune.evaluation.generate import evaluated
from fulltune.model.facts import Head, arithmetic, head
from fulltune.model.probe import head_agrees


@dataclass(frozen=True, slots=True)
class Scored:
    """Tokens of which those from `start` on are asked about; at least one token stands before them."""

    ids: Sequence[int]
    start: int


@dataclass(frozen=True, slots=True)
class Found:
    """Log-likelihood (natural, summed), how many tokens it is of, and how many of these were the most likely ones."""

    logprob: float
    tokens: int
    hits: int


class Scorer:
    """Asks one model. Its head is cut off only where a probe shows that the cut gives the model's own logits."""

    def __init__(self, asked: Examinee) -> None:
        self._asked = asked
        rows = cast(Any, asked.model).config.get_text_config().vocab_size  # a sharded embedding may have none here
        cut = head(asked.model)
        self._cut: Head | None = cut if cut is not None and head_agrees(asked.model, cut, rows) else None

    @torch.no_grad()
    def __call__(self, rows: Sequence[Scored]) -> list[Found]:
        """One result for each row. The model is in eval mode meanwhile."""
        model = self._asked.model
        found: list[Found | None] = [None] * len(rows)
        with evaluated(model):
            for batch in batches([len(row.ids) for row in rows], self._asked.batch_tokens):
                self._asked.check()
                for index, one in zip(batch, self._scored([rows[index] for index in batch]), strict=True):
                    found[index] = one
        return [one for one in found if one is not None]

    def _scored(self, rows: Sequence[Scored]) -> list[Found]:
        """A batch, padded to the right: plain causal attention lets no token see what comes behind it."""
        device = next(self._asked.model.parameters()).device
        width = max(len(row.ids) for row in rows) - 1
        ids = torch.zeros(len(rows), max(1, width), dtype=torch.long)
        places: list[int] = []
        targets: list[int] = []
        owners: list[int] = []
        for number, row in enumerate(rows):
            ids[number, : len(row.ids) - 1] = torch.tensor(row.ids[:-1], dtype=torch.long)
            first = max(1, row.start)
            places += range(number * width + first - 1, number * width + len(row.ids) - 1)
            targets += row.ids[first:]
            owners += [number] * (len(row.ids) - first)
        if not places:
            return [Found(0.0, 0, 0) for _ in rows]
        taken = torch.tensor(places, device=device)
        logprobs, hits = self._of(ids.to(device), taken, torch.tensor(targets, device=device))
        owner = torch.tensor(owners)
        sums = torch.zeros(len(rows), dtype=torch.float64).index_add_(0, owner, logprobs.double().cpu())
        counts = torch.bincount(owner, minlength=len(rows))
        right = torch.zeros(len(rows), dtype=torch.float64).index_add_(0, owner, hits.double().cpu())
        return [
            Found(float(s), int(n), int(r))
            for s, n, r in zip(sums.tolist(), counts.tolist(), right.tolist(), strict=True)
        ]

    def _of(self, ids: Tensor, places: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """For each place of the flattened batch the log-probability of its target, and whether it is the largest."""
        model = self._asked.model
        with arithmetic(model):
            if self._cut is None:
                logits = cast(Tensor, cast(Any, model)(input_ids=ids, use_cache=False).logits)
                return _judged(logits.flatten(0, 1).index_select(0, places).float(), targets)
            hidden = self._cut.backbone(input_ids=ids, use_cache=False)[0].flatten(0, 1)
            hidden = hidden.index_select(0, places)
            size = max(1, CHUNK_BYTES // (4 * self._cut.vocab))
            parts = [
                _judged(self._cut.logits(hidden[at : at + size]), targets[at : at + size])
                for at in range(0, len(places), size)
            ]
        logprobs, hits = zip(*parts, strict=True)
        return torch.cat(logprobs), torch.cat(hits)


def _judged(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Float32 [tokens, vocab] -> log-probabilities of the targets, and whether each is the most likely token."""
    logprobs = -nn.functional.cross_entropy(logits, targets, reduction="none")
    return logprobs, logits.argmax(-1) == targets
