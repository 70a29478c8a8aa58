"""Ask the loaded model instead of trusting its class: small questions before a long run."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from fulltune.model.facts import Head, arithmetic, head, without_dropout

CLOSE = 1e-4
"""Of the largest logit, in float32: noise stays below 1e-5."""
_SAME = 1e-5
"""Of the largest logit, in float32, when other tokens stand before: experts make 3e-7 of it, the smallest leak 1e-4."""
CLOSE_IN_HALF = 5e-2
"""In bf16, where noise is 1e-2. Whether anything leaks is told by another question, to the bit."""


@dataclass(frozen=True, slots=True)
class Answers:
    """What a loaded model said."""

    cut: bool
    """Whether our cut of its head gives its own logits."""
    isolates: bool
    """Whether examples that are packed into one row are as if alone; True if that was not asked."""


def ask(model: nn.Module, *, packed: bool) -> Answers:
    """The questions before a run; `packed`: whether its examples will be."""
    vocab = cast(Tensor, cast(Any, model).get_input_embeddings().weight).shape[0]
    cut = head(model)
    exact = cut is not None and head_agrees(model, cut, vocab)
    return Answers(exact, not packed or packing_isolates(model, vocab))


@torch.no_grad()
def packing_isolates(model: nn.Module, vocab: int) -> bool:
    """Whether an example in a row behind another is as if alone, in training and in eval mode.

    Other tokens in the first example must not move the second's logits, and those must be close to what the second
    gives alone.
    """
    first, other, second = _ids(7, vocab, 1), _ids(7, vocab, 4), _ids(9, vocab, 2)
    positions = torch.cat([torch.arange(7), torch.arange(9)])[None]
    for training in (False, True):
        with _mode(model, training):
            alone = _logits(model, second)
            try:
                behind, behind_other = (
                    _logits(model, torch.cat([before, second], dim=1), positions)[:, 7:] for before in (first, other)
                )
            except TypeError:  # the model takes no positions, so it cannot know where an example begins
                return False
        if not (_same(model, behind, behind_other) and _close(model, alone, behind)):
            return False
    return True


@torch.no_grad()
def head_agrees(model: nn.Module, head: Head, vocab: int) -> bool:
    """Whether hidden states through our cut of the head give the model's own logits."""
    ids = _ids(11, vocab, 3)
    with _mode(model, False):
        with arithmetic(model):
            logits = head.logits(head.backbone(input_ids=ids.to(_device(model)), use_cache=False)[0])
        return _close(model, _logits(model, ids), logits)


def leaves_unused(model: nn.Module, vocab: int) -> bool:
    """Whether some trained weight has no part in some token's logits, as the experts that a router does not choose."""
    before = {parameter: parameter.grad for parameter in model.parameters()}
    with _mode(model, True), torch.enable_grad(), arithmetic(model):
        torch.autograd.backward(_logits(model, _ids(1, vocab, 5)).sum())
    found = any(parameter.requires_grad and parameter.grad is None for parameter in before)
    for parameter, gradient in before.items():
        parameter.grad = gradient
    return found


def _ids(length: int, vocab: int, seed: int) -> Tensor:
    """[1, length] of arbitrary tokens, always the same."""
    return torch.randint(vocab, (1, length), generator=torch.Generator().manual_seed(seed))


def _logits(model: nn.Module, ids: Tensor, positions: Tensor | None = None) -> Tensor:
    device = _device(model)
    extra: dict[str, Any] = {} if positions is None else {"position_ids": positions.to(device)}
    with arithmetic(model):
        return cast(Tensor, model(input_ids=ids.to(device), use_cache=False, **extra).logits).float()


def _close(model: nn.Module, one: Tensor, other: Tensor) -> bool:
    with arithmetic(model):
        tolerance = CLOSE_IN_HALF if torch.is_autocast_enabled(_device(model).type) else CLOSE
    return one.shape == other.shape and float((one - other).abs().max()) <= tolerance * float(one.abs().max())


def _same(model: nn.Module, one: Tensor, other: Tensor) -> bool:
    """Equal; in float32 but for the last bits: experts see other numbers of rows when other rows change."""
    with arithmetic(model):
        if torch.is_autocast_enabled(_device(model).type):
            return torch.equal(one, other)
    return float((one - other).abs().max()) <= _SAME * float(one.abs().max())


def _device(model: nn.Module) -> torch.device:
    return next(model.parameters()).device


@contextmanager
def _mode(model: nn.Module, training: bool) -> Iterator[None]:
    before = model.training
    model.train(training)
    try:
        with without_dropout(model):
            yield
    finally:
        model.train(before)
