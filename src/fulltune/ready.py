"""What a stage needs of the stages before it: read if it is there, made if it is not."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from fulltune.assemble import count_updates
from fulltune.base.errors import DataError
from fulltune.base.files import write_record
from fulltune.base.lock import locked
from fulltune.base.log import LOGGER
from fulltune.base.records import ModelFacts, Plan
from fulltune.engine.launch import machine
from fulltune.engines import grouped
from fulltune.examining import directions
from fulltune.material import Prepared
from fulltune.model.facts import facts as model_facts
from fulltune.model.folder import load_config, load_tokenizer, tokenizer_digest
from fulltune.model.load import empty_model, stored_dtype
from fulltune.outlook import case_of, require_room, sized
from fulltune.planning.engine import Case, Chosen
from fulltune.planning.make import keep_choices, make_plan
from fulltune.recipe.changes import covers
from fulltune.recipe.schema import ModelSection, TrainSection
from fulltune.runs import RunFolder


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
