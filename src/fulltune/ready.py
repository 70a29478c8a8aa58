"""What a stage needs of the stages before it: read if it is there, made if it is not."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from fulltune.assemble import Prepared, count_updates, stores, template
from fulltune.base.errors import DataError
from fulltune.base.files import begun_folder, fingerprint, sweep, whole_folder, write_record
from fulltune.base.lock import locked
from fulltune.base.log import LOGGER
from fulltune.base.records import DataFacts, ModelFacts, Plan
from fulltune.data.prepare import Kit, depends, tell
from fulltune.data.prepare import prepare as prepare_data
from fulltune.engine.launch import machine
from fulltune.engines import grouped
from fulltune.examining import directions, suites_of
from fulltune.model.facts import facts as model_facts
from fulltune.model.load import (
    empty_model,
    load_config,
    load_tokenizer,
    stop_ids,
    stored_dtype,
    tokenizer_digest,
)
from fulltune.objectives import OBJECTIVES
from fulltune.optim.optimizers import OPTIMIZERS
from fulltune.outlook import case_of, require_room, sized
from fulltune.planning.engine import Case, Chosen
from fulltune.planning.make import keep_choices, make_plan, require_names
from fulltune.recipe.changes import DATA, covers, differences, require_accepted
from fulltune.recipe.schema import ModelSection, Recipe, TrainSection
from fulltune.runs import RunFolder


def prepared(run: RunFolder) -> Prepared:
    """The data of a run, prepared now if it is not. CheckpointError if a run that has begun depended on other data."""
    recipe = run.recipe
    kit = checked(recipe)
    needed = depends(recipe.data, tokenizer_digest(kit.tokenizer), kit.template, kit.stop_ids)
    wanted = fingerprint(needed)
    if run.recorded is not None:
        changes = differences(run.recorded.identity["depends"], needed, settings=False)
        require_accepted(changes, run.accepted | _implied(run), folder=str(run.path))
    if run.data_card.exists() and run.data.exists():
        facts = run.data_facts()
        if facts.fingerprint == wanted:
            return opened(run, facts, needed)
    load = for_others(kit, recipe.model)
    with locked(run.path):
        sweep(run.path)
        with begun_folder(run.path, wanted) as parts, whole_folder(run.data) as draft:
            facts = prepare_data(recipe.data, kit, draft, wanted, parts=parts, load=load)
            # A kill from here on leaves data without a card: prepared again, never with the card of other data.
            run.begin()
            run.data_card.unlink(missing_ok=True)
        write_record(run.data_card, facts)
    tell(facts)
    # As every later command reads it: names of scores are made of paths, and secrets masked.
    return opened(run, run.data_facts(), needed)


def _implied(run: RunFolder) -> set[str]:
    """What changes with fields that were accepted: another max_length gives other data."""
    sections = {change.field.partition(".")[0] for change in run.changes if covers(run.accepted, change.field)}
    return ({"data"} if "data" in sections else set()) | (set(DATA) if "model" in sections else set())


def checked(recipe: Recipe) -> Kit:
    """What makes tokens of rows, after everything that the recipe names was found."""
    require_names(recipe)
    OBJECTIVES.find(recipe.train.objective, where="train.objective")
    OPTIMIZERS.find(recipe.optim.name, where="optim.name")
    suites_of(recipe.evaluate.suites)
    return kit_of(recipe.model)


def for_others(kit: Kit, section: ModelSection) -> Callable[[], Kit]:
    """How other processes come by the kit. Code that a model brings along is no module that they could import."""
    return partial(kit_of, section) if section.trust_remote_code else kit.itself


def kit_of(section: ModelSection) -> Kit:
    """What makes tokens of rows for a model."""
    tokenizer = load_tokenizer(section)
    return Kit(tokenizer, template(section, tokenizer), tuple(sorted(stop_ids(section))))


@dataclass(frozen=True, slots=True)
class Planned:
    """A plan, and the engine that was chosen for it; None where nobody trains by it now."""

    plan: Plan
    chosen: Chosen | None


def planned(
    run: RunFolder,
    data: Prepared,
    model: ModelFacts,
    *,
    trains: bool = False,
    judged: Callable[[Case], Chosen] | None = require_room,
) -> Planned:
    """The plan of a run, made now if it is not or if a run that goes on (`trains`) was asked for something else.

    `judged`: chooses the engine, or refuses with a MachineError, before anything is written; None where nobody is to
    train.
    """
    before = run.plan() if run.begun and run.plan_card.exists() else None
    if before is not None and not run.changes:  # a run that has begun keeps its numbers, also on another machine
        return Planned(before, judged(case_of(run.recipe, before, data, model)) if trains and judged else None)
    count = count_updates(run.recipe.data, data.facts, data.stores["train"])
    suites = directions(run.recipe.evaluate.suites)
    made = replace(make_plan(run.recipe, data.facts, model, machine(), count, suites), chain=run.chain)
    if run.recipe.optim.parted:
        made = replace(made, groups=grouped(run.recipe.optim, empty_model(run.recipe.model), made.updates))
    if before is not None:
        made = keep_choices(made, before, run.changes)
    if judged is not None and (before is None or any(covers(("memory",), change.field) for change in run.changes)):
        made = sized(run.recipe, made, data, model)
    chosen = judged(case_of(run.recipe, made, data, model)) if judged else None
    if chosen is not None:
        made = replace(made, memory=chosen.forecast)
    elif before is not None:
        made = replace(made, memory=before.memory)
    elif run.plan_card.exists():
        made = _as_planned(made, run.plan(), run.recipe.train)
    if run.begun and not trains:
        return Planned(made, chosen)  # the cards of a run say what it does, not what it was asked in passing
    if not run.holds(made):  # else nothing is to be written, so a run that trains already may be evaluated
        with locked(run.path):
            run.begin()
            write_record(run.plan_card, made)
    LOGGER.info(
        f"plan: {made.updates} updates, {made.warmup_updates} of them warm-up; {made.precision}, {made.layout}, "
        f"micro-batches of up to {made.micro_examples} examples and {made.micro_tokens:,} tokens, "
        f"checkpointing: {made.checkpointing}"
    )
    LOGGER.info(f"precision: {made.dtypes}")
    for group in made.groups:
        LOGGER.info(f"weights: {group}")
    for source in made.mix if run.recipe.data.is_mixed else ():
        LOGGER.info(f"mix: {source}")
    for task in made.chain:
        LOGGER.info(f"earlier task {task}")
        for lost in task.missing:
            LOGGER.warning(f"earlier task {task.name} is not measured by what is missing: {lost}")
    for note in made.notes:
        LOGGER.info(f"note: {note}")
    return Planned(made, chosen)


def _as_planned(made: Plan, before: Plan, asked: TrainSection) -> Plan:
    """With what was forecast when the run was planned, and the micro-batches that it chose, if none are asked for."""
    same = (made.precision, made.dtypes.bytes.get("moments")) == (before.precision, before.dtypes.bytes.get("moments"))
    if asked.micro_tokens is not None or asked.micro_examples is not None or not same:
        return replace(made, memory=before.memory)
    return replace(
        made,
        memory=before.memory,
        micro_tokens=before.micro_tokens,
        dtypes=before.dtypes,
        checkpointing=before.checkpointing,
        notes=before.notes,
    )


def facts_of(section: ModelSection) -> ModelFacts:
    """What there is to know of a model without its weights."""
    return model_facts(empty_model(section), load_config(section), stored_dtype(section))


def opened(run: RunFolder, facts: DataFacts, needed: Mapping[str, Any]) -> Prepared:
    """The prepared splits of a run; `needed`: what they depend on."""
    return Prepared(facts, stores(run.data, facts), needed)


def require_tokenizer(base: ModelSection, models: Mapping[str, ModelSection]) -> None:
    """DataError if one of these models would read the prepared ids as other tokens."""
    known = tokenizer_digest(load_tokenizer(base))
    for name, section in models.items():
        if tokenizer_digest(load_tokenizer(section)) != known:
            raise DataError(
                f"the {name} has another tokenizer than {base.path}: the prepared ids mean other tokens",
                where=section.path,
                mend="prepare a run of its own with model.path set to it, and evaluate that",
            )
