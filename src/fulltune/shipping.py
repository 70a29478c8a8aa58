"""Whether the result of a run is to be shipped: its recipe's gate, held against all that was measured."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from fulltune.base.gate import Gate, GateVerdict, Interval
from fulltune.base.records import DataFacts, EvalReport, Progress, RunRecord
from fulltune.base.results import SuiteReport
from fulltune.base.rule import RETENTION, Better, Rule, Selection
from fulltune.evaluation.answers import Items
from fulltune.evaluation.intervals import compared
from fulltune.evaluation.suites import SEED
from fulltune.examining import directions, totals
from fulltune.planning.scores import gate_of, require_gate, rule_of
from fulltune.recipe.schema import Recipe
from fulltune.runs import RunFolder
from fulltune.training.choosing import selection
from fulltune.training.manifest import step_name


@dataclass(frozen=True, slots=True)
class Measured:
    """What was measured of one model."""

    scores: Mapping[str, float]
    suites: Mapping[str, SuiteReport] = field(default_factory=dict)
    """By name; their scores stand among the others, as `SUITE.METRIC`."""

    @classmethod
    def of(cls, report: EvalReport | None, suites: Sequence[SuiteReport], step: int) -> "Measured":
        """Losses, and the suites that were put to the state after so many updates."""
        asked = {suite.suite: suite for suite in suites if suite.step == step}
        scores = {f"{name}.{metric}": score for name, suite in asked.items() for metric, score in suite.scores.items()}
        return cls({**scores, **(report.scores if report is not None else {})}, asked)


def require_judged(recipe: Recipe, data: DataFacts) -> None:
    """RecipeError if `--gate` could not be answered; asked before anything is trained."""
    require_gate(recipe, data, directions(recipe.evaluate.suites))


def judged(run: RunFolder, record: RunRecord, progress: Progress, rule: Rule) -> RunRecord:
    """The record with the rule that its result was chosen by, and the verdict on it."""
    report = next((one for one in record.evaluations if one.step == record.result_step), None)
    found = Measured.of(report, record.suites, record.result_step)
    chosen = replace(record, selection=selection(progress, rule, found.scores))
    return replace(chosen, verdict=of_record(run, chosen))


def of_record(run: RunFolder, record: RunRecord) -> GateVerdict:
    """The verdict on a run's result by its record."""
    after = next((one for one in record.evaluations if one.step == record.result_step), None)
    return verdict(run, record, record.baseline, after)


def verdict(
    run: RunFolder, record: RunRecord, base: EvalReport | None, result: EvalReport | None, *, own: bool = True
) -> GateVerdict:
    """The verdict by these losses of base and result, and by the suites that the run asked of both.

    `own`: the result is the run's; of any other model the suites of the record say nothing.
    """
    before = Measured.of(base, record.suites, 0)
    after = Measured.of(result, record.suites if own else (), record.result_step)
    suites = directions(run.recipe.evaluate.suites)
    known: dict[str, Better] = {
        name: suites.get(name, "lower") for name in after.scores if name in before.scores or name in suites
    }
    gate = gate_of(run.recipe, known)
    rule = rule_of(run.recipe.checkpoint.best_by, suites)
    notes = tuple(_notes(gate, rule, record.selection)) if own else ()
    return gate.judge(
        before.scores, after.scores, interval=lambda score: _interval(run, score, before, after), notes=notes
    )


def _notes(gate: Gate, rule: Rule, chosen: Selection | None) -> Iterator[str]:
    """What of the figures the result was chosen by itself."""
    if chosen is None:
        return
    if not chosen.kept:
        broken = "; ".join(chosen.broken)
        yield f"no state keeps checkpoint.best_by ({chosen.rule}); the result breaks it least: {broken}"
    chosen_by = {score.partition(".")[0] for score in rule.scores}
    split = (gate.score or "").partition(".")[0]
    if split in chosen_by:
        shown = {"heldout": "held-out data", "retention": "retention data"}.get(split, f"the suite {split}")
        yield f"the gain is measured on {shown}, by which the result was also selected, so it is flattered"
    if RETENTION in rule.scores:
        yield "the result was also selected by retention loss, so what it lost may be more on other texts"


def _interval(run: RunFolder, score: str, before: Measured, after: Measured) -> Interval | None:
    """Of the gain in a suite's score, by drawing the questions anew (paired); None of anything else."""
    for name, ours in after.suites.items():
        metric = score.removeprefix(f"{name}.")
        theirs = before.suites.get(name)
        if metric not in ours.scores or score != f"{name}.{metric}" or theirs is None:
            continue
        if (ours.fingerprint, ours.asked) != (theirs.fingerprint, theirs.asked):
            return None  # other questions, or asked otherwise: there are no pairs
        total = totals(run.recipe.evaluate.suites)[score]
        one, other = (_items(run.evaluations, report, metric) for report in (ours, theirs))
        if one is None or other is None:
            return None
        drawn = compared(one, other, total, resamples=ours.resamples, confidence=ours.confidence, seed=SEED).interval
        return drawn if ours.better[metric] == "higher" else (-drawn[1], -drawn[0])
    return None


def _items(folder: Path, report: SuiteReport, metric: str) -> Items | None:
    """What each question adds to a score, as it was written down; None where it was not, or is gone."""
    if report.items is None or report.step is None:
        return None
    path = folder / step_name(report.step) / report.items
    if not path.exists():
        return None
    with path.open(encoding="utf-8") as lines:
        return np.array([json.loads(line)["numbers"][metric] for line in lines], dtype=np.float64)
