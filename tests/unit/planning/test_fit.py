"""What cannot fit is refused, with what helps; what may not is warned of; what fits is left alone."""

import re
from dataclasses import replace
from typing import Any

import pytest

from fulltune.base.errors import MachineError
from fulltune.planning import fit
from fulltune.planning.engine import Case, Crowd, choose_engine
from fulltune.planning.fit import require_fit
from fulltune.planning.way import Pass
from tests.unit.planning.test_engine import GIB, LARGE, LOAD, case, of
from tests.unit.planning.test_make import CPU, GPUS

WIDE = replace(LARGE, hidden=4096, layers=16, shape=replace(LARGE.shape, inner=16 * 40_000, inner_block=40_000))
"""The same with activations that count: of 1,024 tokens about 4 GiB in float32."""


def loaded(given: Case, rows: int, width: int = 256) -> Case:
    load = Pass(rows=rows, width=width, taught=rows * width, several=False, longest=256)
    return replace(given, load=load)


def judged(given: Case, available: float) -> str | None:
    return require_fit(given, choose_engine(given), int(available * GIB))


def refusal(given: Case, available: float) -> MachineError:
    with pytest.raises(MachineError) as caught:
        judged(given, available)
    assert caught.value.exit_code == 4
    return caught.value


def test_what_fits_with_room_to_spare_passes_in_silence() -> None:
    assert judged(case(1), 19) is None
    assert judged(case(8, machine=of(GPUS, 30)), 1) is None, "what a GPU holds the host need not"


def test_only_the_low_end_refuses_and_the_high_end_warns() -> None:
    """Between the two ends it may fit, and so it is tried."""
    given = loaded(case(1, of=WIDE), 4)
    found = choose_engine(given).forecast
    assert judged(given, found.high / GIB) is None
    for available in (found.high - GIB // 8, found.low):
        warned = judged(given, available / GIB)
        assert warned is not None
        assert warned.startswith("memory may run out: the run takes")
    refusal(given, (found.low - 1) / GIB)


def test_a_refusal_says_what_is_missing_where_and_what_helps_with_figures() -> None:
    fault = refusal(loaded(case(1, of=WIDE), 16), 23).faults[0]
    start = (
        r"the run does not fit: it takes 23\.7 to 36\.8 GiB \(weights 4\.00, gradients 0\.00 to 4\.00, moments 8\.00"
    )
    assert re.match(start, fault.what)
    assert fault.what.endswith("and there are 23.0 GiB")
    assert fault.where == "this machine's memory"
    assert re.search(r"train\.micro_examples=1 \(16\.7 to 20\.8 GiB\)", fault.mend)
    assert re.search(r"memory\.checkpointing=full \(16\.0 to 20\.9 GiB\)", fault.mend)


def test_the_largest_micro_batch_that_fits_is_named() -> None:
    fault = refusal(loaded(case(1, of=WIDE), 64), 40).faults[0]
    (rows,) = re.findall(r"train\.micro_examples=(\d+)", fault.mend)
    smaller, larger = (loaded(case(1, of=WIDE, train={"micro_examples": 1}), int(rows) * n) for n in (1, 2))
    several = [replace(one, load=replace(one.load, several=True)) for one in (smaller, larger)]
    assert choose_engine(several[0]).forecast.high <= 40 * GIB < choose_engine(several[1]).forecast.high


def test_packed_rows_are_made_shorter_but_not_than_the_longest_example() -> None:
    given = loaded(case(1, of=WIDE, train={"layout": "packed"}), 1, width=256 * 64)
    (tokens,) = re.findall(r"train\.micro_tokens=(\d+)", refusal(given, 40).faults[0].mend)
    assert 256 <= int(tokens) < 256 * 64
    assert "micro_tokens=256" in refusal(given, 19).faults[0].mend


def test_what_helps_only_together_is_named_together() -> None:
    fault = refusal(loaded(case(1, of=WIDE), 64), 16).faults[0]
    assert "train.micro_examples=1 memory.checkpointing=full train.precision=bf16-sr" in fault.mend


def test_where_nothing_helps_the_least_is_said() -> None:
    fault = refusal(loaded(case(1, of=WIDE), 16), 4).faults[0]
    assert fault.mend.startswith("a smaller model or more memory: with train.micro_examples=1 ")
    assert re.search(r"it takes \d.*GiB still$", fault.mend)


def test_a_setting_that_was_made_already_is_no_mend() -> None:
    made = {"memory": {"checkpointing": "full"}, "train": {"precision": "bf16-sr"}, "optim": {"moments": "int8"}}
    assert refusal(case(1, of=WIDE, **made), 4).faults[0].mend == "a smaller model, or more memory"
    mend = refusal(loaded(case(1, of=WIDE, **made), 16), 4).faults[0].mend
    assert not re.search("checkpointing|precision|moments", mend)


def test_moments_are_made_smaller_step_by_step() -> None:
    small: dict[str, Any] = {"memory": {"checkpointing": "full"}, "train": {"precision": "bf16-sr"}}

    def advice(**optim: Any) -> str:
        return refusal(case(1, of=WIDE, **small, optim=optim), 3).faults[0].mend

    assert "with optim.moments=bfloat16 optim.moments=int8 it takes" in advice()
    assert "with optim.moments=int8 it takes" in advice(moments="bfloat16")
    assert "int8" not in advice(moments="bfloat16", name="adafactor")


def test_an_optimizer_that_cannot_round_is_not_told_to() -> None:
    mend = refusal(loaded(case(1, of=WIDE, optim={"name": "mine:Own"}), 64), 4).faults[0].mend
    assert "bf16-sr" not in mend


def test_of_several_processes_the_host_must_hold_all_that_are_on_it() -> None:
    engine: dict[str, Any] = {"engine": {"name": "ddp"}}
    assert judged(case(2, **engine), 46) is None
    fault = refusal(case(4, **engine), 40).faults[0]
    assert "64.0 to 90.4 GiB, 4 processes of 16.0 to 22.6" in fault.what
    assert judged(case(Crowd(size=4, here=2), **engine), 46) is None, "two of them are elsewhere"


def test_ddp_is_told_of_fsdp2_and_fsdp2_of_offload() -> None:
    small = replace(LARGE, shape=replace(LARGE.shape, block=GIB // 64, outside=GIB // 64, tensor=GIB // 64))
    given = case(8, machine=of(GPUS, 10), of=small, engine={"name": "ddp"})
    assert "engine.name=fsdp2 (" in refusal(given, 100).faults[0].mend
    given = case(2, machine=of(GPUS, 5), of=small, engine={"name": "fsdp2"})
    assert "engine.name=fsdp2 engine.offload=true (" in refusal(given, 100).faults[0].mend


def test_where_nothing_helps_on_one_gpu_the_number_that_would_is_named() -> None:
    given = loaded(case(1, machine=of(GPUS, 8.9), of=WIDE), 8)
    mend = refusal(given, 100).faults[0].mend
    assert re.match(
        r"engine\.name=fsdp2 train\.micro_examples=1 on 16 such GPUs \(\d\.\d\d to \d\.\d\d GiB on each\), or ", mend
    )
    assert "such GPUs" not in refusal(loaded(case(1, of=WIDE), 16), 4).faults[0].mend, "a host is not bought in pieces"


def test_offloaded_state_must_fit_the_host() -> None:
    given = case(8, machine=of(GPUS, 40), engine={"name": "fsdp2", "offload": True})
    assert judged(given, 100) is None
    fault = refusal(given, 10).faults[0]
    assert fault.where == "this machine's memory"
    assert "weights 0.50, gradients 0.50, moments 1.00" in fault.what


def test_moments_on_the_host_are_offered_where_they_would_help() -> None:
    def offered(given: Case, available: float = 100) -> list[str]:
        helps = [told for told, _ in fit._helping(given, int(available * GIB))]
        return [told for told in helps if told.startswith("memory.offload")]

    one = case(1, machine=of(GPUS, 16))
    assert offered(one)[0].startswith("memory.offload=moments (")
    assert offered(case(1, machine=of(GPUS, 16), memory={"offload": "activations"}))[0].startswith(
        "memory.offload=both ("
    )
    assert not offered(one, 4), "the host has no room for them"
    assert not offered(case(1, machine=of(GPUS, 16), memory={"offload": "moments"}))
    assert not offered(case(1, machine=of(GPUS, 16), optim={"name": "mine:Own"}))
    assert not offered(case(1, machine=of(CPU, 16)))


def test_on_a_gpu_only_what_does_not_fit_with_one_example_is_refused() -> None:
    """Micro-batches are halved there when memory runs out; a CPU has the process killed instead."""
    given = loaded(case(1, machine=of(GPUS, 26), of=WIDE), 64)
    low = choose_engine(given).forecast.low
    assert low > 26 * GIB
    warned = judged(given, 100)
    assert warned is not None
    assert "It helps: train.micro_examples=" in warned
    refusal(loaded(case(1, of=WIDE), 64), 26)


def test_one_token_is_the_least_that_is_asked() -> None:
    given = replace(case(1, machine=CPU), load=replace(LOAD, rows=1, width=1, taught=1, longest=1))
    assert "micro" not in refusal(given, 4).faults[0].mend
