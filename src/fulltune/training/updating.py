"""One update: the next examples learned from, or skipped, with its line in the journal."""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from fulltune.base.errors import DivergedError
from fulltune.base.files import to_json
from fulltune.base.records import Mark, Progress, StepReport
from fulltune.data.feed import Feed
from fulltune.data.lay import Budget
from fulltune.engine.contract import Engine
from fulltune.objectives import Objective
from fulltune.training.journal import Journal
from fulltune.training.step import Outcome, reseed, step

_NAMED = 20
"""Rows that a skipped update names."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Updating:
    """Learn from the next examples."""

    feed: Feed
    budget: Budget
    engine: Engine
    objective: Objective
    rates: Callable[[int], Sequence[float]]
    """Number of the update, from 0 -> the rate of each parameter group."""
    seed: int
    max_skipped: int
    journal: Journal

    def __call__(self, progress: Progress) -> Progress:
        begun = time.perf_counter()
        members = self.feed.take(progress.position)
        batches = list(self.feed.batches(members, self.budget))
        rates = self.rates(progress.update)
        reseed(self.seed, progress.position, self.engine.world.rank)
        outcome = step(batches, rates, engine=self.engine, objective=self.objective)
        seconds = time.perf_counter() - begun
        after = replace(
            progress,
            position=progress.position + len(members),
            seconds=progress.seconds + seconds,
            begun=Mark(progress.position, progress.update, progress.seconds),
        )
        if not outcome.applied:
            return self._skip(after, outcome)
        tokens, supervised = (
            sum(batch.tokens for batch in batches),
            sum(batch.supervised for batch in batches),
        )
        after = replace(
            after,
            update=progress.update + 1,
            tokens=progress.tokens + tokens,
            supervised_tokens=progress.supervised_tokens + supervised,
        )
        report = StepReport(
            step=after.update,
            loss=outcome.loss,
            lr=max(rates),
            grad_norm=outcome.grad_norm,
            tokens=tokens,
            supervised_tokens=supervised,
            seconds=seconds,
        )
        self.journal.write("step", to_json(report))
        return after

    def _skip(self, progress: Progress, outcome: Outcome) -> Progress:
        """The weights stay; rows are named, never their text."""
        after = replace(progress, skipped=progress.skipped + 1)
        origins = self.feed.origins(outcome.suspects)
        empty = outcome.loss == 0.0 and outcome.grad_norm == 0.0
        what = "nothing supervised" if empty else "loss or gradient not finite"
        figures = {"loss": _name(outcome.loss), "grad_norm": _name(outcome.grad_norm)}
        self.journal.write(
            "warning",
            {
                "what": f"update skipped: {what}",
                "step": after.update,
                "skipped": after.skipped,
                **figures,
                "rows": origins,
            },
        )
        if after.skipped >= self.max_skipped:
            shown = ", ".join(origins[:_NAMED]) + (
                f" and {len(origins) - _NAMED} more" if len(origins) > _NAMED else ""
            )
            raise DivergedError(
                f"{after.skipped} updates were skipped, the last after update {after.update}: {what} "
                f"(loss {figures['loss']}, gradient norm {figures['grad_norm']})",
                where=shown,
                mend="look at these rows; lower optim.lr; or train.precision=float32. The weights before it are kept",
            )
        return after


def _name(value: float) -> float | str:
    return value if math.isfinite(value) else str(value)
