"""The training loop. Read this first: everything else in the package serves these lines."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from fulltune.base.errors import Interrupted
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
    """Update until the data is used up or the run stops getting better; yields before the first and after each update.

    A signal drops what is half done, an update or an evaluation: the state between two updates is saved instead.
    """
    progress = run.progress
    try:
        while True:
            if run.cadence.evaluates(progress):
                progress = run.evaluate(progress)
            if run.cadence.saves(progress):
                progress = run.save(progress)
            yield progress
            if run.cadence.finished(progress):
                return
            progress = run.update(progress)
    except Interrupted:
        run.save(progress)
        raise
