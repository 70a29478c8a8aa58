"""A proxy is the whole schedule in fewer tokens."""

import pytest

from fulltune.base.errors import RecipeError
from fulltune.recipe.load import load_recipe
from fulltune.recipe.schema import Recipe
from fulltune.sweeping.proxy import compressed, share_of


def recipe(**sections: object) -> Recipe:
    return load_recipe({"model": {"path": "./model"}, "data": {"train": "rows.jsonl"}, **sections})


def test_epochs_and_all_that_is_counted_shrink_alike() -> None:
    asked = recipe(
        train={"epochs": 3.0},
        optim={"warmup": 100},
        evaluate={"every": "0.5 epochs"},
        checkpoint={"every": 50},
    )
    assert compressed(asked, 0.1) == {
        "train.epochs": 0.3,
        "optim.warmup": 10,
        "evaluate.every": "0.05 epochs",
        "checkpoint.every": "5",
    }


def test_shares_of_a_run_and_minutes_stay() -> None:
    asked = recipe(train={"steps": 1000}, optim={"warmup": 0.06}, evaluate={"every": "10 min"})
    assert compressed(asked, 0.25) == {"train.steps": 250, "checkpoint.every": "0.25 epochs"}


def test_what_it_changes_is_a_recipe_whose_schedule_is_whole() -> None:
    asked = recipe(train={"steps": 30}, optim={"warmup": 3}, evaluate={"every": 10})
    changes = compressed(asked, 1 / 3)
    made = load_recipe(asked, changes)
    assert (made.train.steps, made.optim.warmup, made.evaluate.every.amount) == (10, 1, 3.0)


def test_a_proxy_is_shorter_than_the_run() -> None:
    assert share_of(250, 1000.0) == 0.25
    with pytest.raises(RecipeError, match="about 1,000 tokens"):
        share_of(1000, 1000.0)
