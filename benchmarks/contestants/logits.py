"""A fresh process that computes the loss of so many tokens and its gradients, and says what it held of logits."""

import json
import re
import sys
from pathlib import Path

import torch

from fulltune.base.allocator import keeping
from fulltune.base.memory import CHUNK_BYTES
from fulltune.fused import head_loss

_WIDTH = 64


def _held(what: str) -> int:
    found = re.search(rf"{what}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) * 1024


def _made(loss: torch.Tensor) -> None:
    loss.backward()  # type: ignore[no-untyped-call]


def main(tokens: int, vocab: int) -> int:
    """Bytes at most besides hidden states, weights and the gradients of both."""
    hidden, weight = torch.randn(tokens, _WIDTH, requires_grad=True), torch.randn(vocab, _WIDTH, requires_grad=True)
    labels, weights = torch.randint(vocab, (tokens,)), torch.ones(tokens)
    _made(head_loss(hidden[:1].detach(), weight, labels[:1], weights[:1], scale=1.0, size=1))  # libraries take theirs
    Path("/proc/self/clear_refs").write_text("5")
    before = _held("VmRSS")
    with keeping():
        _made(head_loss(hidden, weight, labels, weights, scale=1.0, size=max(1, CHUNK_BYTES // (4 * vocab))))
        return _held("VmHWM") - before - hidden.nbytes - weight.nbytes


if __name__ == "__main__":
    print(json.dumps(main(*map(int, sys.argv[1:3]))))
