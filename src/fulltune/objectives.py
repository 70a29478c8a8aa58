"""OBJECTIVES: what is minimised.

An objective is a module around the model: it owns the forward call and the head, so that an engine that wraps it
covers both. It returns SUMS; the step divides once by the counts of the whole update.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, ClassVar, Protocol, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from fulltune.base.memory import CHUNK_BYTES
from fulltune.base.table import Table
from fulltune.batch import Batch, Reference
from fulltune.divergence import Likely, divergence, likeliest
from fulltune.fused import head_loss

T = TypeVar("T")

KL = "kl"
"""The term that compares the model with the base, where a batch has a `reference`."""


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
    penalties: Mapping[str, float] = {}
    """Weights of further terms that are minimised too, and are in no loss that is reported."""
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

    Of a batch with a `reference` also the term `kl`: KL(base || model) at its rows, weighted by token. With `kl` above
    0 so many times its mean is added to the loss while training: a model that learns new things is held to what the
    old one said (Li and Hoiem 2016, Learning without Forgetting, arXiv 1606.09282; by likelihoods as in Hinton et al.
    2015, arXiv 1503.02531, at temperature 1).
    """

    weights: ClassVar[Mapping[str, float]] = {"next_token": 1.0}

    def __init__(
        self,
        model: nn.Module,
        cut: Cut | None,
        *,
        keeps_logits: bool,
        kl: float = 0.0,
        most: int = 0,
        told: bool = False,
    ) -> None:
        """`most`: tokens of the largest batch that any process may have, where the head is gathered for each pass.

        Then all processes pass through it equally often, since all wait for each other there. `told`: whether the
        model's attention is told where examples begin and end (by the names that transformers has for it).
        """
        super().__init__()
        self.model = model
        self.penalties = {KL: kl} if kl else {}
        self._cut = [cut]  # in a list, since a module assigned here would be registered a second time
        self._keeps_logits, self._most, self._told = keeps_logits, most, told

    def counts(self, batch: Batch) -> dict[str, float]:
        base = batch.reference
        return {"next_token": batch.weight, **dict.fromkeys(self.penalties, 0.0 if base is None else base.weight)}

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        labels = batch.labels.flatten().index_select(0, batch.taught)
        weights = batch.weights.flatten().index_select(0, batch.taught)
        cut, base, seen = self._cut[0], batch.reference, self._seen(batch)
        if cut is None:
            sums = {"next_token": _cross_entropy(seen.float(), labels, weights)}
            if base is not None:
                sums[KL] = _apart(seen.index_select(0, base.rows).float(), *_compared(base, weights))
            return sums
        sums = {"next_token": self._next_token(cut, seen, labels, weights)}
        if base is not None:
            # Besides logits and their gradient it holds a copy without the likeliest ones: half as many at a time.
            rows = seen.index_select(0, base.rows)
            sums[KL] = self._in_chunks(cut, _apart, CHUNK_BYTES // 2, rows, *_compared(base, weights))
        return sums

    def likeliest(self, batch: Batch, rows: Tensor, top: int) -> Likely:
        """What the model predicts at `rows` [n] of a batch's supervised tokens, without gradients."""
        with torch.no_grad():
            cut, seen = self._cut[0], self._seen(batch).index_select(0, rows)
            if cut is None:
                return likeliest(seen.float(), top)
            parts = [likeliest(cut.logits(seen[part]), top) for part in self._parts(cut, CHUNK_BYTES // 2, len(rows))]
        return Likely(*(torch.cat(column) for column in zip(*parts, strict=True)))

    def _seen(self, batch: Batch) -> Tensor:
        """Hidden states of the supervised tokens [supervised, hidden]; their logits, where the head is not cut off."""
        # use_cache=True, the models' default, makes packed examples attend to each other.
        inputs: dict[str, Any] = {"input_ids": batch.ids, "use_cache": False}
        if batch.positions is not None:
            inputs["position_ids"] = batch.positions
        if self._told and batch.bounds is not None:
            inputs |= {"cu_seq_lens_q": batch.bounds, "cu_seq_lens_k": batch.bounds}
            inputs |= {"max_length_q": batch.longest, "max_length_k": batch.longest}
        cut = self._cut[0]
        if cut is None:
            return self._own_logits(batch, inputs)
        return cast(Tensor, cut.backbone(**inputs)[0]).flatten(0, 1).index_select(0, batch.taught)

    def _own_logits(self, batch: Batch, inputs: dict[str, Any]) -> Tensor:
        """[supervised, vocab] from the model's own forward pass, at the columns where any row is supervised."""
        if not self._keeps_logits:
            logits: Tensor = self.model(**inputs).logits
            return logits.flatten(0, 1).index_select(0, batch.taught)
        width = batch.ids.shape[1]
        columns, place = torch.unique(batch.taught % width, return_inverse=True)
        logits = self.model(**inputs, logits_to_keep=columns).logits
        return logits[batch.taught // width, place]

    def _next_token(self, cut: Cut, hidden: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
        fuses = not self._most and not (torch.is_grad_enabled() and _in_float16(hidden))
        if fuses and (weight := cut.linear) is not None:
            size = max(1, CHUNK_BYTES // (4 * cut.vocab))
            return head_loss(hidden, weight, labels, weights, scale=cut.scale, size=size)
        return self._in_chunks(cut, _cross_entropy, CHUNK_BYTES, hidden, labels, weights)

    def _in_chunks(
        self, cut: Cut, loss: Callable[..., Tensor], at_once: int, hidden: Tensor, *columns: Tensor
    ) -> Tensor:
        """The sum of a loss over tokens, of whose logits only so many bytes are held at a time."""
        total = hidden.new_zeros((), dtype=torch.float32)
        for part in self._parts(cut, at_once, len(hidden)):
            pieces = (hidden[part], *(column[part] for column in columns))
            if torch.is_grad_enabled():
                total = total + cast(
                    Tensor,
                    checkpoint(_head_loss, cut.logits, loss, *pieces, use_reentrant=False, preserve_rng_state=False),
                )
            else:
                total = total + _head_loss(cut.logits, loss, *pieces)
        return total

    def _parts(self, cut: Cut, at_once: int, tokens: int) -> Iterator[slice]:
        """So many tokens by bytes of logits that are held at once; the last parts may be empty.

        There is one at least: a head that nothing passes through would have no gradient, for which other ranks wait.
        """
        size = max(1, at_once // (4 * cut.vocab))
        return (slice(start, start + size) for start in range(0, max(1, tokens, self._most), size))


def _in_float16(hidden: Tensor) -> bool:
    device = hidden.device.type
    return torch.is_autocast_enabled(device) and torch.get_autocast_dtype(device) == torch.float16


def _head_loss(
    logits: Callable[[Tensor], Tensor], loss: Callable[..., Tensor], hidden: Tensor, *columns: Tensor
) -> Tensor:
    return loss(logits(hidden), *columns)


def _cross_entropy(logits: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
    """Sum of weight * -log p(label); logits float32 [tokens, vocab]."""
    return (nn.functional.cross_entropy(logits, labels, reduction="none") * weights).sum()


def _apart(logits: Tensor, ids: Tensor, logs: Tensor, rest: Tensor, weights: Tensor) -> Tensor:
    """Sum of weight * KL(base || model); logits float32 [tokens, vocab]."""
    return (divergence(logits, Likely(ids, logs, rest)) * weights).sum()


def _compared(base: Reference, weights: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return base.ids, base.logs, base.rest, weights.index_select(0, base.rows)


MakeObjective = Callable[..., Objective]

OBJECTIVES: Table[MakeObjective] = Table("objective", {"next_token": NextToken})
