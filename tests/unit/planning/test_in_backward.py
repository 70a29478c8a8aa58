"""The optimizer in the backward pass: what a plan makes of it, and what does not go with it."""

from dataclasses import replace
from typing import Any

import pytest

from fulltune.base.errors import RecipeError
from fulltune.planning.engine import Case, Crowd, choose_engine
from fulltune.planning.fit import _steps
from fulltune.planning.levers import fitted
from fulltune.planning.make import keep_choices, require_names
from fulltune.planning.memory import forecast
from fulltune.planning.precision import precision_plan
from fulltune.planning.way import Pass, Way
from fulltune.recipe.changes import Change, require_accepted
from fulltune.recipe.load import load_recipe
from fulltune.recipe.schema import OptimSection, Recipe
from tests.unit.planning.test_make import CPU, MINIMAL, facts, model, plan

TWO = {"in_backward": "two_passes"}
ONE = {"in_backward": "one_pass", "clip": None}


def recipe(**sections: Any) -> Recipe:
    return load_recipe({**MINIMAL, "optim": TWO, **sections})


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "clip": ({"optim": {**ONE, "clip": 1.0}, "train": {"on_nonfinite": "stop"}}, "clipped by the norm of all"),
    "skip": ({"optim": ONE}, "it cannot be left out"),
    "fp16": ({"train": {"precision": "fp16-mixed"}}, "overflows its loss scale"),
    "compile": ({"train": {"compile": True}}, "compiled blocks"),
    "mixout": ({"optim": {**TWO, "pulls": {"use": "mixout", "options": {"probability": 0.1}}}}, "puts weights back"),
    "own": ({"optim": {**TWO, "name": "torch.optim:AdamW"}}, "not known to be right"),
    "ddp": ({"engine": {"name": "ddp"}}, "exchange whole gradients"),
    "processes": ({"engine": {"processes": 2}}, "exchange whole gradients"),
    "batch_tokens": ({"train": {"batch_tokens": 512}}, "how many padded rows"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_needs_whole_gradients_is_refused_before_any_row_is_read(case: str) -> None:
    sections, why = REFUSED[case]
    with pytest.raises(RecipeError, match=why) as caught:
        require_names(recipe(**sections))
    assert [fault.where for fault in caught.value.faults] == ["optim.in_backward"] and caught.value.faults[0].mend


def test_what_goes_with_it_is_not_refused() -> None:
    pulls = [{"use": "l2_sp", "options": {"alpha": 1}}, {"use": "ema"}]
    for optim in (TWO, {**TWO, "pulls": pulls, "name": "muon"}):
        require_names(recipe(optim=optim))
    for policy in ("stop", "rollback"):
        require_names(recipe(optim=ONE, train={"on_nonfinite": policy}))


def test_a_micro_batch_holds_a_whole_update_where_its_size_is_left_open() -> None:
    """Of 100 tokens at most, 112 with padding; the plan says that gradients take nothing."""
    made = plan(optim=TWO, train={"batch_examples": 32})
    assert (made.micro_examples, made.micro_tokens) == (32, 32 * 112)
    assert made.dtypes.bytes["gradients"] == 0
    assert made.dtypes.rows()["gradients"] == "float32, of one weight at a time"
    assert plan(optim=TWO, train={"batch_examples": 2}).micro_tokens == plan().micro_tokens == 1024
    packed = plan(optim=TWO, train={"batch_tokens": 4096, "layout": "packed"})
    assert packed.micro_tokens == 4096
    assert plan(facts(longest=5000), context=8192, optim=TWO, train={"batch_tokens": 4096, "layout": "packed"},
                data={"max_length": 8000}).micro_tokens == 5000  # fmt: skip


@pytest.mark.parametrize("asked", [{"micro_examples": 31}, {"micro_tokens": 32 * 112 - 1}])
def test_micro_batches_that_may_be_several_are_refused(asked: dict[str, int]) -> None:
    with pytest.raises(RecipeError, match="must be one micro-batch"):
        plan(optim=TWO, train={"batch_examples": 32, **asked})


def test_several_processes_are_refused_also_where_the_engine_is_left_open() -> None:
    with pytest.raises(RecipeError, match="exchange whole gradients"):
        choose_engine(case(crowd=Crowd(2, 2)))


def case(**changes: Any) -> Case:
    asked = recipe()
    dtypes = precision_plan("float32", asked.optim, several=False)
    load = Pass(rows=8, width=112, taught=300, several=False)
    made = Case(recipe=asked, dtypes=dtypes, layout="padded", model=model(), machine=CPU, crowd=Crowd(), load=load)
    return replace(made, **changes)


def test_no_smaller_micro_batches_and_no_shards_are_offered() -> None:
    tight = case(machine=replace(CPU, bytes_per_device=1))
    assert fitted(tight).load == tight.load and not tight.cuts() and not tight.divisible
    assert {told.split("=")[0] for told, _ in _steps(tight, 1)} <= {
        "memory.checkpointing", "train.precision", "optim.moments"}  # fmt: skip


def test_gradients_are_left_out_of_the_forecast_but_for_the_largest() -> None:
    load = Pass(rows=1, width=1, taught=1, several=False)
    found = []
    for section in (OptimSection(), OptimSection(in_backward="two_passes")):
        dtypes = precision_plan("float32", section, several=False)
        way = Way(engine="single", processes=1, dtypes=dtypes, kind="cpu")
        found.append({part.name: part.high for part in forecast(way, model(), load).parts})
    assert (found[0]["gradients"], found[1]["gradients"]) == (4000, 0)
    assert found[1]["overhead"] - found[0]["overhead"] == pytest.approx(3 * 4 * 100 - (0.05 + 0.35) * 4000, abs=1)


def test_a_run_may_go_on_with_it_in_micro_batches_that_hold_an_update() -> None:
    change = Change("optim.in_backward", "off", "two_passes")
    require_accepted([change], (), folder="run")
    before, made = plan(train={"batch_examples": 32}), plan(optim=TWO, train={"batch_examples": 32})
    kept = keep_choices(made, before, [change])
    assert (kept.micro_tokens, kept.dtypes.bytes["gradients"]) == (32 * 112, 0)
