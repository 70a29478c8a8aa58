"""The benchmarks themselves, small: what they say must be there, how long it took is nobody's business here."""

import json
import os
from pathlib import Path

import pytest

from benchmarks import environment, memory, prepare
from tests.conftest import ROOT


def record(folder: Path, name: str) -> dict[str, object]:
    (path,) = folder.glob(f"{name}-*.json")
    found: dict[str, object] = json.loads(path.read_text())
    return found


@pytest.mark.slow
def test_fulltune_beside_datasets(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = "--rows 200 --processes 1 --repeats 1 --memory-repeats 0 --against datasets".split()
    assert prepare.main([*words, "--results", str(tmp_path), "--work", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    assert "datasets: the same tokens in all 200 rows, and the same of them taught." in shown
    found = record(tmp_path, "prepare")
    assert found["equal_totals"] == {"datasets": True}
    assert set(found["contestants"]) == {"fulltune", "datasets"}  # type: ignore[call-overload]
    page = (tmp_path / "prepare.md").read_text()
    assert page.startswith(shown.rstrip())
    for text in (page, json.dumps(found)):
        assert str(tmp_path) not in text and str(ROOT) not in text
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == [], "what it worked on is removed"


@pytest.mark.slow
def test_memory_by_the_number_of_rows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert memory.main(["--rows", "400", "200", "--results", str(tmp_path), "--work", str(tmp_path)]) == 0
    assert "200 to 400" in capsys.readouterr().out
    measured = record(tmp_path, "memory")["measured"]
    assert isinstance(measured, list)
    assert [one["rows"] for one in measured] == [200, 400]
    assert all(one["peak"]["own"] > 2**26 and one["fetch"]["median"] > 0 for one in measured)


def test_a_contestant_that_fails_says_why(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty").mkdir()
    words = [
        "--rows",
        "20",
        "--against",
        "--tokenizer",
        str(tmp_path / "empty"),
        "--results",
        str(tmp_path / "results"),
    ]
    assert prepare.main(words) == 1
    assert "the folder has no tokenizer" in capsys.readouterr().err
    assert not (tmp_path / "results").exists()


@pytest.mark.slow
def test_trl(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = os.environ.get("FULLTUNE_TRL_PYTHON")
    if given is None and not environment.is_ready():
        pytest.skip("no environment with TRL: make bench-prepare makes one, FULLTUNE_TRL_PYTHON names another")
    words = "--rows 200 --processes 2 --repeats 1 --against trl".split()
    words += [] if given is None else ["--trl-python", given]
    assert prepare.main([*words, "--results", str(tmp_path)]) == 0
    assert "trl: the same tokens in all 200 rows, and the same of them taught." in capsys.readouterr().out
