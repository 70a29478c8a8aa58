"""The ground: errors in three lines, tables, whole files."""

import errno
import json
import math
from dataclasses import dataclass
from pathlib import Path

import pytest
from safetensors import SafetensorError

from fulltune.base.errors import SHOWN_PER_CODE, CheckpointError, DataError, Fault, RecipeError
from fulltune.base.files import (
    fingerprint,
    read_record,
    sweep,
    to_json,
    whole_folder,
    write_record,
    write_whole,
    writing,
)
from fulltune.base.records import Every, Progress
from fulltune.base.table import Table


def test_an_error_is_what_where_mend() -> None:
    fault = RecipeError("no such field", where="r.yaml:3", mend="remove it")
    assert str(fault).splitlines() == ["error: no such field", "where: r.yaml:3", "mend:  remove it"]


def test_many_faults_are_all_named() -> None:
    faults = [Fault("bad", f"f:{n}", "mend it", "bad") for n in range(SHOWN_PER_CODE + 7)]
    text = str(DataError(faults=faults, note="in all"))
    assert all(f"f:{n}" in text for n in range(SHOWN_PER_CODE + 7))
    assert text.endswith("in all")


def test_a_table_suggests_and_reaches_outside() -> None:
    table = Table("thing", {"cosine": 1})
    assert table["cosine"] == 1
    assert table["math:pi"] == math.pi
    with pytest.raises(RecipeError, match="did you mean 'cosine'"):
        table["cosin"]
    for name in ("nosuchmodule:x", "math:nosuchname"):
        with pytest.raises(RecipeError):
            table[name]


@pytest.mark.parametrize("name", ["cosin", "nosuchmodule:x", "math:nosuchname", ":x", ".a:x", "math:", "a b:c", "a::b"])
def test_an_unknown_name_says_where_it_was_asked_for(name: str) -> None:
    with pytest.raises(RecipeError) as caught:
        Table("thing", {"cosine": 1}).find(name, where="optim.thing")
    (fault,) = caught.value.faults
    assert fault.where == "optim.thing"
    assert fault.mend


def test_write_whole_leaves_no_draft(tmp_path: Path) -> None:
    write_whole(tmp_path / "a/b.txt", "one")
    write_whole(tmp_path / "a/b.txt", "two")
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["b.txt"]
    assert (tmp_path / "a/b.txt").read_text() == "two"


def test_whole_folder_is_all_or_nothing(tmp_path: Path) -> None:
    target = tmp_path / "new/deep/folder"
    with pytest.raises(KeyError), whole_folder(target) as draft:
        (draft / "x").write_text("half")
        raise KeyError
    assert list(tmp_path.iterdir()) == []
    with whole_folder(target) as draft:
        (draft / "x").write_text("one")
    with whole_folder(target) as draft:
        (draft / "y").write_text("two")
    assert [path.name for path in target.iterdir()] == ["y"]
    assert [path.name for path in target.parent.iterdir()] == ["folder"]


def test_a_failed_replacement_keeps_the_old_folder(tmp_path: Path) -> None:
    with whole_folder(tmp_path / "f") as draft:
        (draft / "x").write_text("old")
    with pytest.raises(KeyError), whole_folder(tmp_path / "f"):
        raise KeyError
    assert (tmp_path / "f/x").read_text() == "old"


def test_records_go_through_json_with_nan_named(tmp_path: Path) -> None:
    record = Progress(update=3, best_score=math.nan)
    assert to_json(record)["best_score"] == "NaN"
    write_record(tmp_path / "p.json", record)
    json.loads((tmp_path / "p.json").read_text(), parse_constant=lambda name: pytest.fail(name))
    again = read_record(tmp_path / "p.json", Progress)
    assert again.update == 3
    assert math.isnan(again.best_score or 0)


def test_a_record_that_is_none_is_a_damaged_folder(tmp_path: Path) -> None:
    (tmp_path / "list.json").write_text("[]")
    (tmp_path / "folder.json").mkdir()
    for name, said in (("list", "not a Progress"), ("folder", "cannot be read"), ("none", "cannot be read")):
        with pytest.raises(CheckpointError, match=said):
            read_record(tmp_path / f"{name}.json", Progress)


def test_fingerprints_ignore_key_order_only() -> None:
    assert fingerprint({"a": 1, "b": 2}) == fingerprint({"b": 2, "a": 1})
    assert fingerprint([1, 2]) != fingerprint([2, 1])


def test_every_prints_as_it_is_written() -> None:
    assert [str(Every(50, "updates")), str(Every(0.5, "epochs")), str(Every(10, "minutes"))] == [
        "50",
        "0.5 epochs",
        "10 min",
    ]
    assert [str(Every(1_000_000, "updates")), str(Every(1e-5, "epochs")), str(Every(1234567.5, "minutes"))] == [
        "1000000",
        "0.00001 epochs",
        "1234567.5 min",
    ]


@dataclass(frozen=True)
class _Inner:
    values: tuple[float, ...]


def test_infinities_have_names() -> None:
    assert to_json(_Inner((math.inf, -math.inf, 1.0))) == {"values": ["Infinity", "-Infinity", 1.0]}


def test_files_of_a_whole_folder_can_be_read_by_others(tmp_path: Path) -> None:
    """safetensors writes its files for their owner alone; a model folder is served by somebody else."""
    with whole_folder(tmp_path / "f") as draft:
        (draft / "x").write_text("x")
        (draft / "x").chmod(0o600)
    mode = (tmp_path / "f/x").stat().st_mode
    (tmp_path / "plain").write_text("x")
    assert mode == (tmp_path / "plain").stat().st_mode


def test_drafts_of_a_killed_process_are_swept_and_nothing_else(tmp_path: Path) -> None:
    for name in (".step-00000003.part-abc", ".rehearsal.part-x", "step-00000002", "part-1", ".hidden"):
        (tmp_path / name).mkdir()
    sweep(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".hidden", "part-1", "step-00000002"]
    sweep(tmp_path / "none")


@pytest.mark.parametrize("new_stands", [True, False])
def test_a_replacement_killed_between_its_renames_is_finished_or_undone(tmp_path: Path, new_stands: bool) -> None:
    old, target = tmp_path / ".model.old", tmp_path / "model"
    for folder in (old, target) if new_stands else (old,):
        folder.mkdir()
        (folder / "file").write_text(folder.name)
    with pytest.raises(KeyError), whole_folder(target):
        raise KeyError
    assert (target / "file").read_text() == ("model" if new_stands else ".model.old")
    with whole_folder(target) as draft:
        (draft / "file").write_text("newest")
    assert (target / "file").read_text() == "newest"
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_disk_that_safetensors_found_full_is_an_os_error(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No space left") as caught, writing(tmp_path / "x"):
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")
    assert caught.value.errno == errno.ENOSPC
    assert caught.value.filename == str(tmp_path / "x")
    with pytest.raises(SafetensorError), writing(tmp_path / "x"):
        raise SafetensorError("header too large")
