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


@pytest.mark.parametrize("cuts", [[5, 13], [1, 2, 20], [9], [0, 21], []])
def test_rows_and_numbers_are_read_from_each_other(tmp_path: Path, cuts: list[int]) -> None:
    """A part may begin in the middle of a row, as ZeRO cuts; who wants rows gets rows, and the other way round."""
    lines, rows = tmp_path / "lines", written(tmp_path, [2, 3])
    lines.mkdir()
    for number, (start, stop) in enumerate(zip([0, *cuts], [*cuts, 21], strict=True)):
        said = metadata({"weight": Piece(start, 21, (7, 3))})
        write_tensors(lines / file_of("weights", number), {"weight": WHOLE.reshape(-1)[start:stop].contiguous()}, said)
    for pieces in (Pieces(lines, "weights"), Pieces(rows, "weights")):
        assert pieces.shape("weight") == (7, 3)
        assert torch.equal(pieces.read("weight"), WHOLE)
        for start in range(7):
            assert torch.equal(pieces.read("weight", Piece(start, 7), 7 - start), WHOLE[start:])
        for start in range(21):
            for stop in range(start, 22):
                found = pieces.read("weight", Piece(start, 21, (7, 3)), stop - start)
                assert torch.equal(found, WHOLE.reshape(-1)[start:stop])


def test_a_file_without_a_word_of_it_is_whole(tmp_path: Path) -> None:
    write_tensors(tmp_path / "weights.safetensors", {"weight": WHOLE})
    assert torch.equal(Pieces(tmp_path, "weights").read("weight"), WHOLE)
    assert torch.equal(load_file(tmp_path / "weights.safetensors")["weight"], WHOLE), "any other reader reads it too"


@pytest.mark.parametrize("missing", [0, 1, 2])
def test_rows_that_nobody_has_are_named(tmp_path: Path, missing: int) -> None:
    written(tmp_path, [2, 4])
    (tmp_path / file_of("weights", missing)).unlink()
    with pytest.raises(CheckpointError, match=f"numbers {6 * missing} to 21 of weight"):
        Pieces(tmp_path, "weights").read("weight")


def test_other_stems_are_not_mixed_up(tmp_path: Path) -> None:
    written(tmp_path, [3])
    write_tensors(tmp_path / "optimizer.safetensors", {"weight/exp_avg": WHOLE})
    assert sorted(Pieces(tmp_path, "optimizer")) == ["weight/exp_avg"]
