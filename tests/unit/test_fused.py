"""The head's loss whose gradients are made in the forward pass, beside autograd through whole logits."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from fulltune.fused import head_loss

TOKENS, WIDTH, VOCAB = 11, 8, 29


def given(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    hidden = torch.randn(TOKENS, WIDTH, generator=generator).to(dtype).requires_grad_()
    weight = torch.randn(VOCAB, WIDTH, generator=generator).to(dtype).requires_grad_()
    labels = torch.randint(VOCAB, (TOKENS,), generator=generator)
    weights = torch.rand(TOKENS, generator=generator)
    weights[4] = 0
    return hidden, weight, labels, weights


def by_autograd(scale: float, slope: float) -> tuple[Tensor, Tensor, Tensor]:
    hidden, weight, labels, weights = given()
    logits = scale * (hidden @ weight.T)
    loss = (F.cross_entropy(logits, labels, reduction="none") * weights).sum()
    (loss * slope).backward()
    assert hidden.grad is not None and weight.grad is not None
    return loss.detach(), hidden.grad, weight.grad


@pytest.mark.parametrize("scale", [1.0, 0.25])
@pytest.mark.parametrize("size", [1, 4, TOKENS])
def test_it_is_autograds(size: int, scale: float) -> None:
    hidden, weight, labels, weights = given()
    loss = head_loss(hidden, weight, labels, weights, scale=scale, size=size)
    (loss * 0.5).backward()
    wanted, of_hidden, of_weight = by_autograd(scale, 0.5)
    torch.testing.assert_close(loss.detach(), wanted, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(hidden.grad, of_hidden, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(weight.grad, of_weight, rtol=1e-5, atol=1e-6)


def test_a_weight_that_is_used_elsewhere_too_has_the_sum() -> None:
    hidden, weight, labels, weights = given()
    loss = head_loss(weight[:TOKENS], weight, labels, weights, scale=1.0, size=4)
    (loss + (weight * 0.5).sum()).backward()
    other = given()[1]
    logits = other[:TOKENS] @ other.T
    ((F.cross_entropy(logits, labels, reduction="none") * weights).sum() + (other * 0.5).sum()).backward()
    torch.testing.assert_close(weight.grad, other.grad, rtol=1e-5, atol=1e-6)
    assert hidden.grad is None


def test_without_tokens_gradients_are_zero_and_there() -> None:
    hidden, weight, labels, weights = given()
    loss = head_loss(hidden[:0], weight, labels[:0], weights[:0], scale=1.0, size=4)
    loss.backward()
    assert float(loss.detach()) == 0
    assert weight.grad is not None and not weight.grad.any()
    assert hidden.grad is not None and not hidden.grad.any()


def test_one_that_is_not_trained_gets_none() -> None:
    hidden, weight, labels, weights = given()
    head_loss(hidden, weight.detach(), labels, weights, scale=1.0, size=4).backward()
    torch.testing.assert_close(hidden.grad, by_autograd(1.0, 1.0)[1], rtol=1e-5, atol=1e-6)
    assert weight.grad is None


def test_in_bfloat16_gradients_have_the_formats_of_their_tensors() -> None:
    """The softmax is float32: the loss is as near to the true one as bfloat16 logits allow."""
    hidden, weight, labels, weights = given()
    with torch.autocast("cpu", torch.bfloat16):
        loss = head_loss(hidden, weight, labels, weights, scale=1.0, size=4)
    loss.backward()
    wanted, of_hidden, of_weight = by_autograd(1.0, 1.0)
    assert loss.dtype == torch.float32
    for found, exact in ((loss.detach(), wanted), (hidden.grad, of_hidden), (weight.grad, of_weight)):
        assert found is not None and found.dtype == torch.float32
        assert float((found - exact).norm()) <= 0.02 * float(exact.norm())
    narrow, head = (value.detach().to(torch.bfloat16).requires_grad_() for value in (hidden, weight))
    head_loss(narrow, head, labels, weights, scale=1.0, size=4).backward()
    assert narrow.grad is not None and narrow.grad.dtype == torch.bfloat16
    assert head.grad is not None and head.grad.dtype == torch.bfloat16


def mixed(weight: Tensor, size: int = TOKENS) -> list[Tensor]:
    """Loss and gradients under autocast to bfloat16."""
    hidden, _, labels, weights = given()
    with torch.autocast("cpu", torch.bfloat16):
        loss = head_loss(hidden, weight, labels, weights, scale=0.5, size=size)
    return [loss.detach(), *torch.autograd.grad(loss, (hidden, weight))]


def test_in_bfloat16_few_tokens_are_float32_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    weight = given()[1]
    whole = mixed(weight)
    assert [len(gradient) for gradient in whole[1:]] == [TOKENS, VOCAB], "tokens that fill up are none of them"
    for few in (1, 4, 32):
        monkeypatch.setattr("fulltune.fused.NARROWED", few)
        for size in (3, TOKENS):
            for found, wanted in zip(mixed(weight, size), whole, strict=True):
                assert float((found - wanted).norm()) <= 0.01 * float(wanted.norm())


def test_in_bfloat16_a_head_that_has_moved_is_cast_anew_and_each_has_its_own() -> None:
    weight, other = given()[1], (given()[1].detach() + 1).requires_grad_()
    before, others = mixed(weight), mixed(other)
    assert all(torch.equal(a, b) for a, b in zip(mixed(weight), before, strict=True))
    with torch.no_grad():
        weight += 1
    assert all(torch.equal(a, b) for a, b in zip(mixed(weight), others, strict=True))
    assert not torch.equal(before[0], others[0])


def test_gradients_are_given_away_once() -> None:
    hidden, weight, labels, weights = given()
    loss = head_loss(hidden, weight, labels, weights, scale=1.0, size=4)
    loss.backward(retain_graph=True)
    with pytest.raises(AssertionError, match="once"):
        loss.backward()
