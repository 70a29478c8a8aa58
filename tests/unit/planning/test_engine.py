"""Which engine a run gets, and what is refused."""

from dataclasses import replace
from typing import Any

import pytest

from fulltune.base.errors import RecipeError
from fulltune.base.records import Machine, ModelFacts
from fulltune.planning.engine import Case, Chosen, Crowd, choose_engine
from fulltune.planning.way import Pass
from fulltune.recipe.load import load_recipe
from tests.unit.planning.test_make import CPU, GPUS, model, plan

GIB = 2**30
LOAD = Pass(rows=2, width=16, taught=20, several=False, longest=16)
LARGE = replace(
    model(), parameters=GIB, shape=replace(model().shape, block=GIB // 8, outside=GIB // 8, tensor=GIB // 16)
)
"""Of 16 GiB of float32 weights, gradients and moments."""


def case(crowd: Crowd | int, *, machine: Machine = CPU, of: ModelFacts = LARGE, **sections: Any) -> Case:
    values = {"model": {"path": "/m"}, "data": {"train": "/d.jsonl"}, **sections}
    made = plan(machine=machine, **{name: part for name, part in sections.items() if name not in ("engine", "memory")})
    return Case(
        recipe=load_recipe(values, {}),
        dtypes=made.dtypes,
        layout=made.layout,
        model=of,
        machine=machine,
        crowd=Crowd(crowd, crowd) if isinstance(crowd, int) else crowd,
        load=LOAD,
    )


def chosen(crowd: Crowd | int, **given: Any) -> Chosen:
    return choose_engine(case(crowd, **given))


def of(machine: Machine, gibs: float) -> Machine:
    return replace(machine, bytes_per_device=int(gibs * GIB))


def test_one_process_is_single_and_several_share_what_they_must() -> None:
    assert chosen(1).name == "single"
    for gibs, name, offload in ((30, "ddp", False), (14, "fsdp2", False), (7, "fsdp2", True)):
        found = chosen(8, machine=of(GPUS, gibs))
        assert (found.name, found.forecast.offload) == (name, offload), gibs
    none = chosen(8, machine=of(GPUS, 0.1))
    assert (none.name, none.forecast.offload) == ("fsdp2", True), "the one that holds least"
    assert none.why.startswith("though 0.10 GiB for each process may not do: ddp would take 18.")


def test_the_reason_has_the_figures_of_what_did_not_fit() -> None:
    found = chosen(8, machine=of(GPUS, 14))
    assert str(found).startswith("fsdp2, since it fits into 14.0 GiB for each process: 2.")
    assert "; ddp would take 18." in str(found)
    assert str(chosen(8, machine=of(GPUS, 7))).startswith("fsdp2 with offload, since")


def test_smaller_micro_batches_come_before_offload_where_the_plan_may_choose_them() -> None:
    wide = replace(LARGE, hidden=4096, shape=replace(LARGE.shape, inner=80_000, inner_block=40_000))
    load = Pass(rows=64, width=1024, taught=64, several=False, longest=1024)
    tight = replace(case(8, machine=of(GPUS, 12), of=wide), load=load)
    assert tight.by("fsdp2", offload=True).high > tight.room, "what fills it are activations"
    found = choose_engine(tight)
    assert (found.name, found.forecast.offload) == ("fsdp2", False)
    assert "with one example in a micro-batch" in found.why
    said = case(8, machine=of(GPUS, 12), of=wide, train={"micro_tokens": 1 << 16})
    assert "one example" not in choose_engine(replace(said, load=load)).why, "their size is the recipe's"


def test_processes_of_a_cpu_share_the_memory_of_their_own_machine() -> None:
    host = of(CPU, 60)
    assert chosen(2, machine=host).name == "ddp", "30 GiB for each"
    assert chosen(4, machine=host).name == "fsdp2", "15 GiB for each"
    assert chosen(Crowd(size=4, here=2), machine=host).name == "ddp", "30 GiB for each, on two machines"


def test_what_blocks_keep_waits_on_the_host_of_a_gpu_alone() -> None:
    asked = {"memory": {"offload": "activations"}}
    with pytest.raises(RecipeError, match="on the host already") as caught:
        chosen(1, **asked)
    assert caught.value.faults[0].where == "memory.offload"
    found, plain = chosen(1, machine=GPUS, **asked), chosen(1, machine=GPUS)
    assert [part.name for part in found.forecast.host] == ["activations", "weights in 16 bits"]
    assert plain.forecast.host == ()


def test_on_a_cpu_there_is_nowhere_to_offload_to() -> None:
    assert not chosen(4, machine=of(CPU, 1)).forecast.offload


@pytest.mark.parametrize(("name", "processes"), [("ddp", 2), ("fsdp2", 2), ("fsdp2", 1), ("single", 1)])
def test_what_the_recipe_says_is_done(name: str, processes: int) -> None:
    found = chosen(processes, engine={"name": name}, machine=of(CPU, 1))
    assert (found.name, found.why) == (name, "as the recipe says"), "whatever it takes"
    assert chosen(2, machine=GPUS, engine={"name": "fsdp2", "offload": True}).forecast.offload


@pytest.mark.parametrize(
    ("processes", "sections", "said"),
    [
        (2, {"engine": {"name": "single"}}, "2 processes were started"),
        (2, {"train": {"precision": "bf16-sr"}}, "bf16-sr"),
        (4, {"engine": {"name": "fsdp2", "replicas": 3}}, "cannot form 3 groups"),
        (2, {"engine": {"name": "fsdp2"}, "optim": {"name": "mine:Own"}}, "may see parts is not known"),
        (2, {"engine": {"name": "fsdp2"}, "optim": {"name": "adafactor"}}, "adafactor needs whole weights"),
        (2, {"engine": {"name": "fsdp2"}, "optim": {"name": "galore"}}, "galore needs whole weights"),
        (2, {"engine": {"name": "fsdp2"}, "optim": {"name": "apollo_mini"}}, "apollo_mini needs whole weights"),
        (1, {"engine": {"name": "zero1"}, "optim": {"name": "adafactor"}}, "adafactor needs whole weights"),
        (1, {"memory": {"offload": "moments"}}, "lies on the host already"),
        (1, {"machine": GPUS, "memory": {"offload": "moments"}, "optim": {"name": "mine:Own"}}, "moved one by one"),
        (2, {"machine": GPUS, "memory": {"offload": "both"}, "engine": {"name": "fsdp2"}}, "a way of its own"),
    ],
)
def test_what_does_not_go_together_is_refused(processes: int, sections: dict[str, Any], said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        chosen(processes, **sections)


def test_an_optimizer_that_may_not_see_rows_is_never_given_them() -> None:
    assert chosen(8, machine=of(GPUS, 1), optim={"name": "mine:Own"}).name == "ddp"
    assert chosen(8, machine=of(GPUS, 1), optim={"name": "adafactor"}).name == "ddp"
    assert chosen(8, machine=of(GPUS, 1), optim={"name": "muon"}).name == "ddp"
    assert chosen(8, machine=of(GPUS, 1), optim={"name": "lion"}).name == "fsdp2"


@pytest.mark.parametrize("asked", [{"model": {"path": "/m", "liger": True}}, {"memory": {"offload": "moments"}}])
def test_what_wants_whole_weights_is_never_given_parts(asked: dict[str, Any]) -> None:
    assert chosen(8, machine=of(GPUS, 1)).name == "fsdp2"
    assert chosen(8, machine=of(GPUS, 1), **asked).name == "ddp"


def test_a_setting_of_one_engine_is_no_setting_of_another() -> None:
    for given in ({"reshard": False}, {"replicas": 2}, {"offload": True}):
        with pytest.raises(RecipeError, match="only the engine fsdp2"):
            chosen(2, engine={"name": "ddp", **given})
        assert chosen(2, engine={"name": "fsdp2", **given}).name == "fsdp2"
    with pytest.raises(RecipeError, match=r"`engine.processes` is 2, and `engine.name` is single"):
        chosen(1, engine={"name": "single", "processes": 2})
    assert chosen(2, engine={"name": "ddp", "replicas": 1}).name == "ddp", "a default changes nothing"
