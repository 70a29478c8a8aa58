"""Blocks that are made again but for matrix products and attention: what is made twice, and that nothing changes."""

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import CheckpointPolicy

from fulltune.base.errors import RecipeError
from fulltune.model.facts import blocks, checkpoint_blocks, checkpoints
from fulltune.model.kept import _policy
from tests import tiny
from tests.contract.ground import Ground

DROPS = {"attn_pdrop": 0.1, "resid_pdrop": 0.1, "embd_pdrop": 0.1}
KINDS: list[tuple[str, dict[str, Any]]] = [
    ("llama", {}),
    ("llama", {"attention_dropout": 0.2}),
    ("gpt2", DROPS),
    ("gemma2", {}),
    ("qwen3", {}),
    ("mixtral", {}),
]
PRODUCTS = ("mm", "addmm", "_grouped_mm", "_scaled_dot_product_flash_attention_for_cpu")


class Counted(TorchDispatchMode):
    """Counts operations by their names."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.counts[func._schema.name.removeprefix("aten::")] += 1
        return func(*args, **(kwargs or {}))


def made(way: str, kind: str, changes: dict[str, Any]) -> Any:
    model = tiny.model(kind, **changes)
    if way != "none":
        checkpoint_blocks(model, keep_products=way == "selective")
    return model


@pytest.mark.parametrize(
    ("kind", "changes", "precision"),
    [(*kind, "float32") for kind in KINDS]
    + [("gpt2", DROPS, precision) for precision in ("bf16-mixed", "fp16-mixed", "bf16-sr")],
)
def test_gradients_of_several_micro_batches_are_the_same_to_the_bit(
    tmp_path: Path, kind: str, changes: dict[str, Any], precision: str
) -> None:
    """Dropout draws the same again, whatever was left out in between."""
    found = []
    for way in ("none", "selective"):
        ground = Ground(tmp_path / way, made(way, kind, changes), count=6, micro=2, precision=precision)
        torch.manual_seed(5)
        found.append((ground.backward(), {name: p.grad for name, p in ground.model.named_parameters()}))
    (loss, gradients), (again, others) = found
    assert loss == again
    for name, grad in gradients.items():
        assert grad is others[name] is None or torch.equal(grad, others[name]), name


@pytest.mark.parametrize(
    ("kind", "changes"), [("llama", {}), ("gpt2", DROPS), ("mixtral", {}), ("llama", {"attn_implementation": "eager"})]
)
def test_products_are_made_once_and_all_else_twice(kind: str, changes: dict[str, Any]) -> None:
    ids = torch.arange(8)[None]
    once, products = Counter[str](), {}
    for way in ("none", "selective", "full"):
        model = made(way, kind, changes).train()
        calls: list[int] = []
        blocks(model)[0].mlp.register_forward_pre_hook(lambda *_, calls=calls: calls.append(1))
        with Counted() as forward:
            hidden = model.get_decoder()(input_ids=ids, use_cache=False)[0]
        with Counted() as whole:
            hidden.sum().backward()
        once = forward.counts
        products[way] = {name: whole.counts[name] for name in PRODUCTS if once[name]}
        assert len(calls) == (1 if way == "none" else 2)
    assert products["selective"] == products["none"]
    # The backward pass makes its own products; of the forward pass's, the last of a block need not be made again.
    more = {name: products["full"][name] - count for name, count in products["none"].items()}
    last = len(blocks(model))
    assert all(once[name] - last <= more[name] <= once[name] for name in more), (more, once)


class Held(TorchDispatchMode):
    """How many results of matrix products there are still."""

    def __init__(self) -> None:
        super().__init__()
        self.made: list[Any] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func is torch.ops.aten.mm.default:
            self.made.append(StorageWeakRef(out.untyped_storage()))
        return out

    @property
    def alive(self) -> int:
        return sum(not one.expired() for one in self.made)


def test_results_of_products_wait_for_the_backward_pass_and_go_with_it() -> None:
    alive = {}
    for way in ("selective", "full"):
        model = made(way, "llama", {}).train()
        with Held() as held:
            hidden = model.get_decoder()(input_ids=torch.arange(8)[None], use_cache=False)[0]
        alive[way] = held.alive, len(held.made)
        hidden.sum().backward()
        del hidden
        assert held.alive == 0
    assert alive == {"selective": (14, 14), "full": (0, 14)}


def test_attention_that_drops_is_made_again_so_that_masks_behind_it_stay_the_same() -> None:
    """The random numbers that it draws would be drawn by the next dropout."""
    query = torch.zeros(1, 1, 1, 8)
    flash = torch.ops.aten._scaled_dot_product_flash_attention.default
    efficient = torch.ops.aten._scaled_dot_product_efficient_attention.default
    keep, again = CheckpointPolicy.MUST_SAVE, CheckpointPolicy.PREFER_RECOMPUTE
    assert _policy(None, flash, query, query, query) is keep
    assert _policy(None, flash, query, query, query, 0.0, True) is keep
    assert _policy(None, flash, query, query, query, 0.1, True) is again
    assert _policy(None, flash, query, query, query, dropout_p=0.1) is again
    assert _policy(None, efficient, query, query, query, None, True, 0.0) is keep
    assert _policy(None, efficient, query, query, query, None, True, 0.1) is again


def test_attention_weights_are_not_kept() -> None:
    assert _policy(None, torch.ops.aten.bmm.default, 0, 0) is CheckpointPolicy.PREFER_RECOMPUTE


def test_a_model_that_cannot_is_refused_and_known_before() -> None:
    assert checkpoints(tiny.model("llama"))
    assert not checkpoints(nn.Linear(2, 2))
    with pytest.raises(RecipeError, match="does not support"):
        checkpoint_blocks(nn.Linear(2, 2), keep_products=True)


def test_a_model_with_code_of_its_own_that_keeps_nothing_is_refused() -> None:
    """Such as code of the hub that reads no settings: it would be `full` under another name."""
    model = tiny.model("llama")
    model.activation_checkpointing_enable = lambda *_: None
    with pytest.raises(RecipeError, match="keeps nothing") as caught:
        checkpoint_blocks(model, keep_products=True)
    assert "checkpointing=full" in caught.value.faults[0].mend
