"""What the loop does besides updates: one evaluation, one checkpoint, each with its lines in the journal."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from fulltune.base.errors import DivergedError
from fulltune.base.files import to_json
from fulltune.base.log import LOGGER
from fulltune.base.records import CheckpointInfo, EvalReport, Progress
from fulltune.base.results import SuiteReport
from fulltune.base.rule import Rule
from fulltune.engine.contract import Engine
from fulltune.training.checkpoint import Checkpoints
from fulltune.training.choosing import choose
from fulltune.training.journal import Journal
from fulltune.training.pulling import Pulling


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluating:
    """Measure, and remember whether it was the best so far."""

    measure: Callable[[int], EvalReport | None]
    rule: Rule
    journal: Journal
    examine: Callable[[int], Sequence[SuiteReport]]
    """Puts suites of questions to the model as it is after so many updates."""
    asks: Callable[[Progress], bool]
    """Whether it is time for that."""

    def examined(self, step: int) -> dict[str, float]:
        """Put the suites to the model, and say in the journal what they gave; the scores as `SUITE.METRIC`."""
        scores: dict[str, float] = {}
        for report in self.examine(step):
            self.journal.write("suite", to_json(report))
            scores |= {f"{report.suite}.{name}": score for name, score in report.scores.items()}
        return scores

    def __call__(self, progress: Progress) -> Progress:
        scores = self.examined(progress.update) if self.asks(progress) else {}
        report = self.measure(progress.update)
        if report is not None:
            self.journal.write("evaluation", to_json(report))
            require_finite(report)
            scores |= report.scores
        if not scores:
            return progress
        return choose(replace(progress, judged=progress.update), self.rule, scores)


def require_finite(report: EvalReport) -> None:
    """DivergedError if a loss is not a number: nothing can be chosen by it."""
    lost = [name for name, score in report.scores.items() if math.isnan(score)]
    if lost:
        raise DivergedError(
            f"{', '.join(lost)} is NaN after update {report.step}",
            where="evaluation",
            mend="lower optim.lr, or train.precision=float32; checkpoints before it are kept",
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Saving:
    """Begin to write a checkpoint; training goes on meanwhile. Nothing to do if this state was saved already."""

    checkpoints: Checkpoints
    engine: Engine
    pulling: Pulling
    journal: Journal

    def __call__(self, progress: Progress) -> Progress:
        if progress.saved == progress.update:
            return progress
        self.tell(self.checkpoints.wait())
        progress = replace(progress, saved=progress.update)
        self.checkpoints.save(self.engine.capture(self.pulling.remembered()), progress, journal=self.journal.size)
        return progress

    def back(self, now: Progress) -> Progress:
        """Bring the newest healthy checkpoint into the engine, in place of what must be left; its progress."""
        self.tell(self.checkpoints.wait())
        step = self.checkpoints.healthy()
        LOGGER.warning(f"going back from update {now.update} to {step}")
        progress, _, extra = self.checkpoints.load(step, self.engine)
        self.pulling.recall(extra)
        self.checkpoints.forget(step)
        return progress

    def tell(self, written: CheckpointInfo | None) -> None:
        """Say in the journal that a checkpoint stands."""
        if written is not None:
            self.journal.write("checkpoint", to_json(written))
