"""OBJECTIVES: what is minimised.

An objective is a module around the model: it owns the forward call and the head, so that an engine that wraps it
covers both. It returns SUMS; the step divides once by the counts of the whole update.
"""

from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Protocol, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from fulltune.base.memory import CHUNK_BYTES
from fulltune.base.table import Table
from fulltune.batch import Batch
from fulltune.fused import head_loss

T = TypeVar("T")


class Cut(Protocol):
    """A model cut into what gives hidden states and what makes logits of them (model/facts.py finds the cut)."""

    @property
    def backbone(self) -> nn.Module:
        """Token ids -> hidden states."""

    @property
    def vocab(self) -> int:
        """How many logits there are of a token; the weight itself may lie elsewhere when it is asked."""

    @property
    def linear(self) -> Tensor | None:
        """The head's weight [vocab, hidden], if logits are no more than `scale` times its product; else None."""

    @property
    def scale(self) -> float:
        """By which the product is multiplied."""

    def logits(self, hidden: Tensor) -> Tensor:
        """[tokens, hidden] -> float32 [tokens, vocab]."""


class Objective(nn.Module):
    """What every objective is. loss = sum over terms of weights[term] * (sum of the term) / (global count of it)."""

    weights: ClassVar[Mapping[str, float]]
    model: nn.Module

    def counts(self, batch: Batch) -> dict[str, float]:
        """The denominator that this batch adds to each term, known before any forward pass."""
        raise NotImplementedError

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """The terms' sums over this batch, scalars that carry gradients.

        Also of a batch in which nothing is supervised: then they are 0, with gradients of 0 for every weight, since
        other ranks wait for these.
        """
        raise NotImplementedError

    def through(self, act: Callable[[nn.Module], T]) -> T:
        """`act` on the model, as a forward pass of this module: an engine that shards it gathers what that needs."""
        return act(self.model)


class NextToken(Objective):
    """Cross-entropy of the next token, weighted by token, as a sum over the supervised tokens.

    Logits exist only where something is supervised, and only CHUNK_BYTES of them at a time: their gradients are made
    while they are there, or they are computed again in the backward pass. The softmax is float32 in any precision. A
    model whose head is unusual (`cut` is None) computes its logits itself.
    """

    weights: ClassVar[Mapping[str, float]] = {"next_token": 1.0}

    def __init__(self, model: nn.Module, cut: Cut | None, *, keeps_logits: bool) -> None:
        super().__init__()
        self.model = model
        self._cut = [cut]  # in a list, since a module assigned here would be registered a second time
        self._keeps_logits = keeps_logits

    def counts(self, batch: Batch) -> dict[str, float]:
        return {"next_token": batch.weight}

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        labels = batch.labels.flatten().index_select(0, batch.taught)
        weights = batch.weights.flatten().index_select(0, batch.taught)
        # use_cache=True, the models' default, makes packed examples attend to each other.
        inputs: dict[str, Any] = {"input_ids": batch.ids, "use_cache": False}
        if batch.positions is not None:
            inputs["position_ids"] = batch.positions
        cut = self._cut[0]
        if cut is None:
            logits = self._own_logits(batch, inputs)
            return {"next_token": _cross_entropy(logits.float(), labels, weights)}
        hidden = cast(Tensor, cut.backbone(**inputs)[0]).flatten(0, 1).index_select(0, batch.taught)
        return {"next_token": self._in_chunks(cut, hidden, labels, weights)}

    def _own_logits(self, batch: Batch, inputs: dict[str, Any]) -> Tensor:
        """[supervised, vocab] from the model's own forward pass, at the columns where any row is supervised."""
        if not self._keeps_logits:
            logits: Tensor = self.model(**inputs).logits
            return logits.flatten(0, 1).index_select(0, batch.taught)
        width = batch.ids.shape[1]
        columns, place = torch.unique(batch.taught % width, return_inverse=True)
        logits = self.model(**inputs, logits_to_keep=columns).logits
        return logits[batch.taught // width, place]

    @staticmethod
    def _in_chunks(cut: Cut, hidden: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
        size = max(1, CHUNK_BYTES // (4 * cut.vocab))
        if torch.is_grad_enabled() and (weight := cut.linear) is not None and not _in_float16(hidden):
            return head_loss(hidden, weight, labels, weights, scale=cut.scale, size=size)
        total = hidden.new_zeros((), dtype=torch.float32)
        # At least once: a head that nothing passes through would have no gradient, for which other ranks wait.
        for start in range(0, max(1, len(labels)), size):
            part = slice(start, start + size)
            pieces = (hidden[part], labels[part], weights[part])
            if torch.is_grad_enabled():
                total = total + cast(
                    Tensor,
                    checkpoint(_head_loss, cut.logits, *pieces, use_reentrant=False, preserve_rng_state=False),
                )
            else:
                total = total + _head_loss(cut.logits, *pieces)
        return total


def _in_float16(hidden: Tensor) -> bool:
    device = hidden.device.type
    return torch.is_autocast_enabled(device) and torch.get_autocast_dtype(device) == torch.float16


def _head_loss(logits: Callable[[Tensor], Tensor], hidden: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
    return _cross_entropy(logits(hidden), labels, weights)


def _cross_entropy(logits: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
    """Sum of weight * -log p(label); logits float32 [tokens, vocab]."""
    return (nn.functional.cross_entropy(logits, labels, reduction="none") * weights).sum()


MakeObjective = Callable[..., Objective]

OBJECTIVES: Table[MakeObjective] = Table("objective", {"next_token": NextToken})
