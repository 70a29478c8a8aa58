"""What a sweep is told besides its recipe, and by which score its trials are ranked."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from fulltune.base.errors import RecipeError
from fulltune.base.records import DataFacts
from fulltune.base.sweeps import Axis
from fulltune.examining import directions
from fulltune.planning.scores import losses
from fulltune.recipe.schema import Recipe
from fulltune.reporting.judge import falls
from fulltune.sweeping.study import Prune

Keep = Literal["all", "best"]

LENGTHS = ("train.epochs", "train.steps")
LOSSES = ("heldout", "retention")
_PORTIONS = ("train.batch_examples", "train.batch_tokens")


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """What a sweep is told besides the recipe."""

    over: Sequence[str]
    budget: int
    tokens: int | None
    by: str | None
    prune: Prune
    jobs: int
    keep: Keep


def require_terms(recipe: Recipe, axes: Sequence[Axis], terms: Terms) -> None:
    """RecipeError if what was asked for contradicts itself."""
    for name, number in {"--budget": terms.budget, "--jobs": terms.jobs, "--tokens": terms.tokens}.items():
        if number is not None and number < 1:
            raise RecipeError(f"{number} is too few", where=name, mend="give at least 1")
    fields = [axis.field for axis in axes]
    if terms.tokens is None:
        return
    if lengths := [field for field in fields if field in LENGTHS]:
        raise RecipeError(
            f"--tokens makes every trial the same length, and {lengths[0]} is varied",
            where="--tokens",
            mend=f"leave one of them out; with --tokens {lengths[0]} scales with the run",
        )
    if recipe.train.steps is not None and (portions := [field for field in fields if field in _PORTIONS]):
        raise RecipeError(
            f"with train.steps trials of another {portions[0]} see other numbers of tokens",
            where="--tokens",
            mend="say how long the run is by train.epochs",
        )


def ranked_by(recipe: Recipe, data: DataFacts, by: str) -> tuple[str, bool]:
    """The score that trials are ranked by, and whether less of it is better; RecipeError if it is not measured."""
    if by.partition(".")[0] in ("test", "train"):
        why = (
            "data.test is not looked at while anything is chosen" if by.startswith("test") else "it is what is learned"
        )
        raise RecipeError(f"trials are not ranked by {by}: {why}", where="--by", mend="--by heldout.loss")
    known = {**losses(recipe, data, LOSSES), **directions(recipe.evaluate.suites)}
    tasks = [suite.called for suite in recipe.evaluate.suites if suite.kind == "lm_eval"]
    if by.partition(".")[0] in tasks:  # which scores such a task has, it says when it is asked
        return by, falls(by)
    if by not in known:
        mend = f"--by with one of {', '.join(known)}" if known else "keep rows back: data.heldout=0.05"
        raise RecipeError(f"{by} is not measured, so no trial can be ranked by it", where="--by", mend=mend)
    return by, known[by] == "lower"
