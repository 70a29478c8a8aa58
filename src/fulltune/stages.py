"""The table of contents: prepare, inspect, plan, train, evaluate, export. Each reads what the last left on disk."""

import os
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

from fulltune.assemble import Prepared, count_updates, stores, template
from fulltune.base.errors import CheckpointError, DataError, RecipeError
from fulltune.base.files import begun_folder, sweep, whole_folder, write_record
from fulltune.base.log import LOGGER
from fulltune.base.records import DataFacts, EvalReport, ModelFacts, Plan, RunRecord
from fulltune.conduct import conduct, rehearse, score, write_checkpoint
from fulltune.data.prepare import Kit, Preparation, identity
from fulltune.data.prepare import prepare as prepare_data
from fulltune.engine.launch import machine
from fulltune.inspection.page import require_place, write_page
from fulltune.inspection.rows import Inspected, Reader, Wanted, pick, with_uncut
from fulltune.inspection.uncut import uncut_lengths
from fulltune.model.facts import facts as model_facts
from fulltune.model.load import (
    empty_model,
    load_config,
    load_tokenizer,
    section_of,
    stop_ids,
    stored_dtype,
    tokenizer_digest,
)
from fulltune.objectives import OBJECTIVES
from fulltune.optim.optimizers import OPTIMIZERS
from fulltune.planning.make import make_plan, require_names
from fulltune.recipe.load import Asked
from fulltune.recipe.schema import ExportSection, ModelSection, Recipe
from fulltune.runs import RunFolder, open_run
from fulltune.training.journal import Sink

Out = str | os.PathLike[str] | None
DType = Literal["base", "float32", "bfloat16", "float16"]


@dataclass(frozen=True, slots=True)
class Checked:
    """What the data is like: the report for people, the same for programs, and what forbids to go on, if anything."""

    report: str
    card: dict[str, Any]
    refusal: DataError | None


_IN_A_TERMINAL, _ON_A_PAGE = 3, 100
"""Rows that are shown if none are named."""


def prepare(recipe: Asked, *, out: Out = None, fresh: bool = False, **overrides: Any) -> DataFacts:
    """Raw rows -> tokens on disk and their card (`data.json`). Done already if nothing that matters has changed.

    >>> fulltune.prepare("recipe.yaml").splits["train"].supervised_tokens
    """
    return _prepare(open_run(recipe, overrides, out=out, fresh=fresh))


def check(recipe: Asked, *, out: Out = None, **overrides: Any) -> Checked:
    """All that `prepare` looks at, without keeping anything: the doctor's report, and every fault.

    >>> print(fulltune.check("recipe.yaml").report)
    """
    run = open_run(recipe, overrides, out=out)
    kit = _checked(run.recipe)
    with tempfile.TemporaryDirectory() as scratch:
        work = Preparation(run.recipe.data, kit, Path(scratch), load=_for_others(kit, run.recipe.model))
        report = work.examine()
        try:
            work.settle(trains=False)
        except DataError as fault:
            return Checked(report, work.card, fault)
        return Checked(report, work.card, None)


def inspect(
    recipe: Asked,
    *,
    split: str = "train",
    row: int | None = None,
    origin: str | None = None,
    longest: bool = False,
    random: int | None = None,
    first: int | None = None,
    html: Out = None,
    out: Out = None,
    **overrides: Any,
) -> list[Inspected]:
    """Rows of a prepared split as training sees them. Prepares the data first if need be.

    One of `row` (a number from 0), `origin` (`file:line`), `longest`, `random` (so many, the same for the same
    `train.seed`) or `first` (so many); by default the first three, on a page the first hundred. `html`: write a page
    of them.

    >>> fulltune.inspect("recipe.yaml", row=7)[0].supervised
    """
    wanted = Wanted(split=split, row=row, origin=origin, longest=longest, random=random, first=first)
    run = open_run(recipe, overrides, out=out)
    if html is not None:
        require_place(Path(html))
    facts = _prepare(run)
    data = _opened(run, facts).stores
    default = _ON_A_PAGE if html is not None else _IN_A_TERMINAL
    numbers = pick(data, wanted, first=default, seed=run.recipe.train.seed)
    kit = _kit(run.recipe.model)
    reader = Reader(kit.tokenizer)
    rows = [reader.read(data[wanted.split], wanted.split, number) for number in numbers]
    full = [item.origin for item in rows if item.length == run.recipe.data.max_length]
    if facts.truncated and full:  # which of them were cut the store does not say
        rows = with_uncut(rows, uncut_lengths(run.recipe.data, split, full, kit))
    if html is not None:
        write_page(Path(html), rows, facts)
    return rows


def plan(recipe: Asked, *, out: Out = None, fresh: bool = False, **overrides: Any) -> Plan:
    """Facts -> every derived number (`plan.json`), or a refusal. Prepares the data first if need be.

    >>> fulltune.plan("recipe.yaml", train={"epochs": 1}).updates
    """
    run = open_run(recipe, overrides, out=out, fresh=fresh)
    model = _facts(run.recipe.model)
    return _plan(run, _prepare(run), model)


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
    model = _facts(run.recipe.model)
    facts = _prepare(run)
    return conduct(run, _plan(run, facts, model), _opened(run, facts), model, sinks)


def dry_run(recipe: Asked, *, out: Out = None, fresh: bool = False, **overrides: Any) -> dict[str, float]:
    """All of `train` up to one update and a trial save, neither of which is kept. Returns seconds, loss and bytes.

    >>> fulltune.dry_run("recipe.yaml")["seconds_per_update"]
    """
    run = open_run(recipe, overrides, out=out, fresh=fresh)
    model = _facts(run.recipe.model)
    facts = _prepare(run)
    return rehearse(run, _plan(run, facts, model), _opened(run, facts), model)


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
    known = tokenizer_digest(load_tokenizer(run.recipe.model))
    for name, section in models.items():
        if tokenizer_digest(load_tokenizer(section)) != known:
            raise DataError(
                f"the {name} has another tokenizer than {run.recipe.model.path}: the prepared ids mean other tokens",
                where=section.path,
                mend="prepare a run of its own with model.path set to it, and evaluate that",
            )
    data, plan = _opened(run, facts), _plan(run, facts, _facts(run.recipe.model))
    return {name: score(run.recipe, plan, data, section) for name, section in models.items()}


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
    opened = open_run(run, {})
    folder = Path(to)
    if folder.exists():
        raise RecipeError("the folder exists", where=str(folder), mend="name another; nothing is overwritten")
    if not opened.begun:
        raise RecipeError("this run has not been trained", where=str(run), mend=f"fulltune train {run}")
    facts = opened.data_facts()
    model = _facts(opened.recipe.model)
    section = opened.recipe.export if dtype is None else ExportSection(dtype=dtype)
    write_checkpoint(opened, _opened(opened, facts), model, folder, step, section)
    return folder


def _prepare(run: RunFolder) -> DataFacts:
    recipe = run.recipe
    kit = _checked(recipe)
    wanted = identity(recipe.data, tokenizer_digest(kit.tokenizer), kit.template, kit.stop_ids)
    if run.data_card.exists() and run.data.exists():
        facts = run.data_facts()
        if facts.fingerprint == wanted:
            return facts
        if run.begun:
            raise CheckpointError(
                "the data, the tokenizer or the chat template changed since this run began",
                where=str(run.data_card),
                mend="bring back what it began with, or make a new folder with --fresh",
            )
    sweep(run.path)
    load = _for_others(kit, recipe.model)
    with begun_folder(run.path, wanted) as parts, whole_folder(run.data) as draft:
        facts = prepare_data(recipe.data, kit, draft, wanted, parts=parts, load=load)
        # A kill from here on leaves data without a card, which is prepared again, never with the card of other data.
        run.begin()
        run.data_card.unlink(missing_ok=True)
    write_record(run.data_card, facts)
    _tell(facts)
    return facts


def _tell(facts: DataFacts) -> None:
    train, kept = facts.splits["train"], f"{facts.kept:,} of {facts.rows:,} rows"
    LOGGER.info(
        f"prepared {kept}: {train.examples:,} to train on, {train.tokens:,} tokens, {train.supervised_tokens:,} of "
        f"them ({train.supervised_tokens / train.tokens:.0%}) taught; {facts.splits['heldout'].examples:,} held out"
    )
    for reason, count in facts.dropped.items():
        LOGGER.warning(f"left out, {reason}: {count:,}")
    for note, places in facts.notes.items():
        LOGGER.warning(f"note, {note}: {places}")


def _checked(recipe: Recipe) -> Kit:
    """What makes tokens of rows, after everything that the recipe names was found."""
    require_names(recipe)
    OBJECTIVES.find(recipe.train.objective, where="train.objective")
    OPTIMIZERS.find(recipe.optim.name, where="optim.name")
    return _kit(recipe.model)


def _for_others(kit: Kit, section: ModelSection) -> Callable[[], Kit]:
    """How other processes come by the kit. Code that a model brings along is no module that they could import."""
    return partial(_kit, section) if section.trust_remote_code else kit.itself


def _kit(section: ModelSection) -> Kit:
    tokenizer = load_tokenizer(section)
    return Kit(tokenizer, template(section, tokenizer), tuple(sorted(stop_ids(section))))


def _plan(run: RunFolder, facts: DataFacts, model: ModelFacts) -> Plan:
    if run.begun and run.plan_card.exists():
        return run.plan()  # a run that has begun keeps its numbers, also on another machine
    count = count_updates(run.recipe.data, facts, _opened(run, facts).stores["train"])
    made = make_plan(run.recipe, facts, model, machine(), count)
    run.begin()
    write_record(run.plan_card, made)
    LOGGER.info(
        f"plan: {made.updates} updates, {made.warmup_updates} of them warm-up; {made.precision}, {made.layout}, "
        f"micro-batches of up to {made.micro_examples} examples and {made.micro_tokens:,} tokens"
    )
    LOGGER.info(f"precision: {made.dtypes}")
    for source in made.mix if run.recipe.data.is_mixed else ():
        LOGGER.info(f"mix: {source}")
    for note in made.notes:
        LOGGER.info(f"note: {note}")
    return made


def _facts(section: ModelSection) -> ModelFacts:
    return model_facts(empty_model(section), load_config(section), stored_dtype(section))


def _opened(run: RunFolder, facts: DataFacts) -> Prepared:
    return Prepared(facts, stores(run.data, facts))
