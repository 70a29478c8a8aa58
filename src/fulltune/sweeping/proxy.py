"""A shorter run that stands for a whole one: its schedule is compressed, not cut off."""

from collections.abc import Mapping
from typing import Any

from fulltune.base.errors import RecipeError
from fulltune.base.records import DataFacts, Every, Plan
from fulltune.recipe.schema import Recipe


def tokens_of(plan: Plan, data: DataFacts) -> float:
    """How many tokens a planned run sees, padding not counted."""
    counts = data.splits["train"].tokens_by_source
    return sum(source.passes * tokens for source, tokens in zip(plan.mix, counts, strict=True))


def share_of(tokens: int, whole: float) -> float:
    """The part of a whole run that a proxy of so many tokens is; RecipeError if it is no part."""
    if tokens >= whole:
        raise RecipeError(
            f"the whole run sees about {whole:,.0f} tokens, so {tokens:,} make no shorter one",
            where="--tokens",
            mend="leave --tokens out, or give fewer",
        )
    return tokens / whole


def compressed(recipe: Recipe, share: float) -> Mapping[str, Any]:
    """What a proxy changes of a recipe: whatever is counted in updates or epochs takes the same part of the run.

    The rate rises and falls over the whole proxy, since shares of the run (`optim.warmup: 0.06`, `unfreeze`) stay as
    they are; it is evaluated as often as the whole run would be.
    """
    train, warmup = recipe.train, recipe.optim.warmup
    changes: dict[str, Any] = {}
    if train.steps is None:
        changes["train.epochs"] = float(f"{train.epochs * share:.6g}")
    else:
        changes["train.steps"] = max(1, round(train.steps * share))
    if isinstance(warmup, int):
        changes["optim.warmup"] = round(warmup * share)
    cadences = {
        "evaluate.every": recipe.evaluate.every,
        "checkpoint.every": recipe.checkpoint.every,
        "evaluate.suites_every": recipe.evaluate.suites_every,
    }
    for name, every in cadences.items():
        if every is not None and every.unit != "minutes":
            changes[name] = str(_part(every, share))
    return changes


def _part(every: Every, share: float) -> Every:
    if every.unit == "updates":
        return Every(float(max(1, round(every.amount * share))), every.unit)
    return Every(max(1e-6, round(every.amount * share, 6)), every.unit)
