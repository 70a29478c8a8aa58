"""Rows that several wrote are read by any other number of processes."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from fulltune.base.errors import CheckpointError
from fulltune.engine.pieces import Piece, Pieces, file_of, metadata
from fulltune.engine.tensors import write_tensors

WHOLE = torch.arange(21, dtype=torch.float32).reshape(7, 3)


def written(folder: Path, cuts: list[int]) -> Path:
    """The whole, cut before these rows, one file for each part."""
    for number, (start, stop) in enumerate(zip([0, *cuts], [*cuts, 7], strict=True)):
        tensors = {"weight": WHOLE[start:stop].contiguous()}
        if number == 0:
            tensors["count"] = torch.tensor(5.0)
        write_tensors(folder / file_of("weights", number), tensors, metadata({"weight": Piece(start, 7)}))
    return folder


@pytest.mark.parametrize("cuts", [[], [3], [3, 6], [2, 4, 6], [4, 7], [7]])
@pytest.mark.parametrize("readers", [1, 2, 3, 4, 9])
def test_any_number_reads_what_any_number_wrote(tmp_path: Path, cuts: list[int], readers: int) -> None:
    pieces = Pieces(written(tmp_path, cuts), "weights")
    assert sorted(pieces) == ["count", "weight"]
    assert pieces.shape("weight") == (7, 3)
    assert float(pieces.read("count")) == 5
    rows = -(-7 // readers)
    parts = []
    for reader in range(readers):
        start = min(reader * rows, 7)
        parts.append(pieces.read("weight", Piece(start, 7), min(rows, 7 - start)))
        assert parts[-1].shape == (min(rows, 7 - start), 3)
    assert torch.equal(torch.cat(parts), WHOLE)
    assert torch.equal(pieces.read("weight"), WHOLE)


def test_a_file_without_a_word_of_it_is_whole(tmp_path: Path) -> None:
    write_tensors(tmp_path / "weights.safetensors", {"weight": WHOLE})
    assert torch.equal(Pieces(tmp_path, "weights").read("weight"), WHOLE)
    assert torch.equal(load_file(tmp_path / "weights.safetensors")["weight"], WHOLE), "any other reader reads it too"


@pytest.mark.parametrize("missing", [0, 1, 2])
def test_rows_that_nobody_has_are_named(tmp_path: Path, missing: int) -> None:
    written(tmp_path, [2, 4])
    (tmp_path / file_of("weights", missing)).unlink()
    start = 2 * missing
    with pytest.raises(CheckpointError, match=f"rows {start} to 7 of weight" if missing else "rows 0 to 7 of weight"):
        Pieces(tmp_path, "weights").read("weight")


def test_other_stems_are_not_mixed_up(tmp_path: Path) -> None:
    written(tmp_path, [3])
    write_tensors(tmp_path / "optimizer.safetensors", {"weight/exp_avg": WHOLE})
    assert sorted(Pieces(tmp_path, "optimizer")) == ["weight/exp_avg"]
