"""What a recipe may choose and ship by: what is measured, and nothing else."""

from dataclasses import replace
from typing import Any

import pytest

from fulltune.base.errors import RecipeError
from fulltune.base.records import DataFacts
from fulltune.base.rule import Better
from fulltune.planning.scores import gate_of, losses, require_gate, require_scores, rule_of
from fulltune.recipe.load import load_recipe
from fulltune.recipe.schema import Recipe
from tests.unit.planning.test_make import facts, split

SUITES: dict[str, Better] = {"maths.numeric": "higher", "maths.ece": "lower"}
SUITE = {
    "name": "maths",
    "data": "maths.jsonl",
    "prompt": "q",
    "metrics": ["numeric", {"use": "numeric", "name": "ece"}],
}


def recipe(best_by: Any = None, gate: Any = None, **evaluate: Any) -> Recipe:
    values: dict[str, Any] = {"model": {"path": "x"}, "data": {"train": "a", "heldout": 0.1}}
    values["evaluate"] = {"suites": [SUITE], **evaluate, **({} if gate is None else {"gate": gate})}
    return load_recipe(values | ({} if best_by is None else {"checkpoint": {"best_by": best_by}}))


def card(test: int = 0, **more: int) -> DataFacts:
    made = facts(**more)
    return replace(made, splits={**made.splits, "test": split(test)})


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (recipe("blue"), "names 'blue', which this run does not measure"),
        (recipe("test.loss"), "names 'test.loss', which this run does not measure"),
        (recipe("maths.numeric"), "suites are not asked while training"),
        (recipe("maths.bleu", suites_every=2), "names 'maths.bleu'"),
        (recipe({"floors": {"maths.numeric": 0.5}}), "floors names 'maths.numeric', but suites are not asked"),
        (recipe({"floors": {"other.numeric": 0.5}}, suites_every=2), "floors names 'other.numeric', which"),
        (recipe({"retention": {"max_loss_increase": 0.1}}), "there is no data.retention"),
        (recipe(gate={"retention": {"max_loss_increase": 0.1}}), "there is no data.retention"),
        (recipe(gate={"floors": {"blue.bleu": 3}}), "floors names 'blue.bleu'"),
        (recipe(gate={"score": "retention.loss"}), "names 'retention.loss'"),
    ],
)
def test_what_is_not_measured_is_refused(asked: Recipe, said: str) -> None:
    with pytest.raises(RecipeError) as caught:
        require_scores(asked, card(test=3), SUITES)
    assert said in str(caught.value)


def test_a_refusal_lists_what_there_is() -> None:
    with pytest.raises(RecipeError, match="does not measure") as caught:
        require_scores(recipe("blue", suites_every=2), card(retention=2), SUITES)
    (fault,) = caught.value.faults
    assert fault.where == "checkpoint.best_by"
    assert fault.mend == (
        "one of heldout.loss, heldout.perplexity, retention.loss, retention.perplexity, retention.kl, maths.numeric, "
        "maths.ece"
    )


def test_all_faults_come_at_once() -> None:
    asked = recipe({"score": "a", "floors": {"b": 1, "c": 1}}, gate={"score": "d"})
    with pytest.raises(RecipeError) as caught:
        require_scores(asked, card(), SUITES)
    assert [fault.what.split("'")[1] for fault in caught.value.faults] == ["a", "b", "c", "d"]


def test_what_is_measured_is_taken() -> None:
    limits = {"max_loss_increase": 0.1}
    best_by = {"score": "maths.numeric", "retention": limits, "floors": {"maths.ece": 0.2, "heldout.perplexity": 9}}
    asked = recipe(best_by, gate={"score": "maths.numeric", "floors": {"test.loss": 2}}, suites_every=2)
    require_scores(asked, card(test=2, retention=2), SUITES)
    rule = rule_of(asked.checkpoint.best_by, SUITES)
    assert (rule.score, rule.better) == ("maths.numeric", "higher")
    assert [str(bound) for bound in rule.bounds] == [
        "retention.loss at most 0.1 worse than the base's",
        "maths.ece at most 0.2",
        "heldout.perplexity at most 9",
    ]


def test_the_divergence_from_the_base_is_limited_where_it_is_measured() -> None:
    asked = recipe({"retention": {"max_kl": 0.2, "max_loss_increase": 0.1}})
    require_scores(asked, card(retention=2), SUITES)
    assert [str(bound) for bound in rule_of(asked.checkpoint.best_by, SUITES).bounds] == [
        "retention.loss at most 0.1 worse than the base's",
        "retention.kl at most 0.2",
    ]
    with pytest.raises(RecipeError, match="max_kl limits retention.kl, which this run does not measure"):
        require_scores(recipe(gate={"retention": {"max_kl": 0.2}}, kl_tokens=0), card(retention=2), SUITES)
    with pytest.raises(RecipeError, match="nothing is limited"):
        recipe({"retention": {}})


def bounds(asked: Recipe, **known: Better) -> tuple[str | None, list[str]]:
    gate = gate_of(asked, {name.replace("_", "."): better for name, better in known.items()})
    return gate.score, [str(bound) for bound in gate.bounds]


def test_the_gate_by_default_asks_for_a_gain_and_limits_what_is_forgotten() -> None:
    every: dict[str, Better] = {"test_loss": "lower", "heldout_loss": "lower", "retention_loss": "lower"}
    assert bounds(recipe(), **every) == ("test.loss", ["retention.loss at most 0.05 worse than the base's"])
    assert bounds(recipe(), heldout_loss="lower") == ("heldout.loss", [])
    assert bounds(recipe()) == (None, [])
    stricter = {"retention": {"max_loss_increase": 0.01}, "floors": {"maths.numeric": 0.5}}
    strict = ["retention.loss at most 0.01 worse than the base's", "maths.numeric at least 0.5"]
    assert bounds(recipe(stricter), maths_numeric="higher", **every) == ("test.loss", strict)
    named = recipe(stricter, gate={"score": "maths.numeric", "min_gain": 0.1})
    assert bounds(named, maths_numeric="higher", **every) == ("maths.numeric", strict[:1])
    assert gate_of(named, {"maths.numeric": "higher"}).min_gain == 0.1
    assert (gate_of(named, {}).asked, gate_of(recipe(), {}).asked) == (True, False)


def test_a_gate_that_nothing_can_be_held_against_is_refused() -> None:
    for judged in (card(), card(heldout=0, test=2)):
        require_gate(recipe(), judged, {})
    with pytest.raises(RecipeError, match="the gate cannot be judged"):
        require_gate(recipe(), card(heldout=0, retention=4), SUITES)
    require_gate(recipe(gate={"score": "maths.numeric"}), card(heldout=0), SUITES)
    with pytest.raises(RecipeError, match="nothing is held out to measure it on"):
        require_scores(recipe(gate={"min_gain": 0.1}), card(heldout=0), SUITES)


def test_perplexity_and_every_source_fall() -> None:
    assert set(losses(recipe(), card(test=3, retention=2), ("test", "retention")).values()) == {"lower"}
    assert list(losses(recipe(), card(test=3), ("test", "retention"))) == ["test.loss", "test.perplexity"]
