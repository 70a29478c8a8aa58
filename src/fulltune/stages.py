"""The table of contents: prepare, plan, train, evaluate, export. Each reads what the one before left on disk."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from fulltune.assemble import Prepared, count_updates, stores, template
from fulltune.base.errors import CheckpointError, RecipeError
from fulltune.base.files import whole_folder, write_record
from fulltune.base.log import LOGGER
from fulltune.base.records import DataFacts, EvalReport, ModelFacts, Plan, RunRecord
from fulltune.conduct import conduct, rehearse, score, write_checkpoint
from fulltune.data.prepare import identity
from fulltune.data.prepare import prepare as prepare_data
from fulltune.engine.launch import machine
from fulltune.model.facts import facts as model_facts
from fulltune.model.load import empty_model, load_config, load_tokenizer, section_of, stored_dtype, tokenizer_digest
from fulltune.planning.make import make_plan
from fulltune.recipe.load import Asked
from fulltune.recipe.schema import ExportSection, ModelSection
from fulltune.runs import RunFolder, open_run
from fulltune.training.journal import Sink

Out = str | os.PathLike[str] | None


def prepare(recipe: Asked, *, out: Out = None, fresh: bool = False, **overrides: Any) -> DataFacts:
    """Raw rows -> tokens on disk and their card (`data.json`). Done already if nothing that matters has changed.

    >>> fulltune.prepare("recipe.yaml").splits["train"].supervised_tokens
    """
    return _prepare(open_run(recipe, overrides, out=out, fresh=fresh))


def plan(recipe: Asked, *, out: Out = None, fresh: bool = False, **overrides: Any) -> Plan:
    """Facts -> every derived number (`plan.json`), or a refusal. Prepares the data first if need be.

    >>> fulltune.plan("recipe.yaml", train={"epochs": 1}).updates
    """
    run = open_run(recipe, overrides, out=out, fresh=fresh)
    return _plan(run, _prepare(run))


def train(
    recipe: Asked, *, out: Out = None, fresh: bool = False, sinks: Sequence[Sink] = (), **overrides: Any
) -> RunRecord:
    """Everything from rows to a verified model folder; goes on where it stopped. Returns the run's record.

    `sinks` hear every line of the journal.

    >>> fulltune.train("recipe.yaml", optim={"lr": 1e-5}).result
    """
    run = open_run(recipe, overrides, out=out, fresh=fresh)
    if run.record.exists():
        LOGGER.info(f"this run is done: {run.model}")
        return run.finished()
    facts = _prepare(run)
    return conduct(run, _plan(run, facts), _opened(run, facts), _facts(run.recipe.model), sinks)


def dry_run(recipe: Asked, *, out: Out = None, fresh: bool = False, **overrides: Any) -> dict[str, float]:
    """All of `train` up to one update and a trial save, neither of which is kept. Returns seconds, loss and bytes.

    >>> fulltune.dry_run("recipe.yaml")["seconds_per_update"]
    """
    run = open_run(recipe, overrides, out=out, fresh=fresh)
    facts = _prepare(run)
    return rehearse(run, _plan(run, facts), _opened(run, facts), _facts(run.recipe.model))


def evaluate(recipe: Asked, *, out: Out = None, model: Out = None, **overrides: Any) -> dict[str, EvalReport]:
    """Losses of the base, and of the run's result or a model folder, on held-out, test and retention data.

    >>> fulltune.evaluate("runs/recipe")["result"].scores["heldout.loss"]
    """
    run = open_run(recipe, overrides, out=out)
    facts = _prepare(run)
    models = {"base": run.recipe.model}
    if model is not None:
        models["model"] = section_of(model, run.recipe.model)
    elif run.record.exists():
        models["result"] = section_of(run.model, run.recipe.model)
    data, plan = _opened(run, facts), _plan(run, facts)
    return {name: score(run.recipe, plan, data, section) for name, section in models.items()}


def export(
    run: str | os.PathLike[str],
    to: str | os.PathLike[str],
    *,
    step: int | None = None,
    dtype: Literal["base", "float32", "bfloat16", "float16"] = "base",
) -> Path:
    """Write a checkpoint of a run folder as a Hugging Face folder and verify it: the best, the last, or that of `step`.

    >>> fulltune.export("runs/recipe", "my-model", step=120)
    """
    opened = open_run(run, {})
    folder = Path(to)
    if folder.exists():
        raise RecipeError("the folder exists", where=str(folder), mend="name another; nothing is overwritten")
    if not opened.journal.exists():
        raise RecipeError("this run has not been trained", where=str(run), mend=f"fulltune train {run}")
    facts = opened.data_facts()
    model = _facts(opened.recipe.model)
    write_checkpoint(opened, _opened(opened, facts), model, folder, step, ExportSection(dtype=dtype))
    return folder


def _prepare(run: RunFolder) -> DataFacts:
    recipe = run.recipe
    tokenizer = load_tokenizer(recipe.model)
    shipped = template(recipe.model, tokenizer)
    wanted = identity(recipe.data, tokenizer_digest(tokenizer), shipped)
    if run.data_card.exists() and run.data.exists():
        facts = run.data_facts()
        if facts.fingerprint == wanted:
            return facts
        if run.journal.exists():
            raise CheckpointError(
                "the data, the tokenizer or the chat template changed since this run began",
                where=str(run.data_card),
                mend="bring back what it began with, or make a new folder with --fresh",
            )
    with whole_folder(run.data) as draft:
        facts = prepare_data(recipe.data, tokenizer, shipped, draft, wanted)
    run.begin()
    write_record(run.data_card, facts)
    train, kept = facts.splits["train"], f"{facts.kept:,} of {facts.rows:,} rows"
    LOGGER.info(
        f"prepared {kept}: {train.examples:,} to train on, {train.tokens:,} tokens, {train.supervised_tokens:,} of "
        f"them ({train.supervised_tokens / train.tokens:.0%}) taught; {facts.splits['heldout'].examples:,} held out"
    )
    for reason, count in facts.dropped.items():
        LOGGER.warning(f"left out, {reason}: {count:,}")
    for note, places in facts.notes.items():
        LOGGER.warning(f"note, {note}: {places}")
    return facts


def _plan(run: RunFolder, facts: DataFacts) -> Plan:
    if run.journal.exists() and run.plan_card.exists():
        return run.plan()  # a run that has begun keeps its numbers, also on another machine
    count = count_updates(run.recipe.data, facts, _opened(run, facts).stores["train"])
    made = make_plan(run.recipe, facts, _facts(run.recipe.model), machine(), count)
    run.begin()
    write_record(run.plan_card, made)
    LOGGER.info(
        f"plan: {made.updates} updates, {made.warmup_updates} of them warm-up; {made.precision}, {made.layout}, "
        f"micro-batches of up to {made.micro_examples} examples and {made.micro_tokens:,} tokens"
    )
    for note in made.notes:
        LOGGER.info(f"note: {note}")
    return made


def _facts(section: ModelSection) -> ModelFacts:
    return model_facts(empty_model(section), load_config(section), stored_dtype(section))


def _opened(run: RunFolder, facts: DataFacts) -> Prepared:
    return Prepared(facts, stores(run.data, facts))
