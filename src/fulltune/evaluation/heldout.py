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
from fulltune.objectives import KL, Objective

Sources = Mapping[str, Callable[[], Iterable[Batch]]]
"""A split: the name of each of its sources, and what makes that source's batches."""


def measure(splits: Mapping[str, Sources], engine: Engine, objective: Objective, *, step: int) -> EvalReport:
    """`split.loss` and `split.perplexity` for each split, weighted by token; perplexity is exp of that one mean.

    `split.kl` besides where batches have what the base predicts: the mean KL divergence from it at those tokens. Of
    several sources each has its `split.source.loss` and `split.source.kl` too; no batch is looked at twice for it.
    Interrupted between two batches where a signal came.
    """
    scores: dict[str, float] = {}
    counts: dict[str, int] = {}
    for split, sources in splits.items():
        sums = {name: _sums(batches(), engine, objective) for name, batches in sources.items()}
        total = _Sums.of(sums.values())
        counts[split], loss = total.tokens, total.loss(objective)
        scores[f"{split}.loss"] = loss
        scores[f"{split}.perplexity"] = math.exp(loss) if loss < 700 else math.inf
        if total.compared:
            counts[f"{split}.kl"], scores[f"{split}.kl"] = total.compared, total.kl
        for name, part in sums.items() if len(sums) > 1 else ():
            counts[f"{split}.{name}"], scores[f"{split}.{name}.loss"] = part.tokens, part.loss(objective)
            if part.compared:
                counts[f"{split}.{name}.kl"], scores[f"{split}.{name}.kl"] = part.compared, part.kl
    return EvalReport(step=step, scores=scores, counts=counts)


@dataclass(frozen=True, slots=True)
class _Sums:
    """Over some batches of all ranks: each term of the objective, its denominator, and the supervised tokens.

    The last term is the divergence from the base, and `compared` says over how many tokens.
    """

    terms: Tensor
    counts: Tensor
    tokens: int
    compared: int

    @classmethod
    def of(cls, parts: Iterable["_Sums"]) -> "_Sums":
        """All of them together."""
        kept = list(parts)
        terms, counts = (
            torch.stack(column).sum(0) for column in zip(*((p.terms, p.counts) for p in kept), strict=True)
        )
        return cls(terms, counts, sum(part.tokens for part in kept), sum(part.compared for part in kept))

    def loss(self, objective: Objective) -> float:
        """Mean over all supervised tokens."""
        weights = torch.tensor(list(objective.weights.values()), dtype=torch.float64)
        return float((weights * self.terms[:-1] / self.counts[:-1]).sum())

    @property
    def kl(self) -> float:
        """Mean over all tokens that were compared."""
        return float(self.terms[-1] / self.counts[-1])


def _sums(batches: Iterable[Batch], engine: Engine, objective: Objective) -> _Sums:
    totals = torch.zeros(len(objective.weights) + 1, dtype=torch.float64, device=engine.world.device)
    counts = torch.zeros(len(objective.weights) + 1, dtype=torch.float64)
    tokens = torch.zeros(2, dtype=torch.int64)
    nothing = torch.zeros((), dtype=torch.float64, device=engine.world.device)
    with engine.evaluating():
        for batch in batches:
            stop.check_all(engine.any)
            sums, base = engine.forward(batch), batch.reference
            terms = [sums[term].double() for term in objective.weights]
            totals += torch.stack([*terms, sums[KL].double() if base is not None else nothing])
            weights = [objective.counts(batch)[term] for term in objective.weights]
            counts += torch.tensor([*weights, base.weight if base is not None else 0.0], dtype=torch.float64)
            tokens += torch.tensor([batch.supervised, len(base.rows) if base is not None else 0])
    known, compared = engine.sum(tokens).tolist()
    return _Sums(engine.sum(totals).cpu(), engine.sum(counts), known, compared)
