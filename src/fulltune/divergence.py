"""How far a model's predictions lie from another's: KL divergence, of which the likely tokens count one by one.

Of each prediction p of the base the `top` likeliest tokens are kept with their probabilities, and the probability R of
all others together. For the model's prediction q

    KL'(p || q) = sum over kept tokens of p log(p / q) + R log(R / S),  S being what q gives the others together.

That is the KL divergence of p and q after the others were made one. By the log-sum inequality it is never more than
KL(p || q), and what it lacks is, exactly, R times the KL divergence of both predictions among the others:

    KL(p || q) = KL'(p || q) + R * KL(p given others || q given others).

So it is exact where the model moved the others in proportion, and where there is one other. As none of the others is
likelier for the base than the last kept token, of probability t, and none less likely for the model than its least
likely one, of probability m, it lacks at most R log(t / m) - R log(R / S).
"""

from typing import NamedTuple

import torch
from torch import Tensor


class Likely(NamedTuple):
    """Predictions: token ids and log-probabilities [n, top], the likeliest first, and that of all others [n]."""

    ids: Tensor
    logs: Tensor
    rest: Tensor


def likeliest(logits: Tensor, top: int) -> Likely:
    """Of float32 logits [n, vocab]. One token at least is left for the others."""
    total = logits.logsumexp(-1)
    found, ids = logits.topk(min(top, logits.shape[-1] - 1), dim=-1)
    return Likely(ids, found - total[:, None], _others(logits, ids) - total)


def divergence(logits: Tensor, base: Likely) -> Tensor:
    """KL'(base || model) [n] in nats; of the model float32 logits [n, vocab]."""
    total = logits.logsumexp(-1)
    kept = logits.gather(-1, base.ids) - total[:, None]
    return _apart(base.logs, kept).sum(-1) + _apart(base.rest, _others(logits, base.ids) - total)


def _others(logits: Tensor, ids: Tensor) -> Tensor:
    """Log of the sum of exp(logits) over all but some; 1 - what these have would round to 0."""
    return logits.scatter(-1, ids, -torch.inf).logsumexp(-1)


def _apart(base: Tensor, model: Tensor) -> Tensor:
    """Of log-probabilities p log(p / q) - p + q; the last two sum to 0 over all outcomes.

    With them every addend is at least 0, and rounding of the logits counts by its square: with p log(p / q) alone a
    model would be some 1e-7 away from itself, on either side.
    """
    p, grown = base.exp(), model - base
    more = torch.where(grown < 1, p * torch.expm1(grown.clamp(max=1)), model.exp() - p)
    return torch.where(p > 0, more - p * grown, model.exp())
