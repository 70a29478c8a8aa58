"""Scores that a run measures, and what a recipe chooses and ships by: a rule and a gate, or a refusal. Pure."""

from collections.abc import Iterable, Iterator, Mapping

from fulltune.base.errors import Fault, RecipeError
from fulltune.base.gate import Gate
from fulltune.base.records import DataFacts
from fulltune.base.rule import DIVERGENCE, RETENTION, Better, Bound, Rule
from fulltune.data.names import by_source
from fulltune.planning.comparing import measures
from fulltune.recipe.gate import BestBy, RetentionLimits
from fulltune.recipe.schema import Recipe

MAX_INCREASE = 0.05
"""Nats per token by which retention loss may grow where a gate does not say: its perplexity grows by 5%."""

_CHOSEN_BY, _SHIPPED_BY = ("heldout", "retention"), ("test", "heldout", "retention")
_HELD = ("test.loss", "heldout.loss")
"""What says how much was learned: the first that was measured."""


def losses(recipe: Recipe, data: DataFacts, splits: Iterable[str]) -> dict[str, Better]:
    """The losses and perplexities of those of these splits that hold anything, those of each of several sources too.

    Of retention data also the divergence from the base, where it is measured.
    """
    seen = [split for split in splits if split != "test" or recipe.evaluate.test]
    measured = [split for split in seen if data.splits[split].examples]
    names = [f"{split}.{score}" for split in measured for score in ("loss", "perplexity")]
    sources = {split: by_source(data, split) for split in measured}
    names += [f"{split}.{name}.loss" for split, found in sources.items() if len(found) > 1 for name in found]
    if measures(recipe, "retention" in measured):
        names.append(DIVERGENCE)
    return dict.fromkeys(names, "lower")


def rule_of(asked: BestBy, suites: Mapping[str, Better]) -> Rule:
    """By what states are chosen. `suites`: which way is up in the scores of suites."""
    return Rule(asked.score, suites.get(asked.score, "lower"), _bounds(asked.retention, asked.floors, suites))


def gate_of(recipe: Recipe, known: Mapping[str, Better]) -> Gate:
    """What must hold of the result. `known`: the scores that were, or will be, measured of it and of the base.

    Where the recipe names no gate, a gain above 0, and what the best checkpoint must keep, which for retention is
    MAX_INCREASE if nothing else is said.
    """
    asked, best = recipe.evaluate.gate, recipe.checkpoint.best_by
    limits = best.retention if asked is None or asked.retention is None else asked.retention
    if limits is None and RETENTION in known:
        limits = RetentionLimits(max_loss_increase=MAX_INCREASE)
    score = None if asked is None else asked.score
    score = score or next((name for name in _HELD if name in known), None)
    return Gate(
        score=score,
        better=known.get(score or "", "lower"),
        min_gain=0.0 if asked is None else asked.min_gain,
        bounds=_bounds(limits, (best if asked is None else asked).floors, known),
        asked=asked is not None,
    )


def _bounds(
    limits: RetentionLimits | None, floors: Mapping[str, float], better: Mapping[str, Better]
) -> tuple[Bound, ...]:
    """All that must hold besides a score."""
    most, far = (None, None) if limits is None else (limits.max_loss_increase, limits.max_kl)
    kept = [] if most is None else [Bound(RETENTION, "lower", most, over_base=True)]
    kept += [] if far is None else [Bound(DIVERGENCE, "lower", far)]
    return (*kept, *(Bound(score, better.get(score, "lower"), limit) for score, limit in floors.items()))


def require_scores(recipe: Recipe, data: DataFacts, suites: Mapping[str, Better]) -> None:
    """RecipeError if the best checkpoint is to be chosen, or the result shipped, by what this run does not measure."""
    faults = [*_chosen(recipe, data, suites), *_shipped(recipe, data, suites)]
    if faults:
        raise RecipeError(faults=faults)


def require_gate(recipe: Recipe, data: DataFacts, suites: Mapping[str, Better]) -> None:
    """RecipeError if no verdict could be given: a gate that nothing can be held against would let anything pass."""
    if gate_of(recipe, {**losses(recipe, data, _SHIPPED_BY), **suites}).score is None:
        raise RecipeError(
            "the gate cannot be judged: nothing is held out, so nothing would say whether the model gained",
            where="--gate",
            mend="data.test=0.05 or data.heldout=0.05; or evaluate.gate.score=SUITE.METRIC",
        )


def _chosen(recipe: Recipe, data: DataFacts, suites: Mapping[str, Better]) -> Iterator[Fault]:
    asked, field = recipe.checkpoint.best_by, "checkpoint.best_by"
    known = losses(recipe, data, _CHOSEN_BY)
    # Without held-out data nothing is chosen, and the result is the last state; unless something else was named.
    chosen = bool(data.splits["heldout"].examples) or "best_by" in recipe.checkpoint.model_fields_set
    if not chosen:
        if recipe.checkpoint.patience is not None:
            yield Fault(
                f"checkpoint.patience needs a score to judge by, but nothing is held out and {field} names none",
                where="checkpoint.patience",
                mend="data.heldout=0.05, or leave checkpoint.patience out",
            )
        return
    asked_while_training = recipe.evaluate.suites_every is not None
    yield from _unknown(field, [asked.score], {**known, **(suites if asked_while_training else {})}, suites)
    floors = suites if asked_while_training else {}
    yield from _unknown(f"{field}.floors", asked.floors, {**known, **floors}, suites)
    yield from _no_retention(field, asked.retention, known)


def _shipped(recipe: Recipe, data: DataFacts, suites: Mapping[str, Better]) -> Iterator[Fault]:
    asked = recipe.evaluate.gate
    if asked is None:
        return
    known = {**losses(recipe, data, _SHIPPED_BY), **suites}
    if asked.score is None and not any(name in known for name in _HELD):
        yield Fault(
            "evaluate.gate asks for a gain, but nothing is held out to measure it on",
            where="evaluate.gate",
            mend="data.test=0.05 or data.heldout=0.05; or evaluate.gate.score=SUITE.METRIC",
        )
    yield from _unknown("evaluate.gate", [] if asked.score is None else [asked.score], known, suites)
    yield from _unknown("evaluate.gate.floors", asked.floors, known, suites)
    yield from _no_retention("evaluate.gate", asked.retention, known)


def _unknown(
    field: str, names: Iterable[str], known: Mapping[str, Better], suites: Mapping[str, Better]
) -> Iterator[Fault]:
    for name in names:
        if name in known:
            continue
        if name in suites:
            yield Fault(
                f"{field} names {name!r}, but suites are not asked while training",
                where=field,
                mend="evaluate.suites_every=1 epochs, so that there is a score to choose by",
            )
            continue
        yield Fault(
            f"{field} names {name!r}, which this run does not measure",
            where=field,
            mend=f"one of {', '.join(known)}" if known else f"data.heldout=0.05, or leave {field} out",
        )


def _no_retention(field: str, limits: RetentionLimits | None, known: Mapping[str, Better]) -> Iterator[Fault]:
    if limits is not None and limits.max_kl is not None and RETENTION in known and DIVERGENCE not in known:
        yield Fault(
            f"{field}.retention.max_kl limits {DIVERGENCE}, which this run does not measure",
            where=f"{field}.retention.max_kl",
            mend="evaluate.kl_tokens above 0, with train.objective=next_token",
        )
    if limits is not None and RETENTION not in known:
        yield Fault(
            f"{field}.retention limits what is forgotten, but there is no data.retention to measure it on",
            where=f"{field}.retention",
            mend="data.retention=FILE, texts of what must be kept; or leave it out",
        )
