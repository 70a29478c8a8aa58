"""What may be varied, and how: every value is one that the recipe's schema allows, or nothing starts."""

from typing import Any

import pytest

from fulltune.base.errors import RecipeError
from fulltune.base.sweeps import Axis
from fulltune.sweeping.space import at, axes_of, combinations, corners, every, proper

RECIPE: dict[str, Any] = {"model": {"path": "./model"}, "data": {"train": "rows.jsonl"}}


def axis(text: str, **overrides: Any) -> Axis:
    (made,) = axes_of([text], RECIPE, overrides)
    return made


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("optim.lr=1e-6:1e-4:log", Axis(field="optim.lr", kind="float", low=1e-6, high=1e-4, log=True)),
        ("optim.weight_decay=0:1", Axis(field="optim.weight_decay", kind="float", low=0, high=1)),
        ("train.batch_examples=8:64:log", Axis(field="train.batch_examples", kind="int", low=8, high=64, log=True)),
        ("optim.warmup=10:100", Axis(field="optim.warmup", kind="int", low=10, high=100)),
        ("optim.warmup=0.0:0.2", Axis(field="optim.warmup", kind="float", low=0, high=0.2)),
        ("train.epochs=1:4", Axis(field="train.epochs", kind="float", low=1, high=4)),
        ("train.epochs=1:4:int", Axis(field="train.epochs", kind="int", low=1, high=4)),
        ("train.epochs=1,2,3", Axis(field="train.epochs", kind="choice", choices=(1, 2, 3))),
        ("optim.clip=1.0,null", Axis(field="optim.clip", kind="choice", choices=(1.0, None))),
        (
            "optim.pulls=[],[{use: l2_sp, options: {alpha: 1}}]",
            Axis(field="optim.pulls", kind="choice", choices=([], [{"use": "l2_sp", "options": {"alpha": 1}}])),
        ),
    ],
)
def test_a_text_is_an_axis_of_the_kind_that_the_field_has(text: str, wanted: Axis) -> None:
    assert axis(text) == wanted


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("optim.learning_rate=1e-6:1e-4", "optim.lr"),
        ("optim.lr=-1:1", "greater than 0"),
        ("optim.lr=0:1:log", "logarithm"),
        ("optim.lr=1e-4:1e-6:log", "smaller end first"),
        ("optim.lr=1e-6:1e-4:cube", "no way to go"),
        ("optim.warmup=0.5:2.5", "0.06"),
        ("train.batch_examples=0:8", "greater than or equal to 1"),
        ("train.batch_examples=1.5:8", "integer"),
        ("train.layout=padded,dense", "'padded' or 'packed'"),
        ("train.epochs=1", "no choice"),
        ("train.epochs=1,1", "twice"),
        ("train.epochs=[1", "no list"),
        ("lr=1,2", "neither field nor values"),
        ("optim.lr=", "neither field nor values"),
        ("data.test=0.1,0.2", "judged by other data"),
        ("data.heldout.share=0.1,0.2", "judged by other data"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_starts(text: str, said: str) -> None:
    with pytest.raises(RecipeError) as caught:
        axis(text)
    assert said in str(caught.value)
    assert all(fault.where == f"--over {text}" and fault.mend for fault in caught.value.faults)


def test_all_faults_are_told_at_once_and_axes_must_go_together() -> None:
    with pytest.raises(RecipeError) as caught:
        axes_of(["optim.rl=1,2", "train.epochs=0,1", "optim.lr=1e-5,1e-4", "optim.lr=1e-5:1e-4"], RECIPE, {})
    assert len(caught.value.faults) == 3
    with pytest.raises(RecipeError, match="exclude each other"):
        axes_of(["train.epochs=1,2", "train.steps=10,20"], RECIPE, {})
    with pytest.raises(RecipeError, match="both set and varied"):
        axes_of(["optim.lr=1e-5,1e-4"], RECIPE, {"optim.lr": 1e-5})
    with pytest.raises(RecipeError, match="nothing to vary"):
        axes_of([], RECIPE, {})


def test_values_between_the_ends_are_few_digits_and_never_beyond_them() -> None:
    lr = Axis(field="optim.lr", kind="float", low=1.2345e-6, high=1e-4, log=True)
    assert at(lr, 0.0) == 1.2345e-6
    assert at(lr, 0.5) == 1.11e-5, "the geometric mean"
    assert at(Axis(field="x.y", kind="int", low=1, high=100, log=True), 0.5) == 10
    assert proper(Axis(field="x.y", kind="int", low=1, high=3), 7.2) == 3
    assert at(Axis(field="x.y", kind="choice", choices=("a", "b")), 0.999) == "b"


def test_combinations_are_counted_where_they_end() -> None:
    epochs, sizes = axes_of(["train.epochs=1,2,3", "train.batch_examples=1:2"], RECIPE, {})
    assert combinations([epochs, sizes]) == 6 == len(list(every([epochs, sizes])))
    assert combinations([epochs, axis("optim.lr=1e-6:1e-4")]) is None
    tried = list(corners([epochs, sizes]))
    assert {values["train.epochs"] for values in tried} == {1, 2, 3}
    assert {values["train.batch_examples"] for values in tried} == {1, 2}
