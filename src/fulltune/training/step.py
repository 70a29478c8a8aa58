"""One update: micro-batches in, an outcome out."""

import hashlib
import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from fulltune.batch import Batch
from fulltune.engine.contract import Engine
from fulltune.objectives import Objective


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of an update. If it was not applied, `suspects` are the examples in which the fault may lie."""

    loss: float
    grad_norm: float
    applied: bool
    suspects: tuple[int, ...] = ()


def step(batches: Sequence[Batch], rates: Sequence[float], *, engine: Engine, objective: Objective) -> Outcome:
    """The mean loss over ALL supervised tokens of the update, whatever the ranks and micro-batches; then its gradient.

    Nothing is applied if loss or gradient are not finite. An update without supervised tokens is not applied either.
    """
    counts = _counts(batches, engine, objective)
    if not any(counts.values()):
        return Outcome(0.0, 0.0, applied=False, suspects=_examples(batches))
    shares = []
    for number, batch in enumerate(batches, start=1):
        with engine.micro(last=number == len(batches)):
            sums = engine.forward(batch)
            terms = [objective.weights[t] / counts[t] * total for t, total in sums.items() if counts[t]]
            share = torch.stack(terms).sum()
            engine.backward(share)
        shares.append(share.detach())
    own = torch.stack(shares)
    loss = float(engine.sum(own.sum()))  # an update waits for the device here, and for the norm
    if not math.isfinite(loss):
        engine.clear()
        guilty = [batch for batch, share in zip(batches, own.tolist(), strict=True) if not math.isfinite(share)]
        return Outcome(loss, math.nan, applied=False, suspects=_examples(guilty))
    update = engine.update(rates)
    return Outcome(loss, update.grad_norm, update.applied, () if update.applied else _examples(batches))


def _counts(batches: Sequence[Batch], engine: Engine, objective: Objective) -> Mapping[str, float]:
    """The denominators of all terms, over all micro-batches of all ranks."""
    each = [objective.counts(batch) for batch in batches]
    own = torch.tensor([[count[term] for term in objective.weights] for count in each], dtype=torch.float64).sum(0)
    return dict(zip(objective.weights, engine.sum(own).tolist(), strict=True))


def _examples(batches: Sequence[Batch]) -> tuple[int, ...]:
    return tuple(example for batch in batches for example in batch.examples)


def reseed(seed: int, position: int, rank: int) -> None:
    """Seed every generator from where the run stands, so that dropout too is a pure function of a position.

    No generator's state has to be saved, and a run that was killed draws the same masks when it goes on.
    """
    digest = hashlib.sha256(f"{seed}/{position}/{rank}".encode()).digest()
    number = int.from_bytes(digest[:4], "little")
    torch.manual_seed(number)
    random.seed(number)
    np.random.seed(number)
