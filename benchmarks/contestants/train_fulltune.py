"""fulltune.train on a recipe as a user would write it; a sink of the journal looks at the clock after each update."""

import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from benchmarks.contestants.course import CLIP, RATE, Course, Mark, Trained
from benchmarks.contestants.task import main_peak, versions


def recipe(course: Course) -> dict[str, Any]:
    """Nothing is measured or saved between the first and the last update, as with the others."""
    return {
        "model": {"path": course.model},
        "data": {"train": course.rows, "heldout": 0, "duplicates": "keep"},
        "train": {"steps": course.updates, "batch_examples": course.batch, "precision": course.precision, "seed": 0},
        "optim": {"lr": RATE, "schedule": "constant", "warmup": 0, "weight_decay": 0.0, "clip": CLIP},
        "checkpoint": {"every": course.updates},
        "evaluate": {"every": course.updates},
        "export": {"dtype": "float32"},
    }


@dataclass(slots=True)
class Clock:
    """Hears the journal."""

    updates: int
    marks: list[Mark] = field(default_factory=list)
    steps: list[Mapping[str, Any]] = field(default_factory=list)
    peak: int = 0

    def hear(self, kind: str, values: Mapping[str, Any]) -> None:
        if kind != "step":
            return
        now = Mark.now()
        if not self.steps:  # nothing is said when the first update begins, but how long it took
            self.marks.append(Mark(now.at - values["seconds"], now.cpu))
        self.steps.append(values)
        self.marks.append(now)
        if len(self.steps) == self.updates:
            self.peak = main_peak()


def main() -> None:
    """Train, then say what it took."""
    course = Course.given()
    import fulltune

    asked, clock = recipe(course), Clock(course.updates)
    asked["train"]["compile"] = "compiled" in sys.argv[2:]
    begun = time.perf_counter()
    fulltune.prepare(asked, out=course.out)
    prepared = time.perf_counter() - begun
    record = fulltune.train(asked, out=course.out, sinks=[clock])
    Trained(
        marks=clock.marks,
        tokens=[step["tokens"] for step in clock.steps],
        supervised=[step["supervised_tokens"] for step in clock.steps],
        losses=[step["loss"] for step in clock.steps],
        prepared=prepared,
        peak=clock.peak,
        weights=record.result,
        versions={"fulltune": fulltune.__version__} | versions(),
    ).write(course.answer)


if __name__ == "__main__":
    main()
