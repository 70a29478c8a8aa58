"""The training loop. Read this first: everything else in the package serves these lines."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from fulltune.base.records import Progress
from fulltune.training.cadence import Cadence

Act = Callable[[Progress], Progress]


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """All that the loop needs, built and bound. It holds no recipe."""

    progress: Progress
    """Where the run stands: at its start, or at the checkpoint from which it goes on."""
    cadence: Cadence
    update: Act
    """Learn from the next examples; an update that is not finite is skipped."""
    evaluate: Act
    """Measure what was kept back, and remember whether it was the best so far."""
    save: Act
    """Write a checkpoint."""


def train(run: Run) -> Iterator[Progress]:
    """Update until the data is used up or the run stops getting better; yields after each update."""
    progress = run.progress
    while not run.cadence.finished(progress):
        before, progress = progress, run.update(progress)
        if run.cadence.evaluates(before, progress):
            progress = run.evaluate(progress)
        if run.cadence.saves(before, progress):
            progress = run.save(progress)
        yield progress
