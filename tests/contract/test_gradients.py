"""The gradient of one update is that of plain PyTorch on the whole batch, for models of every family.

Must show 5: 1e-6 in float32, for Llama, GPT-2, Qwen3 and Gemma-2/3, tied and untied heads, with soft-capping.
"""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from tests import tiny
from tests.contract.ground import Ground

KINDS = [
    ("llama", {}),
    ("llama-tied", {}),
    ("gpt2", {"tie_word_embeddings": True}),
    ("gpt2", {"tie_word_embeddings": False}),
    ("qwen3", {}),
    ("qwen3", {"tie_word_embeddings": False}),
    ("gemma2", {}),
    ("gemma2", {"tie_word_embeddings": False}),
    ("gemma3", {}),
    ("cohere", {}),
    ("granite", {}),
    ("phi", {}),
]


def plain(model: nn.Module, rows: list[tuple[torch.Tensor, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """Autograd through the model's own logits, one example at a time, summed and divided once."""
    supervised = sum(int((labels != -100).sum()) for _, labels in rows)
    total = torch.zeros(())
    for ids, labels in rows:
        logits = model(input_ids=ids[None], use_cache=False).logits[0]
        total = total + F.cross_entropy(logits.float(), labels, ignore_index=-100, reduction="sum") / supervised
    total.backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize(("kind", "changes"), KINDS)
@pytest.mark.parametrize("layout", ["padded", "packed"])
@pytest.mark.parametrize("micro", [1, 8])
def test_one_update(tmp_path: Path, kind: str, changes: dict[str, Any], layout: str, micro: int) -> None:
    ground = Ground(tmp_path, tiny.model(kind, **changes), count=8, layout=layout, micro=micro)
    found = ground.gradients()
    reference = tiny.model(kind, **changes).train()
    wanted = plain(reference, ground.rows())
    assert found.keys() == wanted.keys()
    largest = max(float(grad.abs().max()) for grad in wanted.values())
    for name, grad in wanted.items():
        assert float((found[name] - grad).abs().max()) <= 1e-6 * max(1.0, largest), name


@pytest.mark.parametrize("keeps", [True, False])
def test_a_model_with_an_unusual_head_computes_its_own_logits(tmp_path: Path, keeps: bool) -> None:
    ground = Ground(tmp_path, tiny.model("llama"), count=6, micro=3, cut=False, keeps_logits=keeps)
    found = ground.gradients()
    wanted = plain(tiny.model("llama").train(), ground.rows())
    for name, grad in wanted.items():
        assert torch.allclose(found[name], grad, atol=1e-6), name


def test_chunks_of_the_head_change_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = Ground(tmp_path / "a", tiny.model("gemma2"), count=8, micro=8).gradients()
    monkeypatch.setattr("fulltune.objectives.CHUNK_BYTES", 4 * tiny.VOCAB * 3)  # three tokens at a time
    pieces = Ground(tmp_path / "b", tiny.model("gemma2"), count=8, micro=8).gradients()
    for name, grad in whole.items():
        assert torch.allclose(pieces[name], grad, atol=1e-6), name


def test_token_weights_scale_their_loss(tmp_path: Path) -> None:
    """Twice the weight on every token is the same mean; weight on some is a weighted mean."""
    same = Ground(tmp_path / "a", tiny.model("llama"), count=4, weights=[1.0, 1.0, 1.0, 1.0]).gradients()
    doubled = Ground(tmp_path / "b", tiny.model("llama"), count=4, weights=[2.0, 2.0, 2.0, 2.0]).gradients()
    ground = Ground(tmp_path / "c", tiny.model("llama"), count=4, weights=[3.0, 1.0, 1.0, 0.5])
    weighted = ground.gradients()
    for name, grad in same.items():
        assert torch.allclose(doubled[name], grad, atol=1e-6), name
    model, total, weight = tiny.model("llama").train(), torch.zeros(()), 0.0
    for (ids, labels), w in zip(ground.rows(), [3.0, 1.0, 1.0, 0.5], strict=True):
        logits = model(input_ids=ids[None], use_cache=False).logits[0]
        total = total + w * F.cross_entropy(logits, labels, ignore_index=-100, reduction="sum")
        weight += w * int((labels != -100).sum())
    (total / weight).backward()
    for name, p in model.named_parameters():
        assert torch.allclose(weighted[name], p.grad, atol=1e-6), name
