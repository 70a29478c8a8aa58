"""Kernels that cannot be had are refused before anything is loaded, each with what to do in place of it."""

from dataclasses import replace
from typing import Any

import pytest

from fulltune.base.errors import RecipeError
from fulltune.base.records import Machine
from fulltune.planning.kernels import require_kernels
from fulltune.planning.make import make_plan
from fulltune.planning.precision import resolve
from fulltune.recipe.load import load_recipe
from tests.unit.planning.test_make import CPU, GPUS, count, facts, model

KNOWN = replace(model(), causal=True)
VARLEN = {"path": "x", "attention": "varlen"}
LIGER = {"path": "x", "liger": True}


def asked(machine: Machine = GPUS, causal: bool = True, **sections: Any) -> list[str]:
    """The fields that are complained about."""
    recipe = load_recipe({"model": {"path": "x"}, "data": {"train": "a"}, **sections})
    try:
        require_kernels(recipe, replace(KNOWN, causal=causal), machine, resolve(recipe, machine))
    except RecipeError as fault:
        return [f"{one.where}: {one.what}" for one in fault.faults]
    return []


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"model": VARLEN}, []),
        ({"model": VARLEN, "machine": CPU}, ["model.attention: torch's kernel"]),
        ({"model": VARLEN, "train": {"precision": "float32"}}, ["model.attention: torch's kernel"]),
        ({"model": VARLEN, "machine": replace(GPUS, bf16=False)}, ["model.attention: torch's kernel"]),
        ({"model": VARLEN, "causal": False}, ["model.attention: of Llama it is not known"]),
        ({"model": {**VARLEN, "dropout": 0.1}}, ["model.attention: torch's kernel"]),
        ({"model": {**VARLEN, "dropout": 0.0}}, []),
        ({"model": {"path": "x", "attention": "flash_attention_2"}, "causal": False}, []),
        (
            {"model": {"path": "x", "attention": "flash_attention_3"}, "train": {"precision": "float32"}},
            ["model.attention: flash attention computes in bf16"],
        ),
        ({"model": LIGER}, []),
        ({"model": LIGER, "engine": {"name": "ddp"}}, []),
        ({"model": LIGER, "machine": CPU}, ["model.liger: the kernels"]),
        ({"model": LIGER, "engine": {"name": "fsdp2"}}, ["model.liger: the kernels of liger-kernel were not tried"]),
        ({"model": {**VARLEN, **LIGER}, "machine": CPU, "causal": False}, ["model.attention"] * 2 + ["model.liger"]),
    ],
    ids=str,
)  # fmt: skip
def test_what_cannot_be_had_is_told_all_at_once(given: dict[str, Any], said: list[str]) -> None:
    found = asked(**given)
    assert len(found) == len(said)
    assert all(one.startswith(start) for one, start in zip(found, said, strict=True)), found


def test_a_plan_asks_for_them_and_packs_for_varying_lengths() -> None:
    recipe = load_recipe({"model": VARLEN, "data": {"train": "a"}})
    assert make_plan(recipe, facts(), KNOWN, GPUS, count).layout == "packed"
    with pytest.raises(RecipeError, match="one of GPUs"):
        make_plan(recipe, facts(), KNOWN, CPU, count)
    padded = load_recipe({"model": VARLEN, "data": {"train": "a"}, "train": {"layout": "padded"}})
    assert make_plan(padded, facts(), KNOWN, GPUS, count).layout == "padded"
