"""A store of uneven examples, an engine over a tiny model, and what one asks of them."""

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fulltune.base.records import IGNORE
from fulltune.batch import Batch
from fulltune.data.feed import collate
from fulltune.data.lay import Budget
from fulltune.data.lay import lay as cut
from fulltune.data.render import Encoded
from fulltune.data.store import Store
from fulltune.engine.contract import World
from fulltune.engine.layout import Layout
from fulltune.engine.native import NativeEngine
from fulltune.engine.single import Single
from fulltune.model import facts
from fulltune.model.varlen import attends_so
from fulltune.objectives import NextToken
from fulltune.optim.groups import Parting, groups
from fulltune.optim.optimizers import make
from fulltune.planning.precision import precision_plan
from fulltune.recipe.schema import OptimSection
from tests import tiny
from tests.stored import StoreWriter

CPU = World(rank=0, size=1, device="cpu")
SUPERVISED = (1, 2, 15, 3, 14, 1, 1, 8)
"""Taught tokens of the examples: very uneven, so that a mean of means would be far off."""


def examples(count: int, *, vocab: int = tiny.VOCAB, weights: Sequence[float] | None = None) -> list[Encoded]:
    """Random tokens; example n teaches its last SUPERVISED[n % 8] tokens."""
    rng = random.Random(1)
    made = []
    for n in range(count):
        taught = SUPERVISED[n % len(SUPERVISED)]
        ids = [rng.randrange(vocab) for _ in range(taught + rng.randint(1, 12))]
        labels = [IGNORE] * (len(ids) - 1 - taught) + ids[len(ids) - taught :] + [IGNORE]
        weight = 1.0 if weights is None else weights[n]
        factors = [weight if label != IGNORE else 0.0 for label in labels]
        made.append(Encoded(np.array(ids, np.int32), np.array(labels, np.int32), np.array(factors, np.float32)))
    return made


class Ground:
    """One update's worth of data, and an engine that could make it."""

    def __init__(
        self,
        folder: Path,
        model: Any,
        *,
        count: int,
        layout: Any = "padded",
        micro: int = 4,
        weights: Sequence[float] | None = None,
        cut: bool = True,
        keeps_logits: bool = True,
        optimizer: str = "adamw",
        lr: float = 1e-3,
        precision: Any = "float32",
        moments: Any = "float32",
        lay: Layout | None = None,
        rank: int = 0,
        size: int = 1,
        make_engine: Any = None,
        by: Parting | None = None,
        kl: float = 0.0,
        most: int = 0,
        **engine: Any,
    ) -> None:
        with StoreWriter(folder / "store") as writer:
            for line, encoded in enumerate(examples(count, weights=weights), 1):
                writer.append(encoded, source=0, line=line)
        self.store = Store(folder / "store", [("rows.jsonl",)])
        self.budget = Budget(micro, 10_000, layout)
        self.place = {"rank": rank, "size": size}
        self.model = model
        self.objective = NextToken(
            model,
            facts.head(model) if cut else None,
            keeps_logits=keeps_logits,
            kl=kl,
            most=most,
            told=attends_so(model),
        )
        self.refer: Any = None
        self.spared = facts.undecayed(model)
        matrices = facts.matrices(model)
        formats = precision_plan(precision, OptimSection(name=optimizer, moments=moments), several=True)

        def make_optimizer(named: Any) -> Any:
            self.groups = groups(named, Parting(undecayed=self.spared, matrices=matrices) if by is None else by)
            return make(optimizer, self.groups, lr=lr, weight_decay=0.01, options={})

        if make_engine is not None:
            self.engine = make_engine(model, self.objective, make_optimizer, precision=formats)
            return
        self.engine = NativeEngine(
            model,
            self.objective,
            make_optimizer,
            Single(CPU) if lay is None else lay,
            **{"clip": None, **engine},
            precision=formats,
        )

    def batches(self, members: Sequence[int] | None = None) -> list[Batch]:
        members = list(range(len(self.store))) if members is None else list(members)
        lengths = [int(self.store.lengths[i]) for i in members]
        return [
            collate(self.store, [members[i] for i in part], self.budget, self.refer)
            for part in cut(lengths, self.budget, **self.place)
        ]

    def rows(self) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Ids and labels of each example alone."""
        both = [(self.store[i].ids, self.store[i].labels) for i in range(len(self.store))]
        return [tuple(torch.from_numpy(column.astype(np.int64)) for column in pair) for pair in both]

    def gradients(self) -> dict[str, torch.Tensor]:
        """Of the mean loss over all supervised tokens, as the step makes it; the update itself is not made."""
        self.backward()
        return {name: p.grad for name, p in self.model.named_parameters() if p.grad is not None}

    def backward(self) -> float:
        """Forward and backward passes of one update; returns the loss."""
        batches = self.batches()
        count = sum(self.objective.counts(batch)["next_token"] for batch in batches)
        loss = 0.0
        for batch in batches:
            with self.engine.micro(last=batch is batches[-1]):
                share = self.engine.forward(batch)["next_token"] / count
                self.engine.backward(share)
            loss += float(share.detach())
        return loss
