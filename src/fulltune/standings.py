"""How a sweep stands: what came of each trial, read from its run's folder; the ranks, the page, the best recipe."""

import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fulltune.base.files import as_text, remove, write_whole
from fulltune.base.secrets import masked
from fulltune.base.sweeps import Axis, State, Sweep, Trial
from fulltune.reporting.page import write_page
from fulltune.reporting.story import read_story
from fulltune.reporting.sweep_page import page
from fulltune.sweeping.advice import advice
from fulltune.sweeping.study import Study

_PLAIN = re.compile(r"[\w./:@+-]+")


@dataclass(frozen=True, slots=True, kw_only=True)
class Standings:
    """Reads and writes down what came of a sweep."""

    folder: Path
    axes: tuple[Axis, ...]
    by: str
    falls: bool
    notes: tuple[str, ...]

    def place(self, number: int) -> Path:
        """The run folder of a trial."""
        return self.folder / "trials" / f"{number:03d}"

    def score(self, number: int) -> float | None:
        """What a trial is ranked by: of its result."""
        after = read_story(self.place(number)).after
        return None if after is None else after.scores.get(self.by)

    def now(self, study: Study) -> Sweep:
        """The sweep as it is now."""
        trials = [self._trial(*state) for state in study.states()]
        done = sorted((one for one in trials if one.state == "done"), key=self._loss)
        ranked = [replace(trial, rank=rank) for rank, trial in enumerate(done, 1)]
        before = self._before(ranked[0].number) if ranked else {}
        return Sweep(
            folder=str(self.folder),
            by=self.by,
            better="lower" if self.falls else "higher",
            axes=self.axes,
            before=before,
            trials=(*ranked, *(trial for trial in trials if trial.state != "done")),
            best=str(self.folder / "best.yaml") if ranked else None,
            advice=tuple(advice(self.axes, trials, falls=self.falls)),
            notes=(*self.notes, *self._cautions(trials, before)),
        )

    def write(self, made: Sweep) -> None:
        """For programs and for people."""
        write_whole(self.folder / "result.json", as_text(made))
        write_page(self.folder / "sweep.html", page(made))

    def write_best(self, made: Sweep, text: str, note: str) -> None:
        """The recipe of the trial that stands first. `note`: what else there is to say of it."""
        best = made.trials[0]
        head = [
            f"The best recipe of a sweep: trial {best.number}, {made.by} {best.score:.4f}.",
            f"Chosen: {said(best.values)}",
            *([note] if note else []),
        ]
        write_whole(self.folder / "best.yaml", "".join(f"# {masked(line)}\n" for line in head) + text)

    def clear(self, made: Sweep) -> None:
        """Remove the weights of all trials that ended but the best; what is told of them stays."""
        for trial in made.trials[1:]:
            for part in ("checkpoints", "model"):
                folder = self.place(trial.number) / part
                if trial.state != "open" and folder.is_dir():
                    remove(folder)

    def _trial(self, number: int, state: State, values: Mapping[str, Any], reason: str) -> Trial:
        folder = self.place(number)
        trial = Trial(number=number, state=state, values=dict(values), folder=str(folder), reason=reason)
        if not folder.is_dir():
            return trial
        story = read_story(folder)
        scores = {} if story.after is None else story.after.scores
        score = scores.get(self.by, math.nan)
        return replace(
            trial,
            score=score if math.isfinite(score) else None,
            retention=scores.get("retention.loss"),
            tokens=int(sum(filter(math.isfinite, story.columns["tokens"]))),
            seconds=sum(filter(math.isfinite, story.columns["seconds"])),
        )

    def _before(self, number: int) -> dict[str, float]:
        baseline = read_story(self.place(number)).baseline
        return {} if baseline is None else dict(baseline.scores)

    def _loss(self, trial: Trial) -> float:
        """Less is better, whatever the score."""
        if trial.score is None:
            return math.inf
        return trial.score if self.falls else -trial.score

    def _cautions(self, trials: list[Trial], before: Mapping[str, float]) -> Iterator[str]:
        """What to know before believing a table."""
        done = [trial for trial in trials if trial.state == "done"]
        if len(done) > 1:
            yield f"the best of {len(done)} was chosen by the very score that is shown, which flatters it"
        base = before.get(self.by)
        if base is not None and all(self._loss(trial) >= (base if self.falls else -base) for trial in done):
            yield f"no trial is better than the base, whose {self.by} is {base:.4f}"
        if pruned := sum(trial.state == "pruned" for trial in trials):
            yield f"{pruned} ended early: what they scored there is no result, and they have no rank"


def said(values: Mapping[str, Any]) -> str:
    """Values by field, in one line."""
    return " ".join(
        f"{name}={value if isinstance(value, str) and _PLAIN.fullmatch(value) else json.dumps(value)}"
        for name, value in values.items()
    )
