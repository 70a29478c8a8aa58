"""Numbers that a run cannot be made of are refused where they are written."""

import math
from typing import Any

import pytest

from fulltune.base.errors import RecipeError
from fulltune.recipe.data import DataSection
from fulltune.recipe.load import load_recipe
from fulltune.recipe.schema import Recipe
from fulltune.recipe.write import as_values, as_yaml


def load(**sections: Any) -> Recipe:
    data = {"train": "a.jsonl", **sections.pop("data", {})}
    return load_recipe({"model": {"path": "x"}, "data": data, **sections})


FIELDS = [
    f"{section}.{name}" for section, field in Recipe.model_fields.items() for name in field.annotation.model_fields
]  # type: ignore[union-attr]


@pytest.mark.parametrize(
    "value", [math.nan, math.inf, -math.inf, 10**400, -(10**400)], ids=lambda value: str(value)[:5]
)
@pytest.mark.parametrize("field", FIELDS)
def test_no_field_takes_a_number_without_end(field: str, value: float) -> None:
    with pytest.raises(RecipeError) as caught:
        load_recipe({"model": {"path": "x"}, "data": {"train": "a.jsonl"}}, {field: value})
    assert all(fault.what.startswith((f"`{field}`", f"`{field}.0`")) for fault in caught.value.faults)


@pytest.mark.parametrize("value", [[], {}, "~", "\0", True, None, [[]], [None], {"": 1}, {"<share>": 1}])
@pytest.mark.parametrize("field", FIELDS)
def test_every_fault_names_the_field_it_lies_in(field: str, value: Any) -> None:
    """What pydantic adds to a place, such as the branch of a union, is left out of it; what a user wrote is not."""
    try:
        load_recipe({"model": {"path": "x"}, "data": {"train": "a.jsonl"}}, {field: value})
    except RecipeError as caught:
        for fault in caught.faults:
            assert f"`{field}" in fault.what
            assert "<sources>" not in fault.what
            assert "<share>" not in fault.what or value == {"<share>": 1}


@pytest.mark.parametrize("epochs", [1e308, 1e7, 0.0, -1.0])
def test_epochs_are_bounded(epochs: float) -> None:
    with pytest.raises(RecipeError, match=r"train\.epochs"):
        load(train={"epochs": epochs})


@pytest.mark.parametrize(
    ("shares", "said"),
    [
        ((1e308, 1e308), "less than or equal to 1000000000"),
        ((1e-300, 1.0), "greater than or equal to"),
        ((1e-4, 1e4), "a million times apart"),
        ((0.0, 1.0), "greater than or equal to"),
        ((math.inf, 1.0), "finite"),
        ((0.7, None), "every source"),
    ],
)
def test_shares_that_mix_nothing_are_refused(shares: tuple[float | None, ...], said: str) -> None:
    sources = [{"path": f"{n}.jsonl", "share": share} for n, share in enumerate(shares)]
    with pytest.raises(RecipeError, match=said):
        load(data={"train": sources})


def test_shares_may_be_ratios_or_counts_of_rows() -> None:
    for shares in ((0.7, 0.3), (7, 3), (5_000_000, 12)):
        load(data={"train": [{"path": f"{n}.jsonl", "share": float(share)} for n, share in enumerate(shares)]})


@pytest.mark.parametrize("split", ["heldout", "test", "retention"])
def test_a_share_outside_the_training_data_would_be_ignored(split: str) -> None:
    with pytest.raises(RecipeError, match=rf"`data\.{split}`: `share` mixes the sources of data\.train") as caught:
        load(data={split: [{"path": "h.jsonl", "share": 0.1}]})
    assert caught.value.faults[0].where == f"recipe: data.{split}"
    assert DataSection.model_validate({"train": ["a"], split: ["h.jsonl"]}).train


def test_numbers_for_spikes_that_nobody_looks_for_are_refused() -> None:
    with pytest.raises(RecipeError, match=r"train\.on_spike is off; leave train\.spike_score out"):
        load(train={"on_spike": "off", "spike_score": 5.0})
    off = load(train={"on_spike": "off"})
    assert "spike_window" not in as_yaml(off), "and a resolved recipe can be read again"
    assert load_recipe(as_values(off)) == off


def test_signals_are_a_name_or_a_list_of_them() -> None:
    assert load().checkpoint.signals == ("SIGTERM", "SIGINT", "SIGUSR1")
    for given, wanted in (("SIGUSR2", ("SIGUSR2",)), (["SIGHUP", "SIGTERM"], ("SIGHUP", "SIGTERM")), ([], ())):
        assert load(checkpoint={"signals": given}).checkpoint.signals == wanted
    for given in ("SIGKILL", "TERM", ["SIGTERM", "SIGTERM"], 15):
        with pytest.raises(RecipeError, match=r"checkpoint\.signals"):
            load(checkpoint={"signals": given})
