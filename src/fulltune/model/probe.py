"""Ask the loaded model instead of trusting its class: small questions before a long run."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn

from fulltune.model.facts import Head, without_dropout

_TOLERANCE = 1e-4
"""Of the largest logit. A leak between packed examples is 1e-2 and more; float32 noise stays below 1e-5."""


@torch.no_grad()
def packing_isolates(model: nn.Module, vocab: int) -> bool:
    """Whether an example gives the same logits alone and behind another in one row, in training and in eval mode."""
    first, second = _ids(7, vocab, 1), _ids(9, vocab, 2)
    row = torch.cat([first, second], dim=1)
    positions = torch.cat([torch.arange(7), torch.arange(9)])[None]
    for training in (False, True):
        with _mode(model, training):
            alone = _logits(model, second)
            try:
                together = _logits(model, row, positions)[:, 7:]
            except TypeError:  # the model takes no positions, so it cannot know where an example begins
                return False
        if not _close(alone, together):
            return False
    return True


@torch.no_grad()
def head_agrees(model: nn.Module, head: Head, vocab: int) -> bool:
    """Whether hidden states through our cut of the head give the model's own logits."""
    ids = _ids(11, vocab, 3)
    with _mode(model, False):
        hidden = head.backbone(input_ids=ids.to(_device(model)), use_cache=False)[0]
        return _close(_logits(model, ids), head.logits(hidden))


def _ids(length: int, vocab: int, seed: int) -> Tensor:
    """[1, length] of arbitrary tokens, always the same."""
    return torch.randint(vocab, (1, length), generator=torch.Generator().manual_seed(seed))


def _logits(model: nn.Module, ids: Tensor, positions: Tensor | None = None) -> Tensor:
    device = _device(model)
    extra: dict[str, Any] = {} if positions is None else {"position_ids": positions.to(device)}
    return cast(Tensor, model(input_ids=ids.to(device), use_cache=False, **extra).logits).float()


def _close(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and float((one - other).abs().max()) <= _TOLERANCE * float(one.abs().max())


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
