"""Suites of questions, put to the model of a run while it trains, or to any model or two that are to be compared."""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from fulltune.base import stop
from fulltune.base.errors import Fault, RecipeError
from fulltune.base.files import from_json, to_json
from fulltune.base.log import LOGGER
from fulltune.base.records import Plan
from fulltune.base.results import SuiteComparison, SuiteReport
from fulltune.base.rule import Better
from fulltune.data.template import Template
from fulltune.engine.contract import Engine
from fulltune.engine.crew import Alone, Crew
from fulltune.engine.launch import Meeting, world
from fulltune.engine.room import explained
from fulltune.evaluation.answers import Metric
from fulltune.evaluation.asking import Examinee
from fulltune.evaluation.harness import Task
from fulltune.evaluation.intervals import Total, compared
from fulltune.evaluation.metrics import DEFAULTS, metric
from fulltune.evaluation.questions import Questions
from fulltune.evaluation.speaking import Decoding
from fulltune.evaluation.suites import SEED, Examined, Suite
from fulltune.material import Prepared, template
from fulltune.model.folder import load_tokenizer, require_rows, stop_ids
from fulltune.model.load import load_model
from fulltune.recipe.schema import ModelSection
from fulltune.recipe.suites import MetricUse, SuiteSection
from fulltune.runs import RunFolder
from fulltune.training.manifest import step_name

AnySuite = Suite | Task


def suites_of(asked: Sequence[SuiteSection]) -> tuple[AnySuite, ...]:
    """Suites with their metrics, every file of questions read through once; all faults at once."""
    faults: list[Fault] = []
    made = []
    for number, section in enumerate(asked):
        try:
            suite = _suite(section, f"evaluate.suites.{number}.metrics")
            suite.check()
        except RecipeError as fault:
            faults += fault.faults
            continue
        made.append(suite)
    if faults:
        raise RecipeError(faults=faults)
    return tuple(made)


def directions(asked: Sequence[SuiteSection]) -> dict[str, Better]:
    """The scores that suites will give, as `SUITE.METRIC`, and which way is up; no file of questions is read.

    Those of lm-eval are missing: what a task scores is known when it was asked.
    """
    return {name: metric.better for name, metric in _metrics(asked)}


def totals(asked: Sequence[SuiteSection]) -> dict[str, Total]:
    """What makes the same scores of each question's numbers."""
    return {name: metric.total for name, metric in _metrics(asked)}


def _metrics(asked: Sequence[SuiteSection]) -> Iterator[tuple[str, Metric]]:
    for number, section in enumerate(asked):
        suite = _suite(section, f"evaluate.suites.{number}.metrics")
        if isinstance(suite, Suite):
            yield from ((f"{suite.name}.{name}", metric) for name, metric in suite.metrics.items())


def _suite(asked: SuiteSection, where: str) -> AnySuite:
    if asked.kind == "lm_eval":
        return Task(
            name=asked.called,
            path=Path(asked.data),
            limit=asked.limit,
            resamples=asked.resamples,
            confidence=asked.confidence,
        )
    metrics: dict[str, Metric] = {}
    faults: list[Fault] = []
    for used in asked.metrics or [MetricUse(use=name) for name in DEFAULTS[asked.kind]]:
        try:
            metrics[used.called] = metric(used.use, used.options, asked.kind, where=where)
        except RecipeError as fault:
            faults += fault.faults
    if faults:
        raise RecipeError(faults=faults)
    return Suite(
        name=asked.called,
        questions=Questions(
            path=Path(asked.data),
            kind=asked.kind,
            prompt=asked.prompt,
            answer=asked.answer,
            choices=asked.choices,
            limit=asked.limit,
        ),
        metrics=metrics,
        through=asked.through,
        separator=asked.separator,
        decoding=Decoding(
            tokens=asked.max_new_tokens, stop_texts=asked.stop, temperature=asked.temperature, seed=asked.seed
        ),
        resamples=asked.resamples,
        confidence=asked.confidence,
    )


@dataclass(frozen=True, slots=True)
class Material:
    """What belongs to a model that is asked."""

    tokenizer: Any
    template: Template
    stop_ids: frozenset[int]
    """What ends an answer, besides the tokenizer's end token and what the template writes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Examining:
    """Puts a recipe's suites to the model of a run. The first process writes.

    Processes that each have the whole model share the questions; those that have a part of it answer all of them
    together, since each forward pass takes them all.
    """

    suites: tuple[AnySuite, ...]
    material: Material
    batch_tokens: int
    crew: Crew
    folder: Path

    def __call__(self, engine: Engine, step: int) -> tuple[SuiteReport, ...]:
        """The reports; records and answers lie in `step-00000120/` of the folder."""
        folder = self.folder / step_name(step) if self.crew.rank == 0 else None
        made = []
        for suite in self.suites:
            asked = partial(self._examined, suite, step, folder, engine.whole)
            made.append(engine.inside(asked))
            tell(made[-1])
        agreed = self.crew.told(lambda: [to_json(report) for report in made])  # what may be chosen by is one on all
        return tuple(from_json(values, SuiteReport) for values in agreed)

    def _examined(self, suite: AnySuite, step: int, folder: Path | None, whole: bool, model: nn.Module) -> SuiteReport:
        ours, shares = self.material, whole and self.crew.size > 1 and isinstance(suite, Suite)
        check, crew = (stop.check, self.crew) if shares else (partial(stop.check_all, self.crew.any), None)
        asked = Examinee(model, ours.tokenizer, ours.template, ours.stop_ids, self.batch_tokens, check, crew)
        return suite.examine(asked, model=step_name(step), step=step, folder=folder).report


def examining_of(run: RunFolder, plan: Plan, data: Prepared, tokenizer: Any, meeting: Meeting | None) -> Examining:
    """What asks the suites of a run's recipe; without a meeting nothing is asked."""
    section = run.recipe.evaluate
    return Examining(
        suites=() if meeting is None else suites_of(section.suites),
        material=Material(tokenizer, template(run.recipe.model, tokenizer), frozenset(data.facts.stop_ids)),
        batch_tokens=section.batch_tokens or plan.micro_tokens,
        crew=Alone() if meeting is None else meeting.crew,
        folder=run.evaluations,
    )


@dataclass(frozen=True, slots=True)
class Named:
    """A model to be asked: what it is called in results, where it is, and what ends an answer besides."""

    name: str
    section: ModelSection
    stop_ids: frozenset[int] = frozenset()


def ask(model: Named, suites: Sequence[AnySuite], *, batch_tokens: int, folder: Path | None) -> list[Examined]:
    """Load a model and put suites to it. `folder`: where a folder of this model's name is written.

    MachineError where memory runs out.
    """
    section = model.section
    tokenizer = load_tokenizer(section)
    loaded = load_model(section).to(world().device)
    require_rows(loaded, tokenizer, section.path)
    stops = model.stop_ids | set(stop_ids(section))
    asked = Examinee(loaded, tokenizer, template(section, tokenizer), frozenset(stops), batch_tokens, stop.check)
    place = None if folder is None else folder / model.name
    made = []
    with _fitting(batch_tokens):
        for suite in suites:
            made.append(suite.examine(asked, model=model.name, step=None, folder=place))
            tell(made[-1].report)
    return made


def tell(report: SuiteReport) -> None:
    """One line for people, and what of the answers they should know."""
    scores = ", ".join(f"{name} {score:.4f}" for name, score in report.scores.items())
    LOGGER.info(f"suite {report.suite}, {report.model}: {scores} ({report.questions:,} questions)")
    said = {
        "too_long": "questions fill the model's context and got an empty answer",
        "cut": "questions lost their beginning, since the model's context is too short",
        "unfinished": "answers ended at max_new_tokens or at the context's end, not at a stop token",
    }
    for name, what in said.items():
        if report.counts.get(name, 0):
            LOGGER.warning(f"suite {report.suite}, {report.model}: {report.counts[name]:,} {what}")


def comparison(one: Sequence[Examined], other: Sequence[Examined]) -> Iterator[SuiteComparison]:
    """The paired tests of two models that were asked the same questions."""
    for ours, theirs in zip(one, other, strict=True):
        report = ours.report
        if report.asked != theirs.report.asked:
            LOGGER.warning(
                f"suite {report.suite}: {report.model} was asked as {report.asked}, {theirs.report.model} as "
                f"{theirs.report.asked}; through=plain or a chat template for both makes it the same question"
            )
        how: dict[str, Any] = {"resamples": report.resamples, "confidence": report.confidence, "seed": SEED}
        yield SuiteComparison(
            suite=report.suite,
            one=report.model,
            other=theirs.report.model,
            metrics={
                name: compared(ours.items[name], theirs.items[name], total, **how)
                for name, total in ours.totals.items()
            },
        )


def _fitting(batch_tokens: int) -> AbstractContextManager[None]:
    """Says what would help where memory runs out."""
    what = f"with batches of up to {batch_tokens:,} tokens"
    return explained(what, where="--batch-tokens", mend="lower it; no score changes")
