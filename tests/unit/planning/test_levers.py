"""What is chosen of checkpointing and micro-batches where both are left to the plan, by which budget, what is said."""

from dataclasses import replace
from typing import Any

import pytest

from fulltune.base.errors import MachineError, RecipeError
from fulltune.planning.engine import Case, choose_engine
from fulltune.planning.fit import require_fit
from fulltune.planning.levers import FILLING, fitted, told
from fulltune.planning.make import keep_choices
from fulltune.recipe.changes import Change
from fulltune.recipe.load import load_recipe
from tests.unit.planning.test_engine import GIB, case, of
from tests.unit.planning.test_fit import WIDE, loaded
from tests.unit.planning.test_make import CPU, GPUS, MINIMAL, plan


def high(given: Case) -> int:
    return choose_engine(given).forecast.high


def within(given: Case, room: int) -> Case:
    """On a machine that has so much."""
    return replace(given, machine=replace(given.machine, bytes_per_device=room))


def way(given: Case) -> tuple[str, int]:
    made = fitted(given)
    return made.checkpointing, made.load.rows


def sized(given: Case, how: str, rows: int) -> int:
    smaller = next(one for one in (given, *given.cuts()) if one.load.rows == rows)
    return high(smaller.changed("memory", checkpointing=how))


FIXED = {"train": {"micro_examples": 16}}


def test_with_micro_batches_of_the_recipe_the_first_way_that_fits_is_taken() -> None:
    given = loaded(case(1, of=WIDE, **FIXED), 16)
    for how in ("none", "selective", "full"):
        need = sized(given, how, 16)
        assert way(within(given, need)) == (how, 16)
        less = {"none": "selective", "selective": "full", "full": "full"}[how]
        assert way(within(given, need - 1)) == (less, 16)


def test_micro_batches_that_fill_the_device_come_before_blocks_that_are_made_again() -> None:
    given = loaded(case(1, of=WIDE), 16, width=128)
    filling = FILLING["cpu"] // given.load.width
    assert 1 < filling < 16
    seen = [("none", 16), ("none", filling), ("selective", filling), ("full", filling), ("full", 1)]
    for how, rows in seen:
        assert way(within(given, sized(given, how, rows))) == (how, rows)
    assert way(within(given, GIB)) == ("full", 1), "the least, where nothing fits"
    wide = replace(given, load=replace(given.load, rows=1, width=256 * 16, longest=256 * 16))
    assert fitted(within(wide, high(wide) - 1)).checkpointing == "selective", "nothing to cut"


@pytest.mark.parametrize("how", ["none", "selective", "full"])
def test_what_the_recipe_says_is_done(how: str) -> None:
    given = loaded(case(1, of=WIDE, memory={"checkpointing": how}), 16)
    assert way(within(given, GIB)) == (how, 1)
    assert list(told(given, fitted(within(given, GIB)))) == []
    assert plan(memory={"checkpointing": how}).checkpointing == how
    assert plan().checkpointing == "none", "until it is decided"


def test_what_was_decided_is_said_with_figures() -> None:
    given = loaded(case(1, of=WIDE, **FIXED), 16)
    tight = within(given, high(given) - 1)
    (note,) = told(tight, fitted(tight))
    assert note.startswith("checkpointing: selective, since without it the run may take 23.7 to 36.8 GiB of 36.8 GiB")
    plenty = within(given, 2 * high(given))
    assert list(told(plenty, fitted(plenty))) == []


def test_a_model_that_cannot_make_blocks_again_is_not_asked_to() -> None:
    given = loaded(case(1, of=replace(WIDE, checkpoints=False), **FIXED), 16)
    tight = within(given, GIB)
    assert way(tight) == ("none", 16)
    (note,) = told(tight, fitted(tight))
    assert note.endswith("for each process: Llama does not support it")
    with pytest.raises(MachineError) as caught:
        require_fit(tight, choose_engine(tight), GIB)
    assert "checkpointing" not in caught.value.faults[0].mend


def test_a_way_that_keeps_no_less_is_no_choice() -> None:
    """Of one block nothing is left to be made again, and its input would be kept besides."""
    one = replace(WIDE, layers=1, shape=replace(WIDE.shape, inner=40_000))
    given = loaded(case(1, of=one), 16)
    assert way(within(given, GIB)) == ("none", 1)


def test_an_engine_is_chosen_by_what_the_plan_may_make_of_it() -> None:
    """Where parts of the state and blocks that are made again fit together, nothing is offloaded."""
    given = loaded(case(8, machine=GPUS, of=WIDE, **FIXED), 16)
    least = replace(given.least(), machine=GPUS).by("fsdp2").high
    assert given.by("fsdp2").high > least
    found = choose_engine(within(given, least))
    assert (found.name, found.forecast.offload) == ("fsdp2", False)
    assert "GiB with blocks made again" in found.why
    made = fitted(within(given, least))
    assert made.checkpointing == "full"
    assert choose_engine(made).forecast.high <= least


def test_a_budget_takes_the_place_of_what_there_is() -> None:
    given = loaded(case(1, of=WIDE, **FIXED), 16)
    budget = (sized(given, "selective", 16) + 1) / GIB
    plenty = within(given, 100 * GIB)
    assert way(plenty) == ("none", 16)
    assert way(plenty.changed("memory", budget_gb=budget)) == ("selective", 16)
    assert way(plenty.changed("memory", budget_gb=1000.0)) == ("none", 16), "at most, and there is no more"
    assert case(2, memory={"budget_gb": 10}, machine=of(CPU, 100)).room == 5 * GIB, "of a host for all its processes"
    assert case(2, memory={"budget_gb": 10}, machine=of(GPUS, 100)).room == 10 * GIB, "of each GPU"
    assert choose_engine(case(8, machine=of(GPUS, 100), memory={"budget_gb": 14})).name == "fsdp2"


@pytest.mark.parametrize("machine", [of(CPU, 100), of(GPUS, 100)])
def test_what_does_not_fit_a_budget_is_refused_in_its_name(machine: Any) -> None:
    given = loaded(case(1, machine=machine, of=WIDE, memory={"budget_gb": 1.5}), 16)
    with pytest.raises(MachineError, match="there are 1.50 GiB") as caught:
        require_fit(given, choose_engine(given), 100 * GIB)
    assert (caught.value.exit_code, caught.value.faults[0].where) == (4, "memory.budget_gb")
    tight = given.changed("memory", budget_gb=(high(given) - 1) / GIB)
    warned = require_fit(tight, choose_engine(tight), 100 * GIB)
    assert warned is not None
    assert warned.startswith("memory may run out")


@pytest.mark.parametrize("value", [0, -1, "much", "nan", "inf", True])
def test_a_budget_is_a_positive_number(value: Any) -> None:
    with pytest.raises(RecipeError) as caught:
        load_recipe({**MINIMAL, "memory": {"budget_gb": value}})
    assert caught.value.faults[0].where.startswith("memory.budget_gb") or "budget_gb" in str(caught.value)


def test_a_run_that_goes_on_keeps_what_was_decided_unless_asked_otherwise() -> None:
    before = replace(plan(), checkpointing="selective")
    assert keep_choices(plan(), before, [Change("train.steps", 1, 2)]).checkpointing == "selective"
    asked = plan(memory={"checkpointing": "full"})
    assert keep_choices(asked, before, [Change("memory.checkpointing", "auto", "full")]).checkpointing == "full"
