"""Gradients that layers add themselves: the same sums, of every micro-batch, and none where others wait for them."""

from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn

from fulltune.adding import add_in_place, drop, given, settle
from fulltune.fused import head_loss
from fulltune.model.norms import fuse_norms
from fulltune.model.projections import keep_less
from tests import tiny


def summed(added: bool, *, micros: int, computed: torch.dtype | None, tied: bool = True) -> dict[str, Tensor]:
    """Gradients of so many micro-batches."""
    made = tiny.model("llama")
    if not tied:
        cast(Any, made).lm_head.weight = nn.Parameter(cast(Any, made).lm_head.weight.detach().clone())
    keep_less(made)
    fuse_norms(made)
    if added:
        add_in_place(made)
    for number in range(micros):
        tokens = (torch.arange(20).view(1, 20) * (number + 3)) % 50
        with torch.autocast("cpu", computed or torch.bfloat16, enabled=computed is not None, cache_enabled=False):
            hidden = cast(Any, made).model(input_ids=tokens, use_cache=False)[0][0]
            loss = head_loss(
                hidden, cast(Any, made).lm_head.weight, tokens[0].roll(-1), torch.ones(20) / 20, scale=1.0, size=8
            )
        (loss / 3).backward()
    settle(made.parameters())
    return {name: weight.grad for name, weight in made.named_parameters() if weight.grad is not None}


@pytest.mark.parametrize("computed", [None, torch.bfloat16])
@pytest.mark.parametrize("micros", [1, 2, 3])
@pytest.mark.parametrize("tied", [True, False])
def test_sums_are_those_of_autograd(micros: int, computed: torch.dtype | None, tied: bool) -> None:
    """Of matrices bit by bit. An embedding's rows are added to what is there one by one, in another order."""
    there = summed(False, micros=micros, computed=computed, tied=tied)
    here = summed(True, micros=micros, computed=computed, tied=tied)
    assert there.keys() == here.keys()
    for name, gradient in there.items():
        assert here[name].dtype == torch.float32
        if "embed" in name or "lm_head" in name:
            assert torch.allclose(here[name], gradient, rtol=1e-5, atol=1e-8), name
        else:
            assert torch.equal(here[name], gradient), name


def test_a_padding_token_has_no_gradient() -> None:
    made = tiny.model("llama")
    module = cast(Any, made).get_input_embeddings()
    module.padding_idx = 5
    add_in_place(made)
    module(torch.tensor([[5, 6, 6]])).sum().backward()
    assert module.weight.grad[5].tolist() == [0.0] * module.weight.shape[1]
    assert module.weight.grad[6].tolist() == [2.0] * module.weight.shape[1]


def test_of_16_bits_the_first_is_kept_as_it_is() -> None:
    """So it takes half the memory until a second one comes, or somebody looks."""
    made = tiny.model("llama")
    weight = next(iter(made.parameters()))
    first = torch.full_like(weight, 1 / 3, dtype=torch.bfloat16)
    assert given(weight, first.clone()).dtype == torch.float32, "this one is autograd's to add"
    add_in_place(made)
    assert given(weight, first) is None
    assert weight.grad is None
    settle([weight])
    settle([weight])
    assert torch.equal(weight.grad, first.float())
    weight.grad = None
    for _ in range(3):
        assert given(weight, first) is None
    assert torch.equal(weight.grad, first.float() + first.float() + first.float())
    weight.grad = None
    given(weight, first)
    drop([weight])
    settle([weight])
    assert weight.grad is None


def test_a_weight_that_lies_transposed_is_left_to_autograd_which_lays_its_gradient_so() -> None:
    """A fused optimizer takes weight and gradient number by number, as they lie in memory."""
    made = tiny.model("llama")
    weight = cast(Any, made).model.layers[0].self_attn.o_proj.weight
    weight.data = weight.data.t().contiguous().t()
    keep_less(made)
    add_in_place(made)
    cast(Any, made)(input_ids=torch.arange(20)[None], use_cache=False).logits.sum().backward()
    assert weight.grad is not None and weight.grad.stride() == weight.stride()
