"""Commands that only turn rows into tokens, or look at them, load no more than that takes (base/torchless.py)."""

import re
from collections.abc import Mapping
from typing import Any

from fulltune.base import torchless
from fulltune.recipe.load import Asked, recipe_of
from fulltune.recipe.schema import OptimSection, Recipe, TrainSection

_FOREIGN = re.compile(r'"\w+(\.\w+)*:\w+"')
"""`package.module:name`, code from outside."""


def begin(asked: Asked, overrides: Mapping[str, Any]) -> None:
    """No torch in this process, unless something that the recipe names may want it. To be called before all else."""
    recipe = recipe_of(asked, overrides)
    foreign = recipe.model.trust_remote_code or _FOREIGN.search(recipe.model_dump_json())
    if not (foreign or _names_objective(recipe) or _names_optimizer(recipe) or recipe.evaluate.suites):
        torchless.begin()


def require_others(recipe: Recipe) -> None:
    """RecipeError for what training could not find later: before rows are read. What is left at its default is there.

    Objectives, optimizers and suites are made of torch, so they are loaded where a recipe names some.
    """
    if _names_objective(recipe):
        from fulltune.objectives import OBJECTIVES

        OBJECTIVES.find(recipe.train.objective, where="train.objective")
    if _names_optimizer(recipe):
        from fulltune.optim.optimizers import OPTIMIZERS

        OPTIMIZERS.find(recipe.optim.name, where="optim.name")
    if recipe.evaluate.suites:
        from fulltune.examining import suites_of

        suites_of(recipe.evaluate.suites)


def _names_objective(recipe: Recipe) -> bool:
    return bool(recipe.train.objective != TrainSection.model_fields["objective"].default)


def _names_optimizer(recipe: Recipe) -> bool:
    return bool(recipe.optim.name != OptimSection.model_fields["name"].default)
