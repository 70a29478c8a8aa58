"""What of a run's data the base's predictions are kept for: texts that it is measured by, texts that it is held by."""

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fulltune.base.files import fingerprint
from fulltune.base.records import IGNORE, DataFacts, Plan
from fulltune.data.feed import Refer, once
from fulltune.data.lay import Budget
from fulltune.data.mixing import mixture
from fulltune.data.store import Store
from fulltune.engine.contract import Engine
from fulltune.engine.crew import Crew
from fulltune.objectives import NextToken, Objective
from fulltune.planning.comparing import measures
from fulltune.recipe.schema import Recipe
from fulltune.training.reference import References, bytes_of

_GOLDEN = (5**0.5 - 1) / 2
"""Multiples of it, less their whole parts, lie evenly in [0, 1) however many they are."""


@dataclass(frozen=True, slots=True)
class Compared:
    """Examples of one split for which the base's predictions are kept in `base-NAME/` of a folder."""

    references: References
    members: Sequence[int]
    store: Store
    budget: Budget
    bytes: int
    """At most on disk."""

    def make(self, engine: Engine, objective: Objective, crew: Crew) -> None:
        """By the model that the engine has now."""
        assert isinstance(objective, NextToken)  # of others nothing is compared
        rank, size = engine.world.rank, engine.world.size
        batches = once(self.store, self.budget, members=self.members, rank=rank, size=size)
        self.references.make(batches, engine, objective, crew)


@dataclass(frozen=True, slots=True)
class Comparing:
    """All that a run is compared with."""

    measured: Compared | None
    """Of data.retention: for the score `retention.kl`."""
    held: Compared | None
    """Of data.replay: for the penalty that `train.kl_weight` asks for."""

    @property
    def refer(self) -> Refer | None:
        """What training batches are to be compared with."""
        return None if self.held is None else self.held.references

    @property
    def bytes(self) -> int:
        """Of all of it, on disk."""
        return sum(one.bytes for one in self._all())

    def make(self, engine: Engine, objective: Objective, crew: Crew, *, anew: bool, ready: Callable[[], None]) -> None:
        """What is not there; with `anew` all of it. `ready` sees to it that the engine has the base's weights."""
        for one in self._all():
            if anew or not one.references.stand(crew):
                ready()
                one.make(engine, objective, crew)

    def _all(self) -> Iterator[Compared]:
        yield from (one for one in (self.measured, self.held) if one is not None)


def comparing(recipe: Recipe, plan: Plan, facts: DataFacts, stores: Mapping[str, Store], folder: Path) -> Comparing:
    """What the recipe asks for, as far as there is data for it."""
    of = _Of(
        {"model": recipe.model.model_dump(mode="json"), "data": facts.fingerprint, "precision": plan.precision},
        Budget(plan.micro_tokens, plan.micro_tokens, "padded", plan.context),
    )
    measured = held = None
    if measures(recipe, "retention" in stores):
        chosen, top = spread(stores["retention"], recipe.evaluate.kl_tokens), recipe.evaluate.kl_top
        members = np.array(sorted(chosen), np.int64)
        measured = of.compared(stores["retention"], folder / "base-retention", members, top, cut=chosen)
    if recipe.train.kl_weight:
        mixed, end = mixture(recipe.data, facts.splits["train"]), _positions(recipe, plan)
        replay = np.arange(sum(mixed.own), len(stores["train"]))
        if end is not None:
            replay = np.intersect1d(replay, mixed.order(recipe.train.seed).at(0, end))
        held = of.compared(stores["train"], folder / "base-replay", replay, recipe.train.kl_top, cut={})
    return Comparing(measured, held)


def _positions(recipe: Recipe, plan: Plan) -> int | None:
    """How many examples a run sees, those of updates too that may be skipped; None if that is not known."""
    if plan.examples is not None or recipe.train.batch_tokens is not None:
        return plan.examples
    return (plan.updates + recipe.train.max_skipped) * recipe.train.batch_examples


@dataclass(frozen=True, slots=True)
class _Of:
    """What all predictions of a run's base depend on."""

    identity: Mapping[str, Any]
    budget: Budget

    def compared(
        self, store: Store, folder: Path, members: NDArray[np.int64], top: int, *, cut: Mapping[int, int]
    ) -> Compared:
        """Those for some examples of a store."""
        digest = hashlib.sha256(np.ascontiguousarray(members, "<i8").tobytes()).hexdigest()
        key = fingerprint({**self.identity, "top": top, "members": digest, "cut": sorted(cut.items())})
        tokens = sum(cut.values()) if cut else int(store.lengths[members].sum(dtype=np.int64))
        references = References(folder, key, top, cut)
        return Compared(references, members.tolist(), store, self.budget, bytes_of(tokens, top))


def spread(store: Store, most: int) -> dict[int, int]:
    """Examples spread over a store, and how many of their supervised tokens: `most` in all, or all that there are.

    The same whenever it is asked. Each source has about its part of them.
    """
    chosen: dict[int, int] = {}
    left = most
    for member in np.argsort(np.arange(len(store)) * _GOLDEN % 1, kind="stable").tolist():
        if left == 0:
            break
        chosen[member] = min(left, int((store[member].labels != IGNORE).sum()))
        left -= chosen[member]
    return chosen
