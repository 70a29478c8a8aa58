"""Fine-tuning in plain PyTorch, short enough to be checked by eye. It knows nothing of fulltune."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM

Example = tuple[Sequence[int], Sequence[int]]
"""Token ids, and the same ids as labels with -100 wherever nothing is taught: not shifted."""


def train(folder: Path, updates: Sequence[Sequence[Sequence[Example]]], **settings: Any) -> tuple[Any, list[Any]]:
    """The model, and (loss, rate, gradient norm) of each update, which is made of one or more micro-batches."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).train()
    optimizer = torch.optim.AdamW(decay_groups(model, settings["weight_decay"]), lr=0.0)
    told = []
    for number, batches in enumerate(updates):
        taught = sum(label != -100 for batch in batches for _, labels in batch for label in labels[1:])
        loss = 0.0
        for batch in batches:
            ids, labels = padded([ids for ids, _ in batch], 0), padded([labels for _, labels in batch], -100)
            mask = padded([[1] * len(ids) for ids, _ in batch], 0)
            logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits
            part = cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), reduction="sum") / taught
            part.backward()
            loss += part.item()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), settings["clip"]).item()
        for group in optimizer.param_groups:
            group["lr"] = rate(number, len(updates), **settings)
        told.append((loss, group["lr"], norm))
        optimizer.step()
        optimizer.zero_grad()
    return model, told


def rate(update: int, updates: int, *, lr: float, warmup: int, floor: float, **_: Any) -> float:
    """Equal steps up to the peak, which stands right after the warm-up; half a cosine down to the floor at the end."""
    if update < warmup:
        return lr * (update + 1) / (warmup + 1)
    done = (update - warmup) / (updates - warmup - 1)
    return lr * (floor + (1 - floor) * (1 + math.cos(math.pi * done)) / 2)


def decay_groups(model: Any, decay: float) -> list[dict[str, Any]]:
    """Matrices are decayed; biases, norms and embeddings are not. A tied head is the embedding."""
    spared = {id(parameter) for parameter in model.parameters() if parameter.dim() < 2}
    spared.add(id(model.get_input_embeddings().weight))
    sides = [[p for p in model.parameters() if (id(p) in spared) == side] for side in (False, True)]
    return [{"params": sides[0], "weight_decay": decay}, {"params": sides[1], "weight_decay": 0.0}]


def padded(rows: Sequence[Sequence[int]], fill: int) -> torch.Tensor:
    """[rows, longest], filled up to the right."""
    longest = max(map(len, rows))
    return torch.tensor([[*row, *[fill] * (longest - len(row))] for row in rows])
