"""One update: the next examples learned from, or skipped, or the run taken back; with its lines in the journal."""

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch

from fulltune.base.errors import DivergedError, MachineError
from fulltune.base.files import to_json
from fulltune.base.log import LOGGER
from fulltune.base.records import Mark, Progress, StepReport
from fulltune.batch import Batch
from fulltune.data.feed import Feed
from fulltune.data.lay import Budget
from fulltune.engine.contract import Engine
from fulltune.objectives import Objective
from fulltune.training.journal import Journal
from fulltune.training.spikes import Spikes, score
from fulltune.training.step import Outcome, reseed, step, trial
from fulltune.training.trouble import Shortage, agreed, attempted, empty, release, unrepeatable

_NAMED = 20
"""Rows that an error names."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Odd:
    """What a line of the journal says of an update that was no ordinary one: rows are named, never their text."""

    what: str
    step: int
    """Updates made before it, or with it if it was made."""
    skipped: int
    loss: float
    grad_norm: float
    rows: tuple[str, ...]


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
    on_nonfinite: Literal["stop", "skip", "rollback"]
    max_skipped: int
    spikes: Spikes
    max_rollbacks: int
    back: Callable[[Progress], Progress]
    """Given the progress that must be left, brings the last healthy checkpoint into the engine: ITS progress."""
    stopped: Callable[[], bool]
    """Whether this process is asked to stop; asked between micro-batches."""
    journal: Journal
    mixing: Callable[[int], AbstractContextManager[None]]
    """Around the passes of the update that begins at a position: weights may be others in there."""

    def __call__(self, progress: Progress) -> Progress:
        begun = time.perf_counter()
        members = self.feed.take(progress.position)
        rates = self.rates(progress.update)
        outcome, progress = self._made(members, rates, progress)
        # The same on all ranks, which ask it when to save: the mean.
        seconds = float(self.engine.sum(torch.tensor(time.perf_counter() - begun, dtype=torch.float64)))
        seconds /= self.engine.world.size
        after = replace(
            progress,
            position=progress.position + len(members),
            seconds=progress.seconds + seconds,
            begun=Mark(progress.position, progress.update, progress.seconds),
        )
        if not outcome.applied:
            return self._refused(after, replace(outcome, suspects=self._of_all(outcome.suspects, members)))
        spike = self.spikes.found(outcome.loss, progress.losses)
        after = replace(
            after,
            update=progress.update + 1,
            healthy=not spike,
            losses=self.spikes.remembered(outcome.loss, progress.losses),
            tokens=progress.tokens + outcome.tokens,
            supervised_tokens=progress.supervised_tokens + outcome.supervised,
        )
        report = StepReport(
            step=after.update,
            loss=outcome.loss,
            lr=max(rates),
            grad_norm=outcome.grad_norm,
            tokens=outcome.tokens,
            supervised_tokens=outcome.supervised,
            seconds=seconds,
            penalty=outcome.penalty,
        )
        self.journal.write("step", to_json(report))
        if spike:
            self._warn(f"loss spike, {score(outcome.loss, progress.losses):.1f} deviations up", after, outcome, members)
        return after

    def rehearse(self, progress: Progress) -> Progress:
        """Try what asks for the most memory, and move nothing, so that memory runs out now or hardly ever.

        The progress that comes back knows how small micro-batches must be. MachineError if none are small enough.
        """
        heaviest = self.feed.heaviest(self.budget)
        with unrepeatable("with weights, gradients and optimizer state alone"), self.engine.rehearsing():
            for members in heaviest:
                while (lack := self._tried(members, heaviest[0], progress)) is not None:
                    progress = self._halved(progress, lack, members)
        empty()
        return progress

    def _made(self, members: Sequence[int], rates: Sequence[float], progress: Progress) -> tuple[Outcome, Progress]:
        """The update, made again as often as micro-batches must be smaller or the loss scale was too high."""
        while True:
            outcome = self._attempt(members, rates, progress)
            if isinstance(outcome, Shortage):
                progress = self._halved(progress, outcome, members)
            elif outcome.again:
                LOGGER.debug(f"the loss scale was lowered; update {progress.update + 1} is made again")
            else:
                return outcome, progress

    def _attempt(self, members: Sequence[int], rates: Sequence[float], progress: Progress) -> Outcome | Shortage:
        batches = self._batches(members, progress)
        if isinstance(batches, Shortage):
            return batches
        after, budget = progress.position + len(members), self.budget.halved(progress.halvings)
        with self.mixing(progress.position), self.feed.ahead(after, budget):
            return step(
                batches,
                rates,
                engine=self.engine,
                objective=self.objective,
                stopped=self.stopped,
                refused=lambda loss: self.spikes.refused(loss, progress.losses),
            )

    def _tried(self, members: Sequence[int], longest: Sequence[int], progress: Progress) -> Shortage | None:
        """The largest micro-batch of these examples, since others need no more.

        Where an update can have several, behind a small one: then gradients lie there already.
        """
        batches, before = self._batches(members, progress), self._batches(self.feed.shortest, progress)
        if isinstance(batches, Shortage):
            return batches
        if isinstance(before, Shortage):
            return before
        largest = max(batches, key=lambda batch: (batch.ids.shape[1], batch.ids.numel()))
        several = len(self.feed.cut(longest, self.budget.halved(progress.halvings))) > self.engine.world.size
        tried = [*before, largest] if several else [largest]
        with self.mixing(progress.position):
            return trial(tried, engine=self.engine, objective=self.objective, stopped=self.stopped)

    def _batches(self, members: Sequence[int], progress: Progress) -> list[Batch] | Shortage:
        """The micro-batches of these examples, and the seed that their passes begin with each time."""
        budget = self.budget.halved(progress.halvings)
        reseed(self.seed, progress.position, self.engine.world.rank)
        batches = attempted(lambda: list(self.feed.batches(members, budget)))
        lack = agreed(batches if isinstance(batches, Shortage) else None, self.engine, self.stopped)
        return batches if lack is None else lack

    def _halved(self, progress: Progress, lack: Shortage, members: Sequence[int]) -> Progress:
        """Micro-batches are halved until these examples fall into other ones."""
        release()
        before = self.feed.cut(members, self.budget.halved(progress.halvings))
        if lack.alone or all(len(micro) <= 1 for micro in before):
            raise MachineError(
                f"out of memory with one example in a micro-batch: {lack.said}",
                where="train.micro_examples",
                mend="memory.checkpointing=full, a lower data.max_length, train.precision=bf16-mixed, or more memory",
            )
        times = progress.halvings + 1
        while self.feed.cut(members, self.budget.halved(times)) == before:
            times += 1
        budget = self.budget.halved(times)
        size = f"{budget.examples:,} examples and {budget.tokens:,} tokens"
        self.journal.write(
            "warning",
            {
                "what": f"out of memory: {lack.said}; from here on micro-batches hold at most {size}",
                "step": progress.update,
                "micro_examples": budget.examples,
                "micro_tokens": budget.tokens,
            },
        )
        return replace(progress, halvings=times)

    def _refused(self, after: Progress, outcome: Outcome) -> Progress:
        """What becomes of an update that was not made: the weights stay, whatever it is."""
        nonfinite = outcome.why == "loss or gradient not finite"
        if outcome.why == "loss spike" or (nonfinite and self.on_nonfinite == "rollback"):
            return self._taken_back(after, outcome)
        after = replace(after, skipped=after.skipped + 1, healthy=False)
        line = self._warn(f"update skipped: {outcome.why}", after, outcome, outcome.suspects)
        if nonfinite and self.on_nonfinite == "stop":
            raise _diverged(f"{outcome.why} after update {after.update}", line)
        if after.skipped >= self.max_skipped:
            said = f"{after.skipped} updates were skipped, the last after update {after.update}"
            raise _diverged(f"{said}: {outcome.why}", line)
        return after

    def _taken_back(self, now: Progress, outcome: Outcome) -> Progress:
        """Go on from the last healthy checkpoint with what comes behind these examples."""
        if now.rollbacks >= self.max_rollbacks:
            line = self._warn(f"update not made: {outcome.why}", now, outcome, outcome.suspects)
            raise _diverged(f"{outcome.why} after update {now.update}, and {now.rollbacks} rollbacks before it", line)
        healthy = self.back(now)
        line = self._line(f"{outcome.why}: back to update {healthy.update}", now, outcome, outcome.suspects)
        more = {"to": healthy.update, "position": now.position, "why": outcome.why}
        self.journal.write("rollback", {**line, **more})
        return replace(
            healthy,
            position=now.position,
            skipped=now.skipped,
            rollbacks=now.rollbacks + 1,
            halvings=now.halvings,
            seconds=now.seconds,
        )

    def _of_all(self, own: Collection[int], members: Sequence[int]) -> tuple[int, ...]:
        """The examples of an update that any rank suspects."""
        flags = self.engine.sum(torch.tensor([float(member in own) for member in members]))
        return tuple(member for member, flag in zip(members, flags.tolist(), strict=True) if flag)

    def _warn(self, what: str, progress: Progress, outcome: Outcome, members: Sequence[int]) -> dict[str, Any]:
        line = self._line(what, progress, outcome, members)
        self.journal.write("warning", line)
        return line

    def _line(self, what: str, progress: Progress, outcome: Outcome, members: Sequence[int]) -> dict[str, Any]:
        return to_json(
            _Odd(
                what=what,
                step=progress.update,
                skipped=progress.skipped,
                loss=outcome.loss,
                grad_norm=outcome.grad_norm,
                rows=tuple(self.feed.origins(members)),
            )
        )


def _diverged(what: str, line: Mapping[str, Any]) -> DivergedError:
    rows = line["rows"]
    more = f" and {len(rows) - _NAMED} more" if len(rows) > _NAMED else ""
    return DivergedError(
        f"{what} (loss {line['loss']}, gradient norm {line['grad_norm']})",
        where=", ".join(rows[:_NAMED]) + more,
        mend="look at these rows; lower optim.lr; or train.precision=float32. The weights before it are kept",
    )
