"""What a run will hold in memory, and whether there is room for it: asked before anything is loaded."""

from dataclasses import replace

from fulltune.assemble import portion
from fulltune.base.log import LOGGER
from fulltune.base.place import place
from fulltune.base.processors import available_bytes
from fulltune.base.records import IGNORE, ModelFacts, Plan
from fulltune.data.feed import Feed
from fulltune.data.lay import Budget
from fulltune.data.mixing import mixture
from fulltune.engine.launch import machine
from fulltune.gathering import wanted
from fulltune.material import Prepared
from fulltune.planning.engine import Case, Chosen, Crowd, choose_engine
from fulltune.planning.fit import require_fit
from fulltune.planning.kernels import require_kernels
from fulltune.planning.levers import fitted, told
from fulltune.planning.precision import precision_plan, resolve
from fulltune.planning.way import Pass
from fulltune.recipe.schema import EngineSection, Recipe

_LEAST = Pass(rows=1, width=1, taught=1, several=False)
"""One token: no run is known to make less."""


def crowd(section: EngineSection) -> Crowd:
    """The processes of a run: those that a launcher started, or those that are to be started from here."""
    count, here = wanted(section), place()
    return Crowd(count, count) if count else Crowd(here.size, here.here)


def require_state(recipe: Recipe, model: ModelFacts) -> None:
    """MachineError if weights, gradients and moments alone do not fit, RecipeError for kernels that cannot be had.

    Both are known before any row is read.
    """
    here = machine()
    precision = resolve(recipe, here)
    require_kernels(recipe, model, here, precision)
    case = Case(
        recipe=recipe,
        dtypes=precision_plan(precision, recipe.optim, several=False),
        layout="padded",
        model=model,
        machine=here,
        crowd=crowd(recipe.engine),
        load=_LEAST,
    )
    require_fit(case, choose_engine(case), available_bytes())


def case_of(recipe: Recipe, plan: Plan, data: Prepared, model: ModelFacts) -> Case:
    """All that a forecast of a planned run is made of."""
    many = crowd(recipe.engine)
    case = Case(
        recipe=recipe,
        dtypes=plan.dtypes,
        layout=plan.layout,
        model=model,
        machine=machine(),
        crowd=many,
        load=largest_pass(recipe, plan, data, model, many.size),
    )
    return case if plan.checkpointing is None else case.changed("memory", checkpointing=plan.checkpointing)


def sized(recipe: Recipe, plan: Plan, data: Prepared, model: ModelFacts) -> Plan:
    """The plan with micro-batches and checkpointing that fit the machine, where they are left to it.

    By all of its memory, not by what is free now: so the same recipe gives the same plan there.
    """
    case = replace(case_of(recipe, plan, data, model), recipe=recipe)
    made = fitted(case)
    plan = replace(plan, checkpointing=made.checkpointing, notes=(*plan.notes, *told(case, made)))
    if made.load == case.load:
        return plan
    note = f"micro-batches of up to {made.load.tokens:,} tokens: {plan.micro_tokens:,} may not fit"
    return replace(plan, micro_tokens=made.load.tokens, dtypes=made.dtypes, notes=(*plan.notes, note))


def require_room(case: Case) -> Chosen:
    """The engine of a run that fits; MachineError if it cannot, a warning if it may not."""
    chosen = choose_engine(case)
    warning = require_fit(case, chosen, available_bytes())
    if warning is not None:
        LOGGER.warning(warning)
    return chosen


def largest_pass(recipe: Recipe, plan: Plan, data: Prepared, model: ModelFacts, processes: int) -> Pass:
    """The largest micro-batch of the updates that ask for the most memory, which are tried before the first one."""
    store = data.stores["train"]
    order = mixture(recipe.data, data.facts.splits["train"]).order(recipe.train.seed)
    feed = Feed(store, order, portion(recipe.train), end=plan.examples, size=processes)
    budget = Budget(plan.micro_examples, plan.micro_tokens, plan.layout, plan.context, 6.0 * model.hidden)
    longest = int(store.lengths.max())
    passes: list[tuple[int, Pass]] = []
    for members in feed.heaviest(budget):
        micros = feed.cut(members, budget)
        several = len(micros) > processes
        for micro in micros:
            lengths = [int(store.lengths[members[i]]) for i in micro]
            rows, width = budget.shape(lengths)
            taught = sum(int((store[members[i]].labels != IGNORE).sum()) for i in micro)
            made = Pass(rows=rows, width=width, taught=taught, several=several, longest=longest)
            passes.append((made.tokens, made))
    return max(passes, key=lambda one: (one[0], one[1].several))[1]
