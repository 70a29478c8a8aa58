"""Every engine, over real processes, makes the updates that one process makes.

Must show: losses of 20 updates within 1e-5, the same gradient norms, the same weights within 1e-4; uneven examples,
ranks without work, tied and untied weights, ragged ends.
"""

import json
from pathlib import Path

import pytest
from safetensors.torch import load_file

from tests.distributed.ranks import NEEDS_DEEPSPEED, UPDATES, Case, together

FAST = {2: [Case("ddp"), Case("fsdp2", "llama-tied", 3)]}
SLOW = {
    2: [
        Case("ddp", "llama-tied", 1),
        Case("ddp", "gpt2", 3),
        Case("fsdp2"),
        Case("fsdp2", "gpt2", 3),
        Case("fsdp2", "qwen3", 1),
        Case("fsdp2", "gemma2"),
        Case("fsdp2keep"),
        Case("fsdp2keep", "llama-tied", 3),
        Case("fsdp2offload"),  # on a CPU it shows that it runs: the host is where the shards are anyhow
    ],
    3: [Case("ddp"), Case("ddp", "llama-tied", 7), Case("fsdp2"), Case("fsdp2", "llama-tied", 3), Case("fsdp2keep")],
    4: [Case("hsdp"), Case("hsdp", "llama-tied", 1), Case("fsdp2", "llama", 4), Case("ddp", "llama", 1)],
}


ZERO = {
    2: [
        Case("zero1"),
        Case("zero1", "gpt2", 1),
        Case("zero1offload", "llama-tied", 3),
        Case("zero2", "llama-tied", 3),
        Case("zero2", "gemma2"),
        Case("zero2offload", "gpt2", 1),
        Case("zero3", "gpt2", 3),
        Case("zero3", "qwen3", 1),
        Case("zero3", "gemma2"),
        Case("zero3offload"),
        Case("zero3offload", "llama-tied", 7),
    ],
    3: [
        Case("zero1", "llama-tied", 7),
        Case("zero2"),
        Case("zero3"),
        Case("zero3", "llama-tied", 3),
        Case("zero3offload"),
    ],
}
HALF = [Case(layout, "llama", 2, "bf16-mixed") for layout in ("zero1", "zero2", "zero3", "zero3offload", "fsdp2")]


def compare(folder: Path, size: int, cases: list[Case], *, near: float = 1e-5, weight: float = 1e-4) -> None:
    together(size, "tests.distributed.ranks", str(folder), *map(str, cases))
    references = dict.fromkeys(Case("single", case.kind, case.micro, case.precision) for case in cases)
    together(1, "tests.distributed.ranks", str(folder), *map(str, references))
    for case in cases:
        here = folder / str(size) / str(case)
        reference = folder / "1" / str(Case("single", case.kind, case.micro, case.precision))
        found, wanted = (json.loads((place / "curve.json").read_text()) for place in (here, reference))
        assert len(found) == len(wanted) == UPDATES
        for (loss, norm), (true_loss, true_norm) in zip(found, wanted, strict=True):
            assert abs(loss - true_loss) <= near, case
            assert abs(norm - true_norm) <= near, case
        weights, true = (load_file(place / "weights.safetensors") for place in (here, reference))
        assert weights.keys() == true.keys()
        assert max(float((weights[name] - true[name]).abs().max()) for name in true) <= weight, case
        assert wanted[-1][0] < wanted[0][0] - 0.1, "it learned, so curves could have parted"


def test_two_processes_make_the_updates_of_one(tmp_path: Path) -> None:
    compare(tmp_path, 2, FAST[2])


@pytest.mark.slow
@pytest.mark.parametrize("size", SLOW)
def test_every_engine_makes_the_updates_of_one_process(tmp_path: Path, size: int) -> None:
    compare(tmp_path, size, SLOW[size])


@NEEDS_DEEPSPEED
@pytest.mark.slow
@pytest.mark.parametrize("size", ZERO)
def test_every_stage_of_zero_makes_the_updates_of_one_process(tmp_path: Path, size: int) -> None:
    """Within 1e-4 is asked; within 1e-5 it is."""
    compare(tmp_path, size, ZERO[size])


@NEEDS_DEEPSPEED
@pytest.mark.slow
def test_in_bfloat16_zero_is_as_near_as_fsdp2(tmp_path: Path) -> None:
    """Weights are rounded to bfloat16 before they compute, which one process by itself does not do."""
    compare(tmp_path, 2, HALF, near=1e-2, weight=1e-2)
