"""A model that no process has whole begins as one that was loaded whole, to the bit."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests import tiny
from tests.distributed.ranks import together

FILE = "model.safetensors"


def shards(path: Path, kind: str, dtype: torch.dtype, size: str = "50GB") -> None:
    tiny.model(kind).to(dtype).save_pretrained(path, max_shard_size=size)


def rewritten(path: Path, act: Any) -> None:
    tensors = act(load_file(path / FILE))
    save_file(tensors, path / FILE, metadata={"format": "pt"})


def started(folder: Path, size: int, replicas: int = 1) -> list[dict[str, Any]]:
    """By rank, what it found of each model folder."""
    together(size, "tests.distributed.starts", str(folder), str(replicas))
    return [json.loads((folder / f"rank-{rank}.json").read_text()) for rank in range(size)]


def same(found: dict[str, Any], name: str) -> None:
    assert found["without"], name
    assert found["differ"] == [], name
    assert found["ties"] and found["answers"] and found["attention"] and found["training"] and found["conversions"], name


def test_it_begins_to_the_bit_as_one_that_was_loaded_whole(tmp_path: Path) -> None:
    models = tmp_path / "models"
    for kind in ("llama", "llama-tied", "qwen3", "gpt2"):
        shards(models / f"{kind}-float32", kind, torch.float32)
        shards(models / f"{kind}-bf16-shards", kind, torch.bfloat16, "20KB")
        assert len(list((models / f"{kind}-bf16-shards").glob("*.safetensors"))) > 2
    for found in started(models, 2):
        assert len(found) == 8
        for name, one in found.items():
            same(one, name)
            assert one["cut"] and one["isolates"] and one["told"] == [], name
