"""What blocks keep waits on the host: gradients are the same, weights are not copied, and nothing stays behind."""

import gc
from pathlib import Path
from typing import Any
from weakref import ref

import pytest
import torch

from fulltune.base.errors import RecipeError
from fulltune.model import waiting
from fulltune.model.facts import blocks, checkpoint_blocks, require_inner_checkpoints
from tests import tiny
from tests.contract.ground import Ground

DROPS = {"attn_pdrop": 0.1, "resid_pdrop": 0.1}


@pytest.fixture
def moved(monkeypatch: pytest.MonkeyPatch) -> list[torch.Size]:
    """Shapes of what came back."""
    shapes: list[torch.Size] = []
    real = waiting._unpack

    def unpack(packed: Any) -> Any:
        made = real(packed)
        if isinstance(packed, tuple):
            shapes.append(made.shape)
        return made

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
    asked: list[int] = []
    unpack = waiting._unpack
    monkeypatch.setattr(waiting, "_unpack", lambda packed: asked.append(1) or unpack(packed))
    passed(model)
    assert len(asked) > once // 2, "each of them went and came"


def test_what_a_block_kept_comes_while_the_one_behind_it_goes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """And no earlier: of all blocks together it would be what was to be spared."""
    model = tiny.model("llama", num_hidden_layers=5)
    waiting.let_wait(model)
    told: list[str] = []
    bring, give = waiting._Kept._bring, waiting._Kept.give
    names: dict[int, str] = {}

    def begun(kept: Any) -> Any:
        if kept._here is None:
            told.append(f"{names.setdefault(id(kept), str(len(names)))} comes")
        return bring(kept)

    def asked(kept: Any, number: int) -> Any:
        made = give(kept, number)
        if (said := f"{names[id(kept)]} is used") not in told:
            told.append(said)
        return made

    monkeypatch.setattr(waiting._Kept, "_bring", begun)
    monkeypatch.setattr(waiting._Kept, "give", asked)
    passed(model)
    assert told[:6] == ["0 comes", "1 comes", "0 is used", "2 comes", "1 is used", "3 comes"]
    assert told[-1] == "4 is used"


def test_what_went_to_the_host_is_let_go_of_and_so_is_what_came_back() -> None:
    model = tiny.model("llama", num_hidden_layers=6)
    waiting.let_wait(model)
    kept: list[Any] = []
    init = waiting._Kept.__init__

    def noted(one: Any, *given: Any) -> None:
        init(one, *given)
        kept.append(ref(one))

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(waiting._Kept, "__init__", noted)
        passed(model)
        passed(model)
    gc.collect()
    assert len(kept) == 12
    assert not [one for one in kept if one() is not None], "a pass that is over holds memory"


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


def test_where_blocks_are_made_again_around_their_hooks_it_is_refused() -> None:
    """As transformers 5.17 does it: all that is made again would wait on the host."""
    model = tiny.model("llama")
    require_inner_checkpoints(model)
    outer = type("Outer", (type(blocks(model)[0]),), {"__call__": lambda self, *given: None})
    blocks(model)[1].__class__ = outer
    with pytest.raises(RecipeError, match="would wait on the host"):
        require_inner_checkpoints(model)
