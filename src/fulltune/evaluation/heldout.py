"""Loss per token on data that was kept back: sums over everything, divided once, whatever the batches."""

import math
from collections.abc import Callable, Iterable, Mapping

import torch

from fulltune.base.records import EvalReport
from fulltune.batch import Batch
from fulltune.engine.contract import Engine
from fulltune.objectives import Objective


def measure(
    splits: Mapping[str, Callable[[], Iterable[Batch]]], engine: Engine, objective: Objective, *, step: int
) -> EvalReport:
    """`split.loss` and `split.perplexity` for each split, weighted by token; perplexity is exp of that one mean."""
    scores: dict[str, float] = {}
    counts: dict[str, int] = {}
    for split, batches in splits.items():
        loss, counts[split] = _mean_loss(batches(), engine, objective)
        scores[f"{split}.loss"] = loss
        scores[f"{split}.perplexity"] = math.exp(loss) if loss < 700 else math.inf
    return EvalReport(step=step, scores=scores, counts=counts)


def _mean_loss(batches: Iterable[Batch], engine: Engine, objective: Objective) -> tuple[float, int]:
    """Mean over all supervised tokens, and how many there are."""
    totals = torch.zeros(len(objective.weights), dtype=torch.float64, device=engine.world.device)
    counts = torch.zeros(len(objective.weights), dtype=torch.float64)
    tokens = 0
    with engine.evaluating():
        for batch in batches:
            sums = engine.forward(batch)
            totals += torch.stack([sums[term].double() for term in objective.weights])
            counts += torch.tensor([objective.counts(batch)[term] for term in objective.weights], dtype=torch.float64)
            tokens += batch.supervised
    totals, counts = engine.sum(totals).cpu(), engine.sum(counts)
    weights = torch.tensor(list(objective.weights.values()), dtype=torch.float64)
    tokens = int(engine.sum(torch.tensor(tokens)))
    return float((weights * totals / counts).sum()), tokens
