"""Landmines J and K: blocks that are computed again, and what several processes do to them. docs/landmines.md."""

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

import fulltune
from fulltune.model.facts import blocks, checkpoint_blocks
from tests import tiny
from tests.distributed.ranks import together


def counted(model: Any) -> list[bool]:
    """Grows by one whenever the first block's MLP is computed."""
    calls: list[bool] = []
    blocks(model)[0].mlp.register_forward_pre_hook(lambda *_: calls.append(True))
    return calls


@pytest.mark.parametrize("kind", ["llama", "gpt2", "mixtral"])
def test_landmine_J2_checkpointing_is_switched_on_by_its_present_name(kind: str) -> None:
    """transformers renamed it; the old name warns, and will go."""
    model = tiny.model(kind)
    calls = counted(model)
    with warnings.catch_warnings():
        warnings.simplefilter("error", FutureWarning)
        checkpoint_blocks(model)
    logits = model.train()(input_ids=torch.arange(8)[None], use_cache=False).logits
    assert len(calls) == 1
    logits.sum().backward()
    assert len(calls) == 2


@pytest.mark.parametrize("engine", ["single", "ddp", "fsdp2"])
def test_landmine_J3_what_the_recipe_says_of_checkpointing_is_what_runs(
    tmp_path: Path, llama: Path, data: Path, engine: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Through a whole run: each block of a training pass is computed twice if asked for, else once."""
    from transformers.models.llama.modeling_llama import LlamaAttention

    real, passes = LlamaAttention.forward, {}
    for asked in ("none", "full"):
        calls: list[bool] = []

        def counting(self: Any, *given: Any, calls: list[bool] = calls, **named: Any) -> Any:
            calls.append(self.training and torch.is_grad_enabled())
            return real(self, *given, **named)

        monkeypatch.setattr(LlamaAttention, "forward", counting)
        recipe = tiny.recipe(
            llama,
            data,
            data={"heldout": 0},
            train={"steps": 2, "micro_examples": 8},
            memory={"checkpointing": asked},
            engine={"name": engine},
            evaluate={"samples": 0},
        )
        fulltune.train(recipe, out=tmp_path / f"{engine}-{asked}")
        passes[asked] = sum(calls)
    assert passes["full"] == 2 * passes["none"] > 0


@pytest.mark.slow
def test_landmine_J5_blocks_are_computed_again_in_bfloat16_by_two_processes(tmp_path: Path) -> None:
    together(2, "tests.distributed.again", str(tmp_path))
    for rank in range(2):
        once, waits, *again = json.loads((tmp_path / f"rank-{rank}.json").read_text())
        assert (waits["curve"], waits["calls"]) == (once["curve"], once["calls"])
        for found in again:
            assert found["curve"] == once["curve"], "to the bit, dropout too"
            assert found["calls"] == 2 * once["calls"] > 0
        assert len({loss for loss, _ in once["curve"]}) == 5
