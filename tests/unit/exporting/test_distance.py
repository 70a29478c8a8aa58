"""How far weights moved is the L2 distance by the plain formula, whatever the files look like."""

import json
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from fulltune.exporting import distance
from fulltune.exporting.distance import weight_changes
from tests import tiny


def test_each_part_is_the_formula_over_all_its_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base, result = tiny.folder(tmp_path / "base", seed=1), tiny.folder(tmp_path / "result", seed=2)
    old, new = (load_file(folder / "model.safetensors") for folder in (base, result))
    whole = weight_changes(base, result)
    found = {(each.layer, each.part): each for each in whole}
    assert [each.layer for each in whole] == [0] * 4 + [1] * 4 + [None] * 3
    for (layer, part), each in found.items():
        begins = f"model.layers.{layer}.{part}." if layer is not None else part
        names = [name for name in old if name.startswith(begins)]
        moved = math.sqrt(sum(float((new[name].double() - old[name].double()).square().sum()) for name in names))
        size = math.sqrt(sum(float(old[name].double().square().sum()) for name in names))
        assert each.relative == pytest.approx(moved / size, rel=1e-12)
        assert each.parameters == sum(old[name].numel() for name in names)
    assert sum(each.parameters for each in whole) == sum(value.numel() for value in old.values())
    monkeypatch.setattr(distance, "_PIECE", 100)  # in pieces of three rows it is the same
    for whole_part, in_pieces in zip(whole, weight_changes(base, result), strict=True):
        assert in_pieces.relative == pytest.approx(whole_part.relative, rel=1e-12)


def test_the_same_weights_have_not_moved(tmp_path: Path) -> None:
    base = tiny.folder(tmp_path / "base")
    assert {each.relative for each in weight_changes(base, base)} == {0.0}


def test_shards_number_formats_and_what_only_one_side_has(tmp_path: Path) -> None:
    base, result = tmp_path / "base", tmp_path / "result"
    base.mkdir(), result.mkdir()
    save_file({"h.0.w": torch.ones(4).bfloat16(), "scale": torch.tensor(2.0)}, base / "one.safetensors")
    save_file({"h.1.w": torch.zeros(2, 2), "gone": torch.ones(3), "wider": torch.ones(3)}, base / "two.safetensors")
    listed = {"h.0.w": "one", "scale": "one", "h.1.w": "two", "gone": "two", "wider": "two"}
    index = {"weight_map": {name: f"{file}.safetensors" for name, file in listed.items()}}
    (base / "model.safetensors.index.json").write_text(json.dumps(index))
    made = {
        "h.0.w": torch.full((4,), 1.5),
        "h.1.w": torch.ones(2, 2),
        "scale": torch.tensor(3.0),
        "wider": torch.ones(4),
    }
    save_file({**made, "new": torch.ones(1)}, result / "model.safetensors")
    found = {(each.layer, each.part): each.relative for each in weight_changes(base, result)}
    assert found == {(0, "w"): 0.5, (1, "w"): math.inf, (None, "scale"): 0.5}


def test_a_base_without_safetensors_has_no_answer(tmp_path: Path) -> None:
    assert weight_changes(tmp_path, tiny.folder(tmp_path / "result")) == ()
