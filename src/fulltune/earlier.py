"""A run that begins with the result of another one: what that one was judged by is measured again, before and after.

Nothing of an earlier task is trained on; data.replay does that. A folder that somebody else wrote runs nothing: what
its recipe names of code, or on the network, is left out and said.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from fulltune.base.chain import EarlierTask
from fulltune.base.errors import CheckpointError, DataError, RecipeError
from fulltune.base.files import read_record
from fulltune.base.folder import is_run_folder
from fulltune.base.records import DataFacts, RunRecord
from fulltune.data.names import short_names
from fulltune.data.reading.kept import held, written
from fulltune.data.sources import whole_digest
from fulltune.recipe.data import Source
from fulltune.recipe.schema import Recipe
from fulltune.recipe.suites import SuiteSection


@dataclass(frozen=True, slots=True)
class Recorded:
    """What a run that has begun said of its earlier tasks: it stands, whatever became of them."""

    chain: tuple[EarlierTask, ...]
    recipe: Mapping[str, Any]
    """As resolved."""


def continued(recipe: Recipe, recorded: Recorded | None) -> tuple[Recipe, tuple[EarlierTask, ...]]:
    """The recipe with the retention data and the suites of the runs that its model comes from, and those runs.

    A run folder in `model.path` becomes its model; RecipeError if it has none. What is asked for already is not added
    again.
    """
    path = Path(recipe.model.path)
    if is_run_folder(path):
        if not (path / "record.json").exists():
            raise RecipeError("this run has no result yet", where=str(path), mend=f"fulltune train {path}")
        recipe = _with(recipe, "model", path=str(path / "model"))
    if not recipe.evaluate.earlier_tasks:
        return recipe, ()
    found = [_recorded(task, recorded.recipe) for task in recorded.chain] if recorded else list(_tasks(recipe))
    for _, sources, suites in found:
        own = {(source.path, source.split, source.name) for source in recipe.data.retention}
        fresh = [source for source in sources if (source.path, source.split, source.name) not in own]
        if fresh:
            recipe = _with(recipe, "data", retention=(*recipe.data.retention, *fresh))
        names = {suite.called for suite in recipe.evaluate.suites}
        if added := [suite for suite in suites if suite.called not in names]:
            recipe = _with(recipe, "evaluate", suites=(*recipe.evaluate.suites, *added))
    return recipe, tuple(task for task, _, _ in found)


Task = tuple[EarlierTask, Sequence[Source], Sequence[SuiteSection]]


def _with(recipe: Recipe, section: str, **fields: Any) -> Recipe:
    return recipe.model_copy(update={section: vars(recipe)[section].model_copy(update=fields)})


def _recorded(task: EarlierTask, recipe: Mapping[str, Any]) -> Task:
    sources = [Source.model_validate(one) for one in recipe["data"]["retention"] if one["path"] == task.run]
    suites = [SuiteSection.model_validate(one) for one in recipe["evaluate"]["suites"]]
    return task, sources if task.retention else [], [suite for suite in suites if suite.called in task.suites]


def _tasks(recipe: Recipe) -> Iterator[Task]:
    """The runs that a model comes from, the last one first. The same data is no second task."""
    runs = list(_runs(recipe.model.path))
    asked = {suite.called: suite for suite in recipe.evaluate.suites}
    data: set[str] = set()
    for run, name in zip(runs, short_names([str(run) for run in runs]), strict=True):
        try:
            record = read_record(run / "record.json", RunRecord)
            task = EarlierTask(name=name, run=str(run), recipe=record.recipe, result_step=record.result_step)
            before = [_suite(values) for values in (written(run).get("evaluate") or {}).get("suites") or ()]
        except (CheckpointError, RecipeError) as fault:
            why = f"what the run says of itself cannot be read: {fault.faults[0].what}"
            yield EarlierTask(name=name, run=str(run), recipe="", result_step=0, missing=(why,)), (), ()
            continue
        sources, missing = _held_out(run, record.data, data)
        suites, lost = _suites(before, name, asked)
        asked |= {suite.called: suite for suite in suites}
        names = tuple(source.name or name for source in sources)
        called = tuple(suite.called for suite in suites)
        yield replace(task, retention=names, suites=called, missing=(*missing, *lost)), sources, suites


def _runs(path: str) -> Iterator[Path]:
    """The run that a model is the result of, the run that that one began with, and so on."""
    seen: set[Path] = set()
    while (run := Path(path).parent) not in seen and Path(path).name == "model" and is_run_folder(run):
        seen.add(run)
        yield run
        try:
            path = str(written(run)["model"]["path"])
        except (CheckpointError, KeyError, TypeError):  # which is told as what is missing of this run
            return


def _held_out(run: Path, facts: DataFacts, taken: set[str]) -> tuple[list[Source], list[str]]:
    """A run's held-out data as sources, or why it is none."""
    if facts.fingerprint in taken:
        return [], ["its data is that of a later run of the chain"]
    if not facts.splits["heldout"].examples:
        return [], ["it held nothing out"]
    taken.add(facts.fingerprint)
    try:
        found = held(run, "heldout", None, whole_digest, local=True)
    except (DataError, CheckpointError, RecipeError) as fault:
        return [], [f"its held-out data: {fault.faults[0].what}"]
    if own := [one.format for one in found if ":" in one.format]:
        return [], [f"its held-out data: the format {own[0]} is code that only the run's recipe names; name the source"]
    several = len(found) > 1
    return [
        Source(path=str(run), split="heldout", name=one.name if several else None, format=one.format) for one in found
    ], []


def _suite(values: Mapping[str, Any]) -> SuiteSection:
    """A suite of a resolved recipe, in which every field is written; what `use` names is not imported."""
    try:
        return SuiteSection.model_validate({name: value for name, value in values.items() if name != "use"})
    except ValidationError as fault:
        raise CheckpointError(f"a suite of its recipe: {fault.errors()[0]['msg']}") from fault


def _suites(
    before: Sequence[SuiteSection], name: str, asked: Mapping[str, SuiteSection]
) -> tuple[list[SuiteSection], list[str]]:
    """The suites of a run, under other names where this one calls other questions so; and those that are gone."""
    found, lost = [], []
    for suite in before:
        if suite.kind == "lm_eval" or any(":" in metric.use for metric in suite.metrics):
            lost.append(f"the suite {suite.called}: it runs code that only the run's recipe names; name it too")
            continue
        if not Path(suite.data).is_file():
            lost.append(f"the suite {suite.called}: its questions are not there any more, {suite.data}")
            continue
        called = suite.called
        if not _alike(suite, asked.get(called, suite)):
            called = f"{name}_{called}"
        if _alike(suite, asked.get(called, suite)):
            found.append(suite.model_copy(update={"name": called}))
        else:
            lost.append(f"the suite {suite.called}: another one is called {called}")
    return found, lost


def _alike(one: SuiteSection, other: SuiteSection) -> bool:
    """Whether two suites ask the same in the same way, whatever they are called."""
    plain = {"name": "", "use": None}
    return one.model_copy(update=plain) == other.model_copy(update=plain)
