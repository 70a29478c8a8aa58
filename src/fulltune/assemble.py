"""With engines.py the only place where a Recipe becomes objects. Components never see a Recipe; stages never build."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from fulltune.base import stop
from fulltune.base.log import LOGGER
from fulltune.base.records import DataFacts, EvalReport, Plan, Progress
from fulltune.base.results import SuiteReport
from fulltune.base.rule import Better
from fulltune.data.feed import Feed, Portion, once
from fulltune.data.lay import Budget
from fulltune.data.mixing import mixture
from fulltune.data.names import by_source
from fulltune.data.store import Store
from fulltune.data.template import Template
from fulltune.engine.contract import Engine
from fulltune.engine.launch import Meeting
from fulltune.engine.native import NativeEngine
from fulltune.engines import By, engine_for, parting, width
from fulltune.evaluation.heldout import measure
from fulltune.exporting.targets import Target
from fulltune.material import Prepared
from fulltune.model.facts import head, keeps_logits
from fulltune.model.folder import base_folder
from fulltune.model.probe import Answers
from fulltune.model.varlen import attends_so
from fulltune.objectives import OBJECTIVES, Objective
from fulltune.optim.groups import begins, groups
from fulltune.optim.pulls import Pull
from fulltune.optim.schedules import SCHEDULES, factor
from fulltune.planning.pulls import pulls_of
from fulltune.planning.scores import rule_of
from fulltune.recipe.data import DataSection
from fulltune.recipe.schema import ExportSection, ModelSection, OptimSection, Recipe, TrainSection
from fulltune.references import Compared, Comparing, comparing
from fulltune.training.acts import Evaluating, Saving
from fulltune.training.cadence import Cadence
from fulltune.training.checkpoint import Belonging, Checkpoints
from fulltune.training.fisher import Estimate, estimate
from fulltune.training.journal import Journal
from fulltune.training.loop import Run
from fulltune.training.pulling import Pulling
from fulltune.training.spikes import Spikes
from fulltune.training.updating import Updating

FISHER = "fisher.safetensors"
"""In a run folder: what its weights are worth to the retention data, for other runs of the same model too."""

_MEASURED = ("heldout", "retention")
"""Splits that are looked at while training; the test split is looked at before and after, and chooses nothing."""


def count_updates(data: DataSection, facts: DataFacts, store: Store) -> Callable[[TrainSection, int], int]:
    """How many updates so many examples make."""
    mixed = mixture(data, facts.splits["train"])

    def count(train: TrainSection, examples: int) -> int:
        feed = Feed(store, mixed.order(train.seed), portion(train), end=examples)
        if train.batch_tokens is None:
            return -(-examples // train.batch_examples)
        updates = position = 0
        while taken := len(feed.take(position)):
            updates, position = updates + 1, position + taken
        return updates

    return count


def portion(train: TrainSection) -> Portion:
    """What one update takes from the data."""
    return Portion(None if train.batch_tokens is not None else train.batch_examples, train.batch_tokens)


@dataclass(frozen=True, slots=True)
class Site:
    """Where a run happens: its folder and journal, who works on it how, and what its checkpoints belong to."""

    folder: Path
    journal: Journal
    meeting: Meeting
    belonging: Belonging
    by: By
    examine: Callable[[Engine, int], Sequence[SuiteReport]]
    """Puts the recipe's suites to the model of an engine, after so many updates."""
    suites: Mapping[str, Better]
    """The scores that they give, and which way is up."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Training:
    """Everything that a run needs, built and bound."""

    model: nn.Module
    engine: Engine
    updating: Updating
    evaluating: Evaluating
    testing: Callable[[int], EvalReport | None]
    """Measures the test split, which nothing is chosen by."""
    saving: Saving
    pulling: Pulling
    checkpoints: Checkpoints
    comparing: Comparing
    loop: Callable[[Progress], Run]
    """The loop's parts, from where the run stands."""


def training(recipe: Recipe, plan: Plan, model: nn.Module, answers: Answers, data: Prepared, site: Site) -> Training:
    """From a recipe and what the earlier stages left, everything the loop calls. `answers`: of the model."""
    # Asked before an engine takes the weights apart.
    longest = [int(store.lengths.max()) for store in data.stores.values()] if site.by.name == "zero3" else []
    most = max(plan.micro_tokens, *longest) if longest else 0
    objective, hidden = objective_for(recipe.train, model, answers, most), width(model)
    kept, rates = comparing(recipe, plan, data.facts, data.stores, site.folder), _rates(recipe.optim, plan, model)
    pulls = pulls_of(recipe.optim)
    in_order = sorted(pulls.values(), key=lambda pull: not pull.mixes)  # the others see weights that are put back
    engine = engine_for(recipe, plan, model, objective, site.meeting, site.by, in_order)
    pulling = _pulling(recipe, pulls, engine, site, partial(_fisher, engine, objective, data, plan))
    place: Any = {"rank": site.meeting.world.rank, "size": site.meeting.world.size}
    ordered = mixture(recipe.data, data.facts.splits["train"]).order(recipe.train.seed)
    checkpoints = Checkpoints(
        site.folder / "checkpoints", keep=recipe.checkpoint.keep, belonging=site.belonging, crew=site.meeting.crew
    )
    saving = Saving(checkpoints=checkpoints, engine=engine, pulling=pulling, journal=site.journal)
    updating = Updating(
        feed=Feed(data.stores["train"], ordered, portion(recipe.train), end=plan.examples, refer=kept.refer, **place),
        budget=Budget(plan.micro_examples, plan.micro_tokens, plan.layout, plan.context, 6.0 * hidden),
        engine=engine,
        objective=objective,
        rates=rates,
        seed=recipe.train.seed,
        on_nonfinite=recipe.train.on_nonfinite,
        max_skipped=recipe.train.max_skipped,
        spikes=Spikes(policy=recipe.train.on_spike, window=recipe.train.spike_window, limit=recipe.train.spike_score),
        max_rollbacks=recipe.train.max_rollbacks,
        back=saving.back,
        stopped=lambda: stop.asked() is not None,
        journal=site.journal,
        mixing=pulling.mixing,
    )
    cadence, rule = _cadence(recipe, plan), rule_of(recipe.checkpoint.best_by, site.suites)
    measured = measuring(data, _MEASURED, plan, engine, objective, kept.measured)
    tested = measuring(data, ["test"] if recipe.evaluate.test else [], plan, engine, objective)
    evaluating = Evaluating(
        measure=lambda update: pulling.instead(partial(measured, update)),
        rule=rule,
        journal=site.journal,
        examine=lambda update: pulling.instead(partial(site.examine, engine, update)),
        asks=partial(cadence.asks, last=any(score in site.suites for score in rule.scores)),
    )
    return Training(
        model=model,
        engine=engine,
        updating=updating,
        evaluating=evaluating,
        testing=lambda update: pulling.instead(partial(tested, update)),
        saving=saving,
        pulling=pulling,
        checkpoints=checkpoints,
        comparing=kept,
        loop=lambda progress: Run(
            progress=progress, cadence=cadence, update=updating, evaluate=evaluating, save=saving
        ),
    )


def _cadence(recipe: Recipe, plan: Plan) -> Cadence:
    when, kept = recipe.evaluate, recipe.checkpoint
    return Cadence(plan=plan, evaluate=when.every, save=kept.every, patience=kept.patience, ask=when.suites_every)


def objective_for(section: TrainSection, model: nn.Module, answers: Answers, most: int = 0) -> Objective:
    """The objective around the model, on our own cut of its head if a probe showed that it is exact. `most`: of it."""
    cut = head(model) if answers.cut else None
    if cut is None:
        LOGGER.info("the model's head is unusual: logits come from its own forward pass, not in chunks (more memory)")
    held: dict[str, Any] = {"kl": section.kl_weight} if section.kl_weight else {}  # comparing.py refuses others
    if section.objective == "next_token":
        held |= {"most": most, "told": attends_so(model)}
    return OBJECTIVES[section.objective](model, cut, keeps_logits=keeps_logits(model), **held)


def _pulling(recipe: Recipe, pulls: Mapping[str, Pull], engine: Engine, site: Site, estimate: Estimate) -> Pulling:
    """`pulls`: those that the engine has."""
    return Pulling(
        pulls=pulls,
        engine=engine,
        crew=site.meeting.crew,
        files={asked.use: Path(asked.file) for asked in recipe.optim.pulls if asked.file is not None},
        file=site.folder / FISHER,
        estimate=estimate,
        seed=recipe.train.seed,
    )


def _fisher(engine: Engine, objective: Objective, data: Prepared, plan: Plan, examples: int) -> Mapping[str, Tensor]:
    """Fisher information from so many examples of the retention data, spread over it, each by itself."""
    store, world = data.stores["retention"], engine.world
    budget = Budget(1, plan.micro_tokens, "padded", plan.context)
    members = [len(store) * number // examples for number in range(examples)] if examples < len(store) else None
    each = (once(store, budget, members=[m], rank=world.rank, size=world.size) for m in members or range(len(store)))
    assert isinstance(engine, NativeEngine)  # planning/pulls.py refuses the others
    return estimate(engine, objective, (batch for batches in each for batch in batches))


def measuring(
    data: Prepared,
    splits: Iterable[str],
    plan: Plan,
    engine: Engine,
    objective: Objective,
    compared: Compared | None = None,
) -> Callable[[int], EvalReport | None]:
    """Measures what there is of these splits after a given number of updates; None if there is nothing.

    `compared`: what the base predicts of retention data; without it there is no `retention.kl`.
    """
    # Padded whatever the layout of training is: similar lengths lie together, and a loss does not depend on it.
    budget = Budget(plan.micro_tokens, plan.micro_tokens, "padded", plan.context)
    place: Any = {"rank": engine.world.rank, "size": engine.world.size}
    refer = {} if compared is None else {"retention": compared.references}
    batches = {
        split: {
            name: partial(once, data.stores[split], budget, members=members, refer=refer.get(split), **place)
            for name, members in by_source(data.facts, split).items()
        }
        for split in splits
        if split in data.stores
    }
    return lambda update: measure(batches, engine, objective, step=update) if batches else None


def target(model: ModelSection, section: ExportSection, facts: DataFacts, shipped: Template, dtype: str) -> Target:
    """How the result is to be written; `dtype` is that of the base."""
    own = model.chat_template is None and shipped.exported == shipped.source
    return Target(
        base=base_folder(model),
        dtype=dtype if section.dtype == "base" else section.dtype,
        template=None if own else shipped.exported,
        stop_ids=facts.stop_ids,
    )


def _rates(section: OptimSection, plan: Plan, model: nn.Module) -> Callable[[int], Sequence[float]]:
    """The rate of each parameter group at an update."""
    made = groups(model.named_parameters(), parting(section, model))
    parts = [(group.rate, begins(group.start, plan.updates)) for group in made]
    floor = 1.0 if section.schedule == "constant" else section.floor
    at = partial(
        factor,
        updates=plan.updates,
        warmup=plan.warmup_updates,
        floor=floor,
        shape=SCHEDULES[section.schedule],
    )
    return lambda update: [section.lr * at(update) * part if update >= first else 0.0 for part, first in parts]
