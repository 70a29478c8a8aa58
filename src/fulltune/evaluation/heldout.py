"""Loss per token on data that was kept back: sums over everything, divided once, whatever the batches."""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from fulltune.base import stop
from fulltune.base.records import EvalReport
from fulltune.batch import Batch
from fulltune.engine.contract import Engine
from fulltune.objectives import Objective

Sources = Mapping[str, Callable[[], Iterable[Batch]]]
"""A split: the name of each of its sources, and what makes that source's batches."""


def measure(splits: Mapping[str, Sources], engine: Engine, objective: Objective, *, step: int) -> EvalReport:
    """`split.loss` and `split.perplexity` for each split, weighted by token; perplexity is exp of that one mean.

    Of several sources each has its `split.source.loss` besides; no batch is looked at twice for it. Interrupted
    between two batches where a signal came.
    """
    scores: dict[str, float] = {}
    counts: dict[str, int] = {}
    for split, sources in splits.items():
        sums = {name: _sums(batches(), engine, objective) for name, batches in sources.items()}
        total = _Sums.of(sums.values())
        counts[split], loss = total.tokens, total.loss(objective)
        scores[f"{split}.loss"] = loss
        scores[f"{split}.perplexity"] = math.exp(loss) if loss < 700 else math.inf
        for name, part in sums.items() if len(sums) > 1 else ():
            counts[f"{split}.{name}"], scores[f"{split}.{name}.loss"] = part.tokens, part.loss(objective)
    return EvalReport(step=step, scores=scores, counts=counts)


@dataclass(frozen=True, slots=True)
class _Sums:
    """Over some batches of all ranks: each term of the objective, its denominator, and the supervised tokens."""

    terms: Tensor
    counts: Tensor
    tokens: int

    @classmethod
    def of(cls, parts: Iterable["_Sums"]) -> "_Sums":
        """All of them together."""
        kept = list(parts)
        terms, counts = (
            torch.stack(column).sum(0) for column in zip(*((p.terms, p.counts) for p in kept), strict=True)
        )
        return cls(terms, counts, sum(part.tokens for part in kept))

    def loss(self, objective: Objective) -> float:
        """Mean over all supervised tokens."""
        weights = torch.tensor(list(objective.weights.values()), dtype=torch.float64)
        return float((weights * self.terms / self.counts).sum())


def _sums(batches: Iterable[Batch], engine: Engine, objective: Objective) -> _Sums:
    totals = torch.zeros(len(objective.weights), dtype=torch.float64, device=engine.world.device)
    counts = torch.zeros(len(objective.weights), dtype=torch.float64)
    tokens = 0
    with engine.evaluating():
        for batch in batches:
            stop.check_all(engine.any)
            sums = engine.forward(batch)
            totals += torch.stack([sums[term].double() for term in objective.weights])
            counts += torch.tensor([objective.counts(batch)[term] for term in objective.weights], dtype=torch.float64)
            tokens += batch.supervised
    return _Sums(engine.sum(totals).cpu(), engine.sum(counts), int(engine.sum(torch.tensor(tokens))))
