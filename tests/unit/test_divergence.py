"""The divergence from a base of which the likely tokens are kept: its formula, its bounds, its gradient."""

import pytest
import torch
from torch import Tensor

from fulltune.divergence import Likely, divergence, likeliest

VOCAB = 50


def pair(rows: int = 40) -> tuple[Tensor, Tensor]:
    """Logits of a base and of a model that moved."""
    draw = torch.Generator().manual_seed(3)
    base = torch.randn(rows, VOCAB, generator=draw) * 3
    return base, base + torch.randn(rows, VOCAB, generator=draw)


def exact(base: Tensor, model: Tensor) -> Tensor:
    """KL(base || model) over the whole vocabulary, in float64."""
    p, q = (logits.double().log_softmax(-1) for logits in (base, model))
    return (p.exp() * (p - q)).sum(-1)


def others(logits: Tensor, ids: Tensor) -> Tensor:
    """Float64 log-probabilities of the tokens that are not among `ids` [n, vocab - top]."""
    left = torch.ones_like(logits, dtype=torch.bool).scatter(-1, ids, False)
    return logits.double().log_softmax(-1)[left].view(len(logits), -1)


@pytest.mark.parametrize("top", [1, 7, 30])
def test_it_is_the_divergence_with_the_others_as_one_and_lacks_that_among_the_others(top: int) -> None:
    base, model = pair()
    kept = likeliest(base, top)
    found = divergence(model, kept).double()
    p, q = (logits.double().log_softmax(-1).gather(-1, kept.ids) for logits in (base, model))
    p_others, q_others = others(base, kept.ids), others(model, kept.ids)
    rest, left = p_others.logsumexp(-1), q_others.logsumexp(-1)
    direct = (p.exp() * (p - q)).sum(-1) + rest.exp() * (rest - left)
    assert torch.allclose(found, direct, atol=1e-6)
    among = ((p_others - rest[:, None]).exp() * (p_others - rest[:, None] - q_others + left[:, None])).sum(-1)
    gap = exact(base, model) - direct
    assert torch.allclose(gap, rest.exp() * among, atol=1e-12)
    assert float(gap.min()) > 0, "never more than the exact one"
    most = rest.exp() * (p[:, -1] - q_others.min(-1).values) - rest.exp() * (rest - left)
    assert bool((gap <= most).all()), "and by so much at most"


def test_with_one_token_left_it_is_exact_however_many_are_asked_for() -> None:
    base, model = pair()
    for top in (VOCAB - 1, VOCAB, 9 * VOCAB):
        kept = likeliest(base, top)
        assert kept.ids.shape[1] == VOCAB - 1
        assert torch.allclose(divergence(model, kept).double(), exact(base, model), atol=1e-6)


def test_it_is_exact_where_the_others_moved_in_proportion() -> None:
    base, _ = pair()
    kept = likeliest(base, 5)
    model = base.scatter_add(-1, kept.ids, torch.linspace(-2, 2, 5).expand(len(base), 5))
    assert torch.allclose(divergence(model, kept).double(), exact(base, model), atol=1e-6)


def test_what_is_unlikely_is_not_lost_in_rounding() -> None:
    """1 - the sum of the kept ones would be 0 in float32, or less."""
    logits = torch.zeros(1, VOCAB)
    logits[0, 0] = 40.0
    kept = likeliest(logits, 1)
    assert float(kept.rest) == pytest.approx(-40 + torch.tensor(VOCAB - 1.0).log().item(), abs=1e-4)
    moved = logits.clone()
    moved[0, 0] = 20.0
    assert float(divergence(moved, kept)) == pytest.approx(float(exact(logits, moved)), rel=1e-3)


def test_rounding_of_logits_counts_by_its_square() -> None:
    base, _ = pair()
    kept = likeliest(base, 7)
    assert float(divergence(base, kept).abs().max()) == 0
    noisy = base + 1e-4 * torch.randn(base.shape, generator=torch.Generator().manual_seed(4))
    found = divergence(noisy, kept)
    assert float(found.min()) >= 0 and float(found.max()) < 1e-7


def test_a_token_that_cannot_come_is_no_trouble_and_one_that_no_longer_can_is_infinitely_far() -> None:
    base, model = pair(2)
    base[:, 9], model[:, 9] = -torch.inf, -torch.inf
    kept = likeliest(base, VOCAB - 1)
    assert bool(torch.isfinite(divergence(model, kept)).all())
    model[:, int(kept.ids[0, 0])] = -torch.inf
    assert float(divergence(model, kept)[0]) == torch.inf


def test_its_gradient_is_that_of_the_formula() -> None:
    """Towards a kept token q - p; towards one of the others q less its part of what the base gives them."""
    base, model = pair()
    kept = likeliest(base, 7)
    model.requires_grad_()
    divergence(model, kept).sum().backward()
    q = model.detach().double().softmax(-1)
    among = (others(model.detach(), kept.ids).logsumexp(-1)).exp()
    wanted = q - q * (kept.rest.double().exp() / among)[:, None]
    wanted.scatter_(-1, kept.ids, q.gather(-1, kept.ids) - kept.logs.double().exp())
    assert model.grad is not None
    assert torch.allclose(model.grad.double(), wanted, atol=1e-6)


def test_the_kept_tokens_are_the_likeliest_with_their_probabilities() -> None:
    base, _ = pair()
    found = likeliest(base, 4)
    assert isinstance(found, Likely)
    logs = base.double().log_softmax(-1)
    assert torch.equal(found.ids, base.argsort(-1, descending=True)[:, :4])
    assert torch.allclose(found.logs.double(), logs.gather(-1, found.ids), atol=1e-6)
    assert torch.allclose(found.rest.double(), others(base, found.ids).logsumexp(-1), atol=1e-6)
