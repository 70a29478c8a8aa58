"""The table of contents: prepare, inspect, plan, train, evaluate, sweep, blend, export, report; each reads the disk."""

import os
import shlex
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

from fulltune import account
from fulltune.account import compare as compare
from fulltune.account import report as report
from fulltune.base.errors import RecipeError
from fulltune.base.gate import GateVerdict
from fulltune.base.lock import locked
from fulltune.base.log import LOGGER
from fulltune.base.records import EvalReport, ModelFacts, Plan, RunRecord
from fulltune.blending import blend as blend
from fulltune.blindfold import blind as blind
from fulltune.blindfold import count_choices as count_choices
from fulltune.candidates import examine as examine
from fulltune.conduct import conduct, rehearse, write_checkpoint
from fulltune.engines import By
from fulltune.gathering import start, together, wanted
from fulltune.losses import score
from fulltune.material import Prepared
from fulltune.model.folder import section_of
from fulltune.outlook import require_state
from fulltune.preparing import Out, opened, prepared, working
from fulltune.preparing import check as check
from fulltune.preparing import inspect as inspect
from fulltune.preparing import prepare as prepare
from fulltune.ready import facts_of, planned, require_tokenizer
from fulltune.recipe.load import Asked, recipe_of
from fulltune.recipe.schema import ExportSection
from fulltune.runs import RunFolder, open_run
from fulltune.shipping import require_judged, verdict
from fulltune.training.journal import Sink
from fulltune.trials import sweep as sweep

DType = Literal["base", "float32", "bfloat16", "float16"]


@dataclass(frozen=True, slots=True)
class Evaluated:
    """Losses of base and result, and the verdict by them; None where the run has no result yet."""

    reports: dict[str, EvalReport]
    verdict: GateVerdict | None


def plan(recipe: Asked, *, out: Out = None, fresh: bool = False, **overrides: Any) -> Plan:
    """Facts -> every derived number (`plan.json`), or a refusal. Prepares the data first if need be.

    >>> fulltune.plan("recipe.yaml", train={"epochs": 1}).updates
    """
    with working(open_run(recipe, overrides, out=out, fresh=fresh)) as run:
        model = facts_of(run.recipe.model)
        require_state(run.recipe, model)
        return planned(run, prepared(run), model).plan


def train(
    recipe: Asked,
    *,
    out: Out = None,
    fresh: bool = False,
    accept: Sequence[str] = (),
    sinks: Sequence[Sink] = (),
    gate: bool = False,
    **overrides: Any,
) -> RunRecord:
    """Everything from rows to a verified model folder; goes on where it stopped. Returns the run's record.

    `accept`: what may have changed since the run began: recipe fields, or `data`, `tokenizer`, `template`. `sinks`
    hear every line of the journal. `gate`: RecipeError before training where there could be no verdict on the result;
    what it is stands in the record.

    >>> fulltune.train("recipe.yaml", optim={"lr": 1e-5}).result
    """
    with together(recipe, overrides) as meeting:
        crew = meeting.crew
        opening = partial(open_run, recipe, overrides, accept=accept)
        folder = crew.told(lambda: os.fspath(opening(out=out, fresh=fresh).path))
        run = opening(out=folder)
        if crew.told(lambda: run.record.exists() and not run.changes):
            LOGGER.info(f"this run is done: {run.model}")
            if crew.rank == 0:
                account.catch_up(run)
            return run.finished()
        processes = wanted(run.recipe.engine)
        with working(run):
            model = facts_of(run.recipe.model)
            crew.told(lambda: require_state(run.recipe, model))
            if processes > 1:
                with locked(run.path):
                    planned(run, _judgeable(run, gate), model, trains=True)
                start(processes, run, accept, sinks)
                return run.finished()
            with locked(run.path) if crew.rank == 0 else nullcontext():
                ready = crew.told(lambda: _made_ready(run, model, gate))
                data = opened(run, run.data_facts(), ready["depends"])
                by = By(ready["engine"], ready["offload"])
                return conduct(run, run.plan(), data, model, sinks, meeting, by)


def dry_run(recipe: Asked, *, out: Out = None, fresh: bool = False, **overrides: Any) -> dict[str, float]:
    """All of `train` up to one update and a trial save, neither of which is kept. Returns seconds, loss and bytes.

    It is of one process: RecipeError if the recipe asks for more than one, or for an engine that shares.

    >>> fulltune.dry_run("recipe.yaml")["seconds_per_update"]
    """
    section = recipe_of(recipe, overrides).engine
    if wanted(section) or section.name not in ("auto", "single"):
        raise RecipeError(
            "a dry run is of one process",
            where="engine",
            mend="engine.name=single; or leave --dry-run out: before its first update training tries all of it too",
        )
    with working(open_run(recipe, overrides, out=out, fresh=fresh)) as run:
        model = facts_of(run.recipe.model)
        require_state(run.recipe, model)
        with locked(run.path):
            data = prepared(run)
            return rehearse(run, planned(run, data, model).plan, data, model)


def evaluate(recipe: Asked, *, out: Out = None, model: Out = None, **overrides: Any) -> dict[str, EvalReport]:
    """Losses of the base, and of the run's result or a model folder, on held-out, test and retention data.

    >>> fulltune.evaluate("runs/recipe")["result"].scores["heldout.loss"]
    """
    return judge(recipe, out=out, model=model, **overrides).reports


def judge(recipe: Asked, *, out: Out = None, model: Out = None, gate: bool = False, **overrides: Any) -> Evaluated:
    """As `evaluate`, with the verdict of the recipe's gate on the run's result, or on a model folder in its place.

    `gate`: RecipeError before anything is measured where there could be no verdict.

    >>> fulltune.judge("runs/recipe").verdict.ship
    """
    with working(open_run(recipe, overrides, out=out)) as run:
        data = _judgeable(run, gate)
        models = {"base": run.recipe.model}
        if model is not None:
            models["model"] = section_of(model, run.recipe.model)
        elif run.record.exists():
            models["result"] = section_of(run.model, run.recipe.model)
        if gate:
            run.finished()
        require_tokenizer(run.recipe.model, models)
        plan = planned(run, data, facts_of(run.recipe.model), judged=None).plan
        reports = score(run.recipe, plan, data, models, run.path)
        if not run.record.exists():
            return Evaluated(reports, None)
        after = reports.get("result") or reports["model"]
        return Evaluated(reports, verdict(run, run.finished(), reports["base"], after, own=model is None))


def export(
    run: str | os.PathLike[str],
    to: str | os.PathLike[str],
    *,
    step: int | None = None,
    dtype: DType | None = None,
) -> Path:
    """Write a checkpoint of a run folder as a Hugging Face folder and verify it: the best, the last, or that of `step`.

    `dtype`: number format of the weights, by default that of the recipe.

    >>> fulltune.export("runs/recipe", "my-model", step=120)
    """
    trained = open_run(run, {}, whole=False)
    folder = Path(to)
    if folder.exists():
        raise RecipeError("the folder exists", where=str(folder), mend="name another; nothing is overwritten")
    if not trained.begun:
        raise RecipeError(
            "this run has not been trained", where=str(run), mend=f"fulltune train {shlex.quote(str(run))}"
        )
    with working(trained):
        data = opened(trained, trained.data_facts(), {})
        section = trained.recipe.export if dtype is None else ExportSection(dtype=dtype)
        write_checkpoint(trained, data, facts_of(trained.recipe.model), folder, step, section)
    return folder


def _made_ready(run: RunFolder, model: ModelFacts, gate: bool) -> Mapping[str, Any]:
    """Data and plan on disk; what the data depends on, and the engine that all processes are to take."""
    data = _judgeable(run, gate)
    chosen = planned(run, data, model, trains=True).chosen
    assert chosen is not None
    LOGGER.info(f"engine: {chosen}")
    LOGGER.info(f"memory: {chosen.forecast}")
    return {"depends": data.depends, "engine": chosen.name, "offload": chosen.forecast.offload}


def _judgeable(run: RunFolder, gate: bool) -> Prepared:
    """The run's data; RecipeError if by `gate` a verdict is wanted, and nothing of it could give one."""
    data = prepared(run)
    if gate:
        require_judged(run.recipe, data.facts)
    return data
