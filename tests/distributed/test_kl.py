"""The penalty on the divergence from the base, and its score, are those of one process on every engine."""

import json
from pathlib import Path

import pytest
from safetensors.torch import load_file

from tests.distributed.ranks import NEEDS_DEEPSPEED, together


def compare(folder: Path, layouts: list[str], near: float = 1e-4) -> None:
    together(2, "tests.distributed.held", str(folder), *layouts)
    together(1, "tests.distributed.held", str(folder), "single")
    one = folder / "1/single"
    wanted, scores, counts = json.loads((one / "curve.json").read_text())
    assert wanted[-2][0] < wanted[0][0] - 0.01, "it learned, so curves could have parted"
    assert scores["x.kl"] > 1e-5, "and went from the base"
    true = load_file(one / "last.safetensors")
    for layout in layouts:
        here = folder / "2" / layout
        found, told, counted = json.loads((here / "curve.json").read_text())
        for pair, wished in zip(found, wanted, strict=True):
            assert pair == pytest.approx(wished, rel=near, abs=near), layout
        weights = load_file(here / "last.safetensors")
        assert max(float((weights[key] - true[key]).abs().max()) for key in true) <= near, layout
        assert counted == counts
        assert told == pytest.approx(scores, rel=1e-3), layout


@pytest.mark.slow
def test_on_ddp_and_on_shards(tmp_path: Path) -> None:
    compare(tmp_path, ["ddp", "fsdp2", "fsdp2keep"])


@NEEDS_DEEPSPEED
@pytest.mark.slow
def test_on_zero(tmp_path: Path) -> None:
    compare(tmp_path, ["zero1", "zero2", "zero3"])
