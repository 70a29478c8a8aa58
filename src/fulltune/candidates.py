"""Which models `fulltune evaluate --suite` asks: the result or the base of a run, a model folder, a hub id."""

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from fulltune.base import stop
from fulltune.base.errors import RecipeError
from fulltune.base.files import write_record
from fulltune.base.log import LOGGER
from fulltune.base.results import Examination, Wins
from fulltune.base.stop import listening
from fulltune.engine.launch import machine
from fulltune.evaluation.judging import Judge
from fulltune.evaluation.pairs import pairs
from fulltune.evaluation.suites import Suite, writing_lines
from fulltune.evaluation.wins import counted
from fulltune.examining import AnySuite, Named, ask, comparison, suites_of
from fulltune.model.folder import section_of
from fulltune.planning.make import MICRO_TOKENS
from fulltune.recipe.ask import load_suites
from fulltune.runs import RunFolder, is_run_folder, open_run

_BASE = "base"
"""What the model that a run began with is called."""
_RESULT = "result"


@dataclass(frozen=True, slots=True)
class Candidates:
    """One model, or two that are to be compared, and the run that the first is the result of."""

    models: tuple[Named, ...]
    run: RunFolder | None

    def asked(
        self, suites: Sequence[AnySuite], *, batch_tokens: int | None, out: Path | None, judge: Judge | None = None
    ) -> Examination:
        """Put suites to each, one model in memory at a time; what they gave, the paired tests of two, and a judge's."""
        folder = out if out is not None or self.run is None else self.run.evaluations
        if folder is not None and folder.exists() and not folder.is_dir():
            raise RecipeError("this is no folder", where=str(folder), mend="name another with --out")
        if judge is not None:
            _require_judgeable(self.models, suites, folder)
            LOGGER.info(f"the judge's command, which is run without a shell: {judge}")
        tokens = MICRO_TOKENS[machine().kind] if batch_tokens is None else batch_tokens
        results = [ask(model, suites, batch_tokens=tokens, folder=folder) for model in self.models]
        made = Examination(
            reports=tuple(one.report for result in results for one in result),
            comparisons=tuple(comparison(*results)) if len(results) > 1 else (),
            judged=() if judge is None or folder is None else tuple(self._judged(judge, suites, folder)),
            folder=None if folder is None else str(folder),
        )
        if folder is not None and made.comparisons:
            one, other = (model.name for model in self.models)
            write_record(folder / f"{one}-against-{other}.json", made)
        return made

    def _judged(self, judge: Judge, suites: Sequence[AnySuite], folder: Path) -> Iterator[Wins]:
        """What a judge prefers, suite by suite, with a line for every question."""
        one, other = (model.name for model in self.models)
        for suite in answering(suites):
            both = pairs(folder / one / f"{suite.name}.jsonl", folder / other / f"{suite.name}.jsonl")
            found = judge(list(both), stop.check)
            with writing_lines(folder / f"{one}-against-{other}.{suite.name}.judged.jsonl") as write:
                for item in found:
                    write({**asdict(item.pair), "said": item.said, "verdict": item.verdict, "swayed": item.swayed})
            yield counted(
                [item.verdict for item in found],
                suite=suite.name,
                one=one,
                other=other,
                confidence=suite.confidence,
                swayed=sum(item.swayed for item in found),
            )


def answering(suites: Sequence[AnySuite]) -> list[Suite]:
    """Those in which a model says something."""
    return [suite for suite in suites if isinstance(suite, Suite) and suite.questions.kind == "answer"]


def _require_judgeable(models: Sequence[Named], suites: Sequence[AnySuite], folder: Path | None) -> None:
    """RecipeError if there is nothing for a judge to compare, or nowhere to keep what it says."""
    if len(models) == 1:
        raise RecipeError("a judge compares two models", where="--judge", mend="name the other with --against")
    if not answering(suites):
        raise RecipeError("no suite is of kind answer, so there is nothing to judge", where="--judge", mend="name one")
    if folder is None:
        raise RecipeError("what a judge says of every question must be kept", where="--judge", mend="--out DIR")


def candidates(model: str | os.PathLike[str], against: str | os.PathLike[str] | None) -> Candidates:
    """The models of a command. RecipeError if a run has no result yet, or a base is asked for and there is no run."""
    first, run = _found(model, _RESULT)
    if against is None:
        return Candidates((first,), run)
    second = _base(run, model) if os.fspath(against) == _BASE else _found(against, Path(against).resolve().name)[0]
    # A folder that happens to be called so is neither the base nor the result of the run, in whose folder it is kept.
    if second.name in (first.name, _RESULT) or (second.name == _BASE and os.fspath(against) != _BASE):
        second = replace(second, name=f"{second.name}-2")
    return Candidates((first, second), run)


def _found(model: str | os.PathLike[str], name: str) -> tuple[Named, RunFolder | None]:
    path = Path(model)
    if not is_run_folder(path):
        called = path.resolve().name if path.is_dir() else os.fspath(model).replace("/", "--")
        return Named(called, section_of(model)), None
    run = open_run(path, {}, whole=False)
    run.finished()
    return Named(name, section_of(run.model, run.recipe.model), frozenset(run.data_facts().stop_ids)), run


def _base(run: RunFolder | None, model: str | os.PathLike[str]) -> Named:
    if run is None:
        raise RecipeError(
            "only a run has a base, and this is none", where=os.fspath(model), mend="name a model folder with --against"
        )
    return Named(_BASE, run.recipe.model, frozenset(run.data_facts().stop_ids))


def examine(
    model: str | os.PathLike[str],
    suites: Sequence[str | os.PathLike[str] | Mapping[str, Any]] = (),
    *,
    against: str | os.PathLike[str] | None = None,
    out: str | os.PathLike[str] | None = None,
    batch_tokens: int | None = None,
    judge: str | None = None,
    judge_timeout: float = 3600.0,
) -> Examination:
    """Put suites of questions to a model folder, a hub id or the result of a run; `against`: to another one too.

    A suite is a file, `NAME=DATA` with an entry of SUITES, or a mapping; by default those of the run's recipe.
    `against` may be `base`, the model that the run began with. Records and answers go to `out`, or to the run's
    `evaluations/`. `judge`: a command that says which of two answers is better, and the seconds that it may take for
    all answers to a suite; it runs without a shell.

    >>> fulltune.examine("runs/recipe", ["gsm8k=test.jsonl"], against="base").comparisons
    """
    chosen = candidates(model, against)
    recipe = None if chosen.run is None else chosen.run.recipe
    sections = load_suites(suites, "--suite") if suites else () if recipe is None else recipe.evaluate.suites
    if not sections:
        raise RecipeError(
            "no suite is named",
            where=os.fspath(model),
            mend="name one with --suite, or in the recipe's evaluate.suites",
        )
    tokens = batch_tokens if batch_tokens is not None or recipe is None else recipe.evaluate.batch_tokens
    by = None if judge is None else Judge.of(judge, judge_timeout)
    with listening():
        return chosen.asked(suites_of(sections), batch_tokens=tokens, out=None if out is None else Path(out), judge=by)
