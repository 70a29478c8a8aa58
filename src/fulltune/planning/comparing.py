"""Whether a run's model is compared with its base, and what that needs: known before any row is read. Pure."""

from fulltune.base.errors import Fault, RecipeError
from fulltune.recipe.schema import Recipe

_KNOWS = "next_token"
"""The objective that knows of a base."""


def measures(recipe: Recipe, retention: bool) -> bool:
    """Whether there is a score `retention.kl`; `retention`: whether there are such texts."""
    return retention and recipe.evaluate.kl_tokens > 0 and recipe.train.objective == _KNOWS


def require_comparing(recipe: Recipe) -> None:
    """RecipeError for all that a penalty on the divergence from the base lacks."""
    if not recipe.train.kl_weight:
        return
    faults: list[Fault] = []
    where = "train.kl_weight"
    if recipe.data.replay is None:
        said = "the model is held to the base on the texts of data.replay, and there are none"
        faults.append(Fault(said, where, "data.replay: {sources: general.jsonl, share: 0.1}; or leave it out"))
    if recipe.train.objective != _KNOWS:
        said = f"the objective {recipe.train.objective} knows of no base"
        faults.append(Fault(said, where, f"train.objective={_KNOWS}; or add the penalty to your own objective"))
    if faults:
        raise RecipeError(faults=faults)
