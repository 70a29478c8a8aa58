"""Every precision keeps the promises: a checkpoint loses nothing, and how an update is cut decides nothing."""

from pathlib import Path
from typing import Any

import pytest
import torch

from fulltune.training.step import reseed
from tests import tiny
from tests.contract.ground import Ground

MODES = [
    {"precision": "bf16-mixed"},
    {"precision": "fp16-mixed"},
    {"precision": "bf16-sr"},
    {"precision": "bf16-sr", "moments": "bfloat16"},
    {"precision": "bf16-sr", "moments": "int8"},
]


def names(mode: dict[str, Any]) -> str:
    return "-".join(mode.values())


def ground(folder: Path, mode: dict[str, Any], **more: Any) -> Ground:
    """Dropout on, so that draws of dropout and of rounding stand beside each other."""
    model = tiny.model("gpt2", attn_pdrop=0.1, embd_pdrop=0.1, resid_pdrop=0.1)
    return Ground(folder, model, **{"count": 4, "micro": 2, "clip": 1.0, **mode, **more})


def learn(ground: Ground, updates: range) -> list[float]:
    """Losses; overflows are tried again, as training does."""
    losses = []
    for update in updates:
        again = True
        while again:
            reseed(0, 4 * update, 0)
            loss = ground.backward()
            again = ground.engine.update([1e-3, 1e-3]).again
        losses.append(loss)
    return losses


def state(ground: Ground) -> dict[str, torch.Tensor]:
    optimizer, found = ground.engine._optimizer, dict(ground.model.state_dict())
    for parameter, name in ground.engine._names.items():
        found |= {f"{name}/{key}": value for key, value in optimizer.state[parameter].items()}
    return found


@pytest.mark.parametrize("mode", MODES, ids=names)
def test_an_engine_that_goes_on_from_a_checkpoint_ends_with_the_same_bits(tmp_path: Path, mode: dict[str, Any]) -> None:
    whole, first, second = (ground(tmp_path / name, mode) for name in ("whole", "first", "second"))
    if first.engine._scale is not None:  # too high for the first update, and about to grow where the checkpoint is
        for each in (whole, first):
            each.engine._scale.restore({"scale": 2.0**22, "calm": 0})
            learn(each, range(9, 10))
            each.engine._scale.restore({**each.engine._scale.numbers(), "calm": 1997})
    losses = learn(whole, range(4))
    before = learn(first, range(2))
    (tmp_path / "c").mkdir()
    first.engine.capture({}).write(tmp_path / "c")
    second.engine.load(tmp_path / "c")
    assert before + learn(second, range(2, 4)) == losses
    wanted, found = state(whole), state(second)
    assert wanted.keys() == found.keys()
    for name, value in wanted.items():
        assert value.dtype == found[name].dtype, name
        assert torch.equal(value, found[name]), name
    if whole.engine._scale is not None:
        assert second.engine._scale.numbers() == whole.engine._scale.numbers()
        assert second.engine._scale.numbers()["calm"] < 3, "it grew behind the checkpoint"


@pytest.mark.parametrize("mode", MODES[2:], ids=names)
def test_rounding_does_not_hang_on_how_an_update_is_cut(tmp_path: Path, mode: dict[str, Any]) -> None:
    """SGD with one rate: where gradients agree to the bit the weights do; elsewhere they are a rounding apart."""
    found = []
    for micro in (1, 2, 4):
        model = tiny.model("llama")
        each = Ground(tmp_path / str(micro), model, count=4, micro=micro, optimizer="sgd", **mode)
        learn(each, range(1))
        found.append(torch.cat([p.detach().float().flatten() for p in model.parameters()]))
    for other in found[1:]:
        assert float((found[0] == other).double().mean()) > 0.99


@pytest.mark.parametrize("mode", MODES, ids=names)
def test_the_curve_is_that_of_float32_within_what_16_bits_allow(tmp_path: Path, mode: dict[str, Any]) -> None:
    wanted = learn(Ground(tmp_path / "a", tiny.model("llama"), count=8), range(6))
    found = learn(Ground(tmp_path / "b", tiny.model("llama"), count=8, **mode), range(6))
    assert found == pytest.approx(wanted, rel=0.01)
    assert wanted[-1] < wanted[0] - 0.05
