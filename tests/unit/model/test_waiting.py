"""What blocks keep waits on the host: gradients are the same, weights are not copied, and nothing stays behind."""

from pathlib import Path
from typing import Any

import pytest
import torch

from fulltune.model import waiting
from fulltune.model.facts import blocks, checkpoint_blocks
from tests import tiny
from tests.contract.ground import Ground

DROPS = {"attn_pdrop": 0.1, "resid_pdrop": 0.1}


@pytest.fixture
def moved(monkeypatch: pytest.MonkeyPatch) -> list[torch.Size]:
    """Shapes of what came back."""
    shapes: list[torch.Size] = []
    real = waiting._unpack

    def unpack(packed: Any) -> Any:
        if isinstance(packed, tuple):
            shapes.append(packed[1].shape)
        return real(packed)

    monkeypatch.setattr(waiting, "_unpack", unpack)
    return shapes


@pytest.mark.parametrize("precision", ["float32", "bf16-mixed"])
@pytest.mark.parametrize("checkpointing", ["none", "selective", "full"])
@pytest.mark.parametrize(("kind", "changes"), [("llama", {}), ("gpt2", DROPS)])
def test_gradients_are_the_same_to_the_bit(
    tmp_path: Path, kind: str, changes: dict[str, Any], checkpointing: str, precision: str, moved: list[torch.Size]
) -> None:
    found = []
    for waits in (False, True):
        model = tiny.model(kind, **changes)
        if checkpointing != "none":
            checkpoint_blocks(model, keep_products=checkpointing == "selective")
        if waits:
            waiting.let_wait(model)
        ground = Ground(tmp_path / str(waits), model, count=6, micro=2, precision=precision)
        torch.manual_seed(5)
        found.append((ground.backward(), {name: p.grad for name, p in model.named_parameters()}))
        assert bool(moved) == waits
    assert found[0][0] == found[1][0]
    assert all(torch.equal(grad, found[1][1][name]) for name, grad in found[0][1].items())


def passed(model: Any) -> None:
    model.train().get_decoder()(input_ids=torch.arange(8)[None], use_cache=False)[0].sum().backward()


def test_weights_stay_and_of_blocks_that_are_made_again_only_the_input_waits(moved: list[torch.Size]) -> None:
    model = tiny.model("llama")
    waiting.let_wait(model)
    passed(model)
    shapes = {tuple(weight.shape) for block in blocks(model) for weight in block.parameters() if weight.ndim == 2}
    shapes |= {(columns, rows) for rows, columns in shapes}  # products save them transposed
    assert moved
    assert not shapes & {tuple(shape) for shape in moved}
    kept = len(moved)
    moved.clear()
    checkpoint_blocks(model)
    passed(model)
    assert 0 < len(moved) < kept
    assert torch.Size((1, 8, 32)) in moved


def test_what_several_operations_save_is_copied_once_for_each_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny.model("llama")
    waiting.let_wait(model)
    made: list[int] = []
    real = torch.empty_like
    monkeypatch.setattr(torch, "empty_like", lambda *given, **named: made.append(1) or real(*given, **named))
    passed(model)
    once = len(made)
    passed(model)
    assert len(made) == 2 * once
    moved: list[int] = []
    monkeypatch.setattr(
        waiting,
        "_unpack",
        lambda packed: (moved.append(1), packed if isinstance(packed, torch.Tensor) else packed[1])[1],
    )
    passed(model)
    assert len(moved) > once


def test_a_pass_that_fails_leaves_nothing_switched_on() -> None:
    model = tiny.model("llama")
    waiting.let_wait(model)
    block = blocks(model)[0]
    with pytest.raises(TypeError):
        block()
    leaf = torch.ones(2, requires_grad=True)
    out = leaf * leaf
    assert out.grad_fn._saved_self is leaf or out.grad_fn._saved_self.data_ptr() == leaf.data_ptr()


def test_without_gradients_nothing_is_copied(moved: list[torch.Size], monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny.model("llama")
    waiting.let_wait(model)
    monkeypatch.setattr(torch.Tensor, "untyped_storage", lambda *_: pytest.fail("asked for"))
    with torch.no_grad():
        model(input_ids=torch.arange(8)[None])
