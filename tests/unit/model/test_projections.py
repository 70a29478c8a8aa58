"""Linear layers, gated MLPs and norms that keep less: the same numbers, and how much less."""

from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from fulltune.model.facts import checkpoint_blocks
from fulltune.model.norms import fuse_norms
from fulltune.model.projections import keep_less
from fulltune.model.tiled import tile_mlps
from tests import tiny

Formats = pytest.mark.parametrize("computed", [None, torch.bfloat16, torch.float16])


def passed(made: nn.Module, computed: torch.dtype | None) -> tuple[Tensor, dict[str, Tensor], int]:
    """Hidden states, gradients of weights, and bytes that the forward pass left for the backward pass, but weights."""
    made.train()
    own = {weight.untyped_storage().data_ptr() for weight in made.parameters()}
    held: dict[int, Tensor] = {}

    def pack(value: Tensor) -> Tensor:
        held[value.untyped_storage().data_ptr()] = value
        return value

    tokens = torch.arange(3, 45).view(2, 21)
    with saved_tensors_hooks(pack, lambda value: value):
        with torch.autocast("cpu", computed or torch.bfloat16, enabled=computed is not None, cache_enabled=False):
            hidden = cast(Any, made).model(input_ids=tokens, use_cache=False)[0]
        count = sum(value.untyped_storage().nbytes() for place, value in held.items() if place not in own)
        told = torch.sin(torch.arange(hidden.numel(), dtype=torch.float32)).view(hidden.shape)
        hidden.float().backward(told)
    return hidden.detach(), {n: p.grad.clone() for n, p in made.named_parameters() if p.grad is not None}, count


@pytest.mark.parametrize("kind", ["llama", "gemma2", "phi"])
@Formats
def test_not_a_bit_is_other(kind: str, computed: torch.dtype | None) -> None:
    """Also with biases and another MLP (Phi), with another activation function (Gemma 2), and of a frozen weight."""
    found = []
    for spared in (False, True):
        made = tiny.model(kind)
        block = cast(Any, made).model.layers[0]
        block.self_attn.q_proj.weight.requires_grad_(False)
        if kind != "phi":
            block.mlp.up_proj.weight.requires_grad_(False)
        if spared:
            keep_less(made)
            assert "forward" in vars(block.self_attn.q_proj)
            assert ("forward" in vars(block.mlp)) == (kind != "phi")
        found.append(passed(made, computed))
    (there, theirs, much), (here, ours, less) = found
    assert torch.equal(there, here)
    assert theirs.keys() == ours.keys()
    assert all(torch.equal(theirs[name], ours[name]) for name in theirs)
    assert less <= (1 if kind == "phi" else 0.8 if computed else 0.9) * much


@pytest.mark.parametrize("again", [True, False])
def test_blocks_that_are_made_again_and_tiles(again: bool) -> None:
    found = []
    for spared in (False, True):
        made = tiny.model("llama")
        if spared:
            keep_less(made)
        if again:
            checkpoint_blocks(made, keep_products=True)
        else:
            tile_mlps(made, 7)
        found.append(passed(made, torch.bfloat16))
    assert torch.equal(found[0][0], found[1][0])
    for name, gradient in found[0][1].items():
        assert torch.equal(gradient, found[1][1][name]), name


def test_an_input_that_was_changed_is_narrowed_anew() -> None:
    """Layers share the copy of their input: only while it is that input."""
    made = tiny.model("llama")
    keep_less(made)
    attention = cast(Any, made).model.layers[0].self_attn
    value = torch.randn(1, 5, attention.q_proj.in_features)
    with torch.autocast("cpu", torch.bfloat16):
        before = attention.q_proj(value)
        assert torch.equal(before, attention.q_proj(value))
        value.add_(1)
        after = attention.q_proj(value)
        assert torch.equal(after, nn.Linear.forward(attention.q_proj, value))
    assert not torch.equal(before, after)


def test_what_is_no_such_mlp_is_left_alone() -> None:
    """An MLP that does something else by the same names."""
    made = tiny.model("llama")
    blocks = cast(Any, made).model.layers

    class Other(type(blocks[0].mlp)):  # type: ignore[misc]
        def forward(self, value: Tensor) -> Tensor:
            return cast(Tensor, self.down_proj(self.act_fn(self.up_proj(value)) * self.gate_proj(value)))

    for block in blocks:
        block.mlp.__class__ = Other
    keep_less(made)
    assert all("forward" not in vars(block.mlp) for block in blocks)
    assert all("forward" in vars(block.mlp.up_proj) for block in blocks), "its layers are no others"


def test_answers_are_made_as_before() -> None:
    made = tiny.model("llama").eval()
    keep_less(made)
    fuse_norms(made)
    block = cast(Any, made).model.layers[0]
    value = torch.randn(1, 3, block.mlp.gate_proj.in_features)
    with torch.no_grad():
        for module in (block.mlp, block.mlp.gate_proj, block.input_layernorm):
            assert torch.equal(module(value), type(module).forward(module, value))


@pytest.mark.parametrize("kind", ["llama", "qwen3"])
@pytest.mark.parametrize("computed", [None, torch.bfloat16])
def test_norms_say_the_same(kind: str, computed: torch.dtype | None) -> None:
    """Qwen3 has norms of its heads too, whose gradients lie otherwise in memory."""
    found = []
    for spared in (False, True):
        made = tiny.model(kind)
        with torch.no_grad():
            for number, (name, weight) in enumerate(made.named_parameters()):
                if "norm" in name:
                    weight.add_(torch.sin(torch.arange(len(weight)) + number) / 2)
        if spared:
            fuse_norms(made)
            block = cast(Any, made).model.layers[0]
            assert "forward" in vars(block.input_layernorm)
        found.append(passed(made, computed))
    (there, theirs, much), (here, ours, less) = found
    limit = 1e-5 if computed is None else 2e-2

    def close(a: Tensor, b: Tensor) -> float:
        return float((a - b).norm() / a.norm())

    assert close(there, here) < limit
    assert all(close(theirs[name], ours[name]) < limit for name in theirs)
    assert less < 0.92 * much


def test_a_norm_of_another_kind_is_left_alone() -> None:
    """Gemma scales by 1 + weight, and calls its epsilon otherwise; one that does so under the name is found out."""
    for kind in ("gemma2", "llama"):
        made = tiny.model(kind)
        norms = [block.input_layernorm for block in cast(Any, made).model.layers]
        for norm in norms if kind == "llama" else ():
            norm.__class__ = type("Other", (type(norm),), {"forward": _scaled_by_one_more})
        with torch.no_grad():
            for name, weight in made.named_parameters():
                if "norm" in name:
                    weight.fill_(0.5)
        fuse_norms(made)
        assert all("forward" not in vars(norm) for norm in norms)


def _scaled_by_one_more(norm: Any, value: Tensor) -> Tensor:
    scale = torch.rsqrt(value.pow(2).mean(-1, keepdim=True) + norm.variance_epsilon)
    return cast(Tensor, value * scale * (1 + norm.weight))
