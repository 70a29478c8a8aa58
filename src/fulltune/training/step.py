"""One update: micro-batches in, an outcome out."""

import hashlib
import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from fulltune.batch import Batch
from fulltune.engine.contract import Engine
from fulltune.objectives import Objective
from fulltune.training.trouble import Shortage, agreed, attempted, unrepeatable

Why = Literal["", "nothing supervised", "loss or gradient not finite", "loss spike"]


def _never(*_: object) -> bool:
    return False


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What came of an update. If it was not applied: why, and the examples in which the fault may lie."""

    loss: float = 0.0
    penalty: float = 0.0
    """What the objective's penalties add to the loss, by their weights."""
    grad_norm: float = math.nan
    """Before clipping; NaN where it was not asked for."""
    applied: bool = False
    again: bool = False
    """The loss scale was lowered: the same update is to be made again."""
    why: Why = ""
    suspects: tuple[int, ...] = ()
    """Of this rank."""
    tokens: int = 0
    """Of all ranks, as all but the suspects is."""
    supervised: int = 0


def step(
    batches: Sequence[Batch],
    rates: Sequence[float],
    *,
    engine: Engine,
    objective: Objective,
    stopped: Callable[[], bool] = _never,
    refused: Callable[[float], bool] = _never,
) -> Outcome | Shortage:
    """The mean loss over ALL supervised tokens of the update, whatever the ranks and micro-batches; then its gradient.

    Nothing is applied if loss or gradient are not finite, if the loss is `refused`, or if nothing is supervised. A
    Shortage if memory ran out before the weights moved, MachineError if it did while they moved.
    """
    counts, tokens, supervised = _counts(batches, engine, objective)
    if not any(counts.values()):
        return Outcome(grad_norm=0.0, why="nothing supervised", suspects=_examples(batches))
    own = _shares(batches, counts, engine=engine, objective=objective, stopped=stopped)
    if isinstance(own, Shortage):
        return own
    found = _told(own, engine, objective)
    if not math.isfinite(found.loss + found.penalty):
        engine.clear()
        guilty = [batch for batch, share in zip(batches, own.tolist(), strict=True) if not math.isfinite(sum(share))]
        return replace(found, why="loss or gradient not finite", suspects=_examples(guilty))
    if refused(found.loss):
        engine.clear()
        return replace(found, why="loss spike", suspects=_examples(batches))
    with unrepeatable("while the weights moved"):
        update = engine.update(rates)
    found = replace(found, grad_norm=update.grad_norm)
    if update.again:
        return replace(found, again=True)
    if not update.applied:
        return replace(found, why="loss or gradient not finite", suspects=_examples(batches))
    return replace(found, applied=True, tokens=tokens, supervised=supervised)


def _told(own: Tensor, engine: Engine, objective: Objective) -> Outcome:
    """The loss over all ranks, and what penalties add to it. An update waits for the device here, and for the norm."""
    sums = torch.stack([column.sum() for column in own.T.contiguous()])  # each summed as it would be alone
    loss, penalty = engine.sum(sums).tolist()
    return Outcome(loss=loss, penalty=penalty if objective.penalties else 0.0)


def trial(
    batches: Sequence[Batch], *, engine: Engine, objective: Objective, stopped: Callable[[], bool] = _never
) -> Shortage | None:
    """The passes that `step` would make of these, for their memory alone: nothing moves."""
    counts, *_ = _counts(batches, engine, objective)
    if not any(counts.values()):
        return None
    own = _shares(batches, counts, engine=engine, objective=objective, stopped=stopped)
    engine.clear()
    return own if isinstance(own, Shortage) else None


def _shares(
    batches: Sequence[Batch],
    counts: Mapping[str, float],
    *,
    engine: Engine,
    objective: Objective,
    stopped: Callable[[], bool],
) -> Tensor | Shortage:
    """This rank's addends of loss and penalties [micro-batches, 2], their gradients made.

    Between micro-batches all ranks agree to go on.
    """
    shares = []
    for number, batch in enumerate(batches, start=1):
        passes = partial(_share, batch, counts, last=number == len(batches), engine=engine, objective=objective)
        share = attempted(passes, alone=len(batch.examples) <= 1)
        if isinstance(share, Tensor):
            shares.append(share)
        if lack := agreed(share if isinstance(share, Shortage) else None, engine, stopped):
            return lack
    return torch.stack(shares)


def _share(batch: Batch, counts: Mapping[str, float], *, last: bool, engine: Engine, objective: Objective) -> Tensor:
    """One micro-batch's addends of loss and penalties, forward and backward [2].

    What it holds goes with it if it does not fit.
    """
    with engine.micro(last=last):
        sums = engine.forward(batch)
        share, added = (_weighed(sums, weights, counts) for weights in (objective.weights, objective.penalties))
        total = torch.stack([part for part in (share, added) if part is not None]).sum()
        engine.backward(total)
    return torch.stack([torch.zeros_like(total) if part is None else part.detach() for part in (share, added)])


def _weighed(sums: Mapping[str, Tensor], weights: Mapping[str, float], counts: Mapping[str, float]) -> Tensor | None:
    """The addend of these terms; None if none of them counts, or is in this micro-batch."""
    terms = [weight / counts[term] * sums[term] for term, weight in weights.items() if counts[term] and term in sums]
    return torch.stack(terms).sum() if terms else None


def _counts(batches: Sequence[Batch], engine: Engine, objective: Objective) -> tuple[Mapping[str, float], int, int]:
    """Over all micro-batches of all ranks: the denominators of all terms, tokens, and supervised tokens."""
    each = [(objective.counts(batch), batch) for batch in batches]
    terms = [*objective.weights, *objective.penalties]
    rows = [[*(count[term] for term in terms), one.tokens, one.supervised] for count, one in each]
    *counts, tokens, supervised = engine.sum(torch.tensor(rows, dtype=torch.float64).sum(0)).tolist()
    return dict(zip(terms, counts, strict=True)), int(tokens), int(supervised)


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
