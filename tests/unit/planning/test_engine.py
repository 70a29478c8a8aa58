"""Which engine a run gets, and what is refused."""

from dataclasses import replace
from typing import Any

import pytest

from fulltune.base.errors import RecipeError
from fulltune.base.records import Machine
from fulltune.planning.engine import choose_engine
from fulltune.recipe.load import load_recipe
from tests.unit.planning.test_make import CPU, GPUS, model, plan

MODEL = model()


def chosen(processes: int, *, machine: Machine = CPU, **sections: Any) -> str:
    values = {"model": {"path": "/m"}, "data": {"train": "/d.jsonl"}, **sections}
    made = plan(machine=machine, **{name: part for name, part in sections.items() if name != "engine"})
    return choose_engine(load_recipe(values, {}), processes, made, MODEL, machine).name


def small(machine: Machine, count: int, *, bytes_per_device: int) -> Machine:
    return replace(machine, bytes_per_device=bytes_per_device, devices=count)


STATE = 16 * MODEL.parameters
"""Float32 weights, gradients and two moments."""


def test_one_process_is_single_and_several_share_what_they_must() -> None:
    assert chosen(1) == "single"
    ample = small(GPUS, 8, bytes_per_device=2 * STATE)
    assert chosen(8, machine=ample) == "ddp"
    tight = small(GPUS, 8, bytes_per_device=int(1.5 * STATE))
    assert chosen(8, machine=tight) == "fsdp2"


def test_processes_of_a_cpu_share_its_memory() -> None:
    machine = small(CPU, 1, bytes_per_device=4 * STATE)
    assert chosen(2, machine=machine) == "ddp"
    assert chosen(4, machine=machine) == "fsdp2"


@pytest.mark.parametrize(("name", "processes"), [("ddp", 2), ("fsdp2", 2), ("fsdp2", 1), ("single", 1)])
def test_what_the_recipe_says_is_done(name: str, processes: int) -> None:
    assert chosen(processes, engine={"name": name}) == name


@pytest.mark.parametrize(
    ("processes", "sections", "said"),
    [
        (2, {"engine": {"name": "single"}}, "2 processes were started"),
        (2, {"train": {"precision": "bf16-sr"}}, "bf16-sr"),
        (4, {"engine": {"name": "fsdp2", "replicas": 3}}, "cannot form 3 groups"),
    ],
)
def test_what_does_not_go_together_is_refused(processes: int, sections: dict[str, Any], said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        chosen(processes, **sections)


def test_a_setting_of_one_engine_is_no_setting_of_another() -> None:
    for given in ({"reshard": False}, {"replicas": 2}, {"offload": True}):
        with pytest.raises(RecipeError, match="only the engine fsdp2"):
            chosen(2, engine={"name": "ddp", **given})
        assert chosen(2, engine={"name": "fsdp2", **given}) == "fsdp2"
    with pytest.raises(RecipeError, match=r"`engine.processes` is 2, and `engine.name` is single"):
        chosen(1, engine={"name": "single", "processes": 2})
    assert chosen(2, engine={"name": "ddp", "replicas": 1}) == "ddp", "a default changes nothing"
