"""Compiled blocks: the same losses from fewer kernels, and no length is compiled anew."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch._dynamo.utils import counters

import fulltune
from fulltune.base.errors import RecipeError
from fulltune.model.compiled import compile_blocks
from fulltune.recipe.load import load_recipe
from fulltune.training.journal import read
from tests import tiny

NEEDS_COMPILER = pytest.mark.skipif(
    shutil.which(os.environ.get("CXX", "g++")) is None, reason="there is no C++ compiler: install g++"
)


def test_without_a_compiler_it_is_said_before_anything_is_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))  # what was compiled before needs none
    torch.compiler.reset()
    compiler = torch._inductor.config.patch({"cpp.cxx": (None, "no-such-compiler")})
    with compiler, pytest.raises(RecipeError, match=r"C\+\+ compiler.*\n.*train\.compile"):
        compile_blocks([], "cpu")


@pytest.mark.parametrize("asked", [{"engine": {"name": "zero2"}}, {"memory": {"offload": "activations"}}])
def test_what_it_does_not_go_with_is_refused(asked: dict[str, Any]) -> None:
    values = {"model": {"path": "/m"}, "data": {"train": "/d.jsonl"}, "train": {"compile": True}, **asked}
    with pytest.raises(RecipeError, match=r"train\.compile"):
        load_recipe(values, {})


@NEEDS_COMPILER
@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # dynamo asks every tensor
def test_landmine_J4_compiled_blocks_learn_the_same_whatever_the_lengths(tmp_path: Path) -> None:
    model = tiny.folder(tmp_path / "model")
    rows = tiny.jsonl(tmp_path / "rows.jsonl", tiny.rows(40))
    values = tiny.recipe(
        model,
        rows,
        data={"heldout": 0.2},
        train={"steps": 6, "batch_examples": 5, "micro_examples": 2, "precision": "float32"},
        optim={"lr": 1e-3},
        evaluate={"every": 3, "samples": 2, "sample_tokens": 8},
    )
    (tmp_path / "recipe.yaml").write_text(json.dumps(values))

    def trained(name: str, **sections: Any) -> tuple[list[float], ...]:
        out = tmp_path / name
        fulltune.train(tmp_path / "recipe.yaml", out=out, **sections)
        lines = list(read(out / "journal.jsonl", "step"))
        evaluations = [line["scores"]["heldout.loss"] for line in read(out / "journal.jsonl", "evaluation")]
        return [line["loss"] for line in lines], [line["grad_norm"] for line in lines], evaluations

    plain = trained("plain")
    for checkpointing in ("none", "full", "selective"):
        counters.clear()
        compiled = trained(checkpointing, train={"compile": True}, memory={"checkpointing": checkpointing})
        graphs = counters["stats"]["unique_graphs"]
        assert 3 <= graphs <= 8, "the probe; to train and to measure, of several rows and of one; not of every length"
        for ours, theirs in zip(compiled, plain, strict=True):
            assert ours == pytest.approx(theirs, rel=1e-5)
