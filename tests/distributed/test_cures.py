"""Pulls on shards do what they do in one process, and what they remember comes back, also in another number of them."""

import json
from pathlib import Path

import pytest
from safetensors.torch import load_file

from fulltune.engine.contract import World
from fulltune.engine.crew import Alone
from tests.distributed.cures import asked_of, held
from tests.distributed.ranks import NEEDS_DEEPSPEED, together


def compare(folder: Path, size: int, layouts: list[str], reference: str, near: float = 1e-4) -> None:
    together(size, "tests.distributed.cures", str(folder), *layouts)
    together(1, "tests.distributed.cures", str(folder), reference)
    one = folder / "1" / reference
    wanted = json.loads((one / "curve.json").read_text())
    assert wanted[-2][0] < wanted[0][0] - 0.01, "it learned, so curves could have parted"
    for layout in layouts:
        here = folder / str(size) / layout
        found = json.loads((here / "curve.json").read_text())
        for (loss, norm), (true_loss, true_norm) in zip(found, wanted, strict=True):
            assert abs(loss - true_loss) <= near * max(1.0, true_loss), layout
            assert abs(norm - true_norm) <= near * max(1.0, true_norm), layout
        for name in ("average", "middle", "last"):
            weights, true = (load_file(place / f"{name}.safetensors") for place in (here, one))
            assert max(float((weights[key] - true[key]).abs().max()) for key in true) <= near, (layout, name)
        read_by_one(here, reference, near)


def read_by_one(here: Path, reference: str, near: float) -> None:
    """What several processes saved, in one."""
    ground, pulling = held(here / "alone", reference, World(0, 1, "cpu"), Alone(), asked_of(reference))
    pulling.recall(ground.engine.load(here / "saved"))
    average = load_file(here / "average.safetensors")
    shown = pulling.instead(lambda: {name: value.clone() for name, value in ground.engine.full_weights()})
    assert max(float((shown[key] - average[key]).abs().max()) for key in average) <= near
    middle = load_file(here / "middle.safetensors")
    assert all(float((value - middle[name]).abs().max()) == 0 for name, value in ground.engine.full_weights())


@pytest.mark.slow
@pytest.mark.parametrize("size", [2])
def test_pulls_on_shards_do_what_they_do_in_one_process(tmp_path: Path, size: int) -> None:
    compare(tmp_path, size, ["ddp", "fsdp2", "fsdp2keep"], "single")
    compare(tmp_path, size, ["ddp-mixed"], "single-mixed")


@pytest.mark.slow
def test_groups_with_rates_of_their_own_on_shards(tmp_path: Path) -> None:
    compare(tmp_path, 2, ["ddp-parted", "fsdp2-parted"], "single-parted")


@NEEDS_DEEPSPEED
@pytest.mark.slow
def test_pulls_behind_the_update_on_zero(tmp_path: Path) -> None:
    compare(tmp_path, 2, ["zero1", "zero2", "zero3"], "single-behind")
    compare(tmp_path, 2, ["zero1-parted", "zero2-parted", "zero3-parted"], "single-parted")
