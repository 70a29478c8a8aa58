"""The plan: every number derived from recipe, data, model and machine, or a refusal. Pure."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial

from fulltune.base.errors import Fault, RecipeError
from fulltune.base.memory import ATTENDED
from fulltune.base.records import DataFacts, Layout, Machine, ModelFacts, Plan, SourceMix
from fulltune.base.rule import Better
from fulltune.data.augment import augments
from fulltune.data.formats import FORMATS
from fulltune.data.lay import Budget
from fulltune.data.mixing import Mixture, mixture
from fulltune.optim.schedules import SCHEDULES
from fulltune.planning.comparing import require_comparing
from fulltune.planning.in_backward import all_tokens, require_in_backward, require_one_micro
from fulltune.planning.kernels import require_kernels
from fulltune.planning.precision import precision_notes, precision_plan, require_precision, resolve
from fulltune.planning.pulls import require_pulls
from fulltune.planning.scores import require_scores
from fulltune.recipe.changes import Change
from fulltune.recipe.data import DataSection, Source
from fulltune.recipe.schema import Recipe, TrainSection

MICRO_TOKENS = {"cpu": 1024, "cuda": 16384}
"""Tokens of one forward pass unless the recipe says otherwise: enough to fill the device, little enough to fit.

On a CPU it was measured (docs/performance.md): examples of few lengths lie beside each other, so less of it is padding,
and what a block makes stays near. On a GPU it is a guess.
"""

_MANY_PASSES = 4
"""Up to so many passes repeated data is nearly as good as new, later it fades (Muennighoff et al. 2023)."""

_LAYOUTS: Mapping[Layout, str] = {
    "padded": "examples of similar length beside each other",
    "packed": "several examples in one row, isolated from each other",
}

_RELATIVE = 1e-4
"""A rate of Adafactor below this was meant for AdamW: the paper's is 1e-2."""

CountUpdates = Callable[[TrainSection, int], int]
"""How many updates the order of the data gives: `(train, examples in all) -> updates`."""


def require_names(recipe: Recipe) -> None:
    """RecipeError for every name that no table has, and what is named unfitly: before any row is read, all at once."""
    faults: list[Fault] = []
    asked: list[Callable[[], object]] = [
        partial(SCHEDULES.find, recipe.optim.schedule, where="optim.schedule"),
        partial(require_precision, recipe),
        partial(require_pulls, recipe),
        partial(require_in_backward, recipe),
        partial(require_comparing, recipe),
    ]
    for where, source in _sources(recipe.data):
        if source.format != "auto":
            asked.append(partial(FORMATS.find, source.format, where=f"{where}.format"))
        asked.append(partial(augments, source, where))
    for question in asked:  # the tables of objectives and optimizers need torch, and are asked elsewhere
        try:
            question()
        except RecipeError as fault:
            faults += fault.faults
    if faults:
        raise RecipeError(faults=faults)


def _sources(data: DataSection) -> Iterator[tuple[str, Source]]:
    """Every source of a recipe with its place."""
    again = () if data.replay is None else data.replay.sources
    named = {"train": data.train, "replay.sources": again, "heldout": data.heldout}
    for name, found in {**named, "test": data.test, "retention": data.retention}.items():
        for number, source in enumerate(found if isinstance(found, tuple) else ()):
            yield f"data.{name}.{number}", source


def make_plan(
    recipe: Recipe,
    data: DataFacts,
    model: ModelFacts,
    machine: Machine,
    count_updates: CountUpdates,
    suites: Mapping[str, Better] | None = None,
) -> Plan:
    """RecipeError if what was asked for contradicts data or model. `suites`: their scores, and which way is up."""
    train = recipe.train
    mixed = mixture(recipe.data, data.splits["train"])
    own = sum(mixed.own)
    examples = None if train.steps is not None else mixed.positions(max(1, math.ceil(train.epochs * own)))
    updates = train.steps if examples is None else count_updates(train, examples)
    assert updates is not None
    _require_context(recipe, model)
    _require_tiles(recipe, model)
    require_scores(recipe, data, suites or {})
    precision = resolve(recipe, machine)
    require_kernels(recipe, model, machine, precision)
    mix = mixed.seen(examples or updates * _examples_of_an_update(train, mixed))
    longest = max(split.lengths["max"] for split in data.splits.values())
    layout = _layout(recipe, model, machine, precision, longest)
    # With `batch_tokens` an update has at most that many examples, of one token each.
    micro_examples = train.micro_examples or train.batch_tokens or train.batch_examples
    micro_tokens = train.micro_tokens or max(MICRO_TOKENS[machine.kind], longest)
    budget = Budget(micro_examples, micro_tokens, layout, model.context)
    if recipe.optim.in_backward != "off":
        micro_tokens = train.micro_tokens or max(micro_tokens, all_tokens(train, budget, longest))
        budget = replace(budget, tokens=micro_tokens)
        require_one_micro(train, budget, longest)
    whole = train.batch_tokens is None and budget.fits(train.batch_examples, longest)
    return Plan(
        updates=updates,
        warmup_updates=_warmup(recipe.optim.warmup, updates),
        examples=examples,
        epoch_examples=mixed.positions(own),
        micro_examples=micro_examples,
        micro_tokens=micro_tokens,
        context=model.context,
        layout=layout,
        precision=precision,
        dtypes=precision_plan(precision, recipe.optim, several=not whole),
        checkpointing="none" if recipe.memory.checkpointing == "auto" else recipe.memory.checkpointing,
        mix=mix,
        notes=(
            *_notes(recipe, machine, updates, longest, layout),
            *precision_notes(recipe, precision, model, machine),
            *_mix_notes(recipe.data, mix),
        ),
    )


def _layout(recipe: Recipe, model: ModelFacts, machine: Machine, precision: str, longest: int) -> Layout:
    """As asked; of itself packed where attention takes examples one by one (model/attention.py): nothing is padding."""
    train = recipe.train
    if train.layout != "auto":
        return train.layout
    if recipe.model.attention == "varlen":
        return "packed"
    kernel = train.compile or recipe.model.attention != "auto" or precision == "fp16-mixed" or recipe.model.dropout
    apart = machine.kind == "cpu" and model.causal and longest <= ATTENDED and not kernel
    return "packed" if apart else "padded"


def keep_choices(made: Plan, before: Plan, changes: Iterable[Change]) -> Plan:
    """A plan for what changed, with the choices of the plan before it that nobody asked to change."""
    changed = {change.field for change in changes}
    if "optim.in_backward" in changed:  # how large a micro-batch is follows from it
        changed |= {"train.micro_examples", "train.micro_tokens", "train.precision"}
    kept = replace(
        made,
        layout=made.layout if "train.layout" in changed else before.layout,
        micro_examples=made.micro_examples if "train.micro_examples" in changed else before.micro_examples,
        micro_tokens=made.micro_tokens if "train.micro_tokens" in changed else before.micro_tokens,
        checkpointing=made.checkpointing if "memory.checkpointing" in changed else before.checkpointing,
    )
    if changed & {"train.precision", "optim.moments"}:
        return kept
    return replace(kept, precision=before.precision, dtypes=before.dtypes)


def _examples_of_an_update(train: TrainSection, mixed: Mixture) -> float:
    """As many as are asked for, or about as many as their tokens allow."""
    return train.batch_examples if train.batch_tokens is None else train.batch_tokens / mixed.tokens_per_example


def _warmup(asked: float, updates: int) -> int:
    """In updates; a share is rounded, and leaves at least one update behind it."""
    if isinstance(asked, float):
        return min(round(asked * updates), updates - 1)
    if asked >= updates:
        raise RecipeError(
            f"a warm-up of {asked} updates is as long as the run of {updates}",
            where="optim.warmup",
            mend="a share such as 0.06, or fewer updates",
        )
    return asked


def _require_context(recipe: Recipe, model: ModelFacts) -> None:
    if model.context is not None and recipe.data.max_length > model.context:
        raise RecipeError(
            f"data.max_length is {recipe.data.max_length}, but {model.architecture} has positions for {model.context}",
            where="data.max_length",
            mend=f"data.max_length={model.context}, and data.over_length for what is longer",
        )


def _require_tiles(recipe: Recipe, model: ModelFacts) -> None:
    if recipe.memory.mlp_tile is not None and not model.shape.mlps:
        raise RecipeError(
            f"{model.architecture} has no MLP in each block that acts on each token alone",
            where="memory.mlp_tile",
            mend="leave memory.mlp_tile out; memory.checkpointing=full and smaller micro-batches save memory too",
        )


def _mix_notes(data: DataSection, mix: Sequence[SourceMix]) -> Iterator[str]:
    """Sources that shares let come very often or not whole; how often the others come, train.epochs says."""
    shared = len(data.train) > 1 and data.train[0].share is not None
    for source in mix:
        if source.examples == 0 or not (source.replay or shared):
            continue
        times = f"each example of {source.path} is seen {source.passes:.2f} times"
        if round(source.passes, 2) > _MANY_PASSES:
            yield f"{times}: beyond {_MANY_PASSES} passes repeated data teaches little; lower its share or bring more"
        elif round(source.passes, 2) < 1:
            yield f"{times}: not all of it is used; raise its share or the length of the run if it should be"


def _notes(recipe: Recipe, machine: Machine, updates: int, longest: int, layout: Layout) -> Sequence[str]:
    """What a reader of the plan should know."""
    notes = []
    if recipe.model.trust_remote_code:
        notes.append(f"Python code that the model brings runs: {recipe.model.trust_remote_code}")
    if recipe.train.micro_tokens is not None and recipe.train.micro_tokens < longest:
        notes.append(f"the longest example has {longest:,} tokens: alone it exceeds train.micro_tokens")
    if recipe.train.layout == "auto":
        notes.append(f"layout: {layout}, {_LAYOUTS[layout]}")
    used = 1 if recipe.engine.name == "single" else recipe.engine.processes or machine.devices
    if machine.devices > used:
        notes.append(f"{used} of {machine.devices} devices are used, as the recipe's engine section says")
    if recipe.optim.name == "adafactor" and recipe.optim.lr < _RELATIVE:
        notes.append(f"adafactor's optim.lr is a part of each weight's own size: {recipe.optim.lr:g} hardly moves it")
    if recipe.optim.floor == 0 and recipe.optim.schedule != "constant" and updates > 1:
        notes.append("optim.floor is 0: the last update has rate 0 and moves nothing")
    return notes
