"""The benchmarks themselves, small: what they say must be there, how long it took is nobody's business here."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from benchmarks import environment, forecast, levers, memory, prepare, saving
from benchmarks.bed import Bed
from benchmarks.contestants.levers import Moved
from benchmarks.machine import occasion
from benchmarks.savers import savers
from benchmarks.tokenised import Lesson
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
    # Without torch the process takes about 64 MiB, and is looked at now and then.
    assert all(one["peak"]["own"] > 2**25 and one["fetch"]["median"] > 0 for one in measured)


@pytest.mark.slow
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


def test_saving_beside_a_plain_script(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = "--shape tiny --device cpu --repeats 2 --quiet 2 --rows 1 --tokens 16".split()
    assert saving.main([*words, "--results", str(tmp_path), "--work", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    assert all(f"| {name} " in shown for name in ("plain", "plain-fsync", "fulltune", "fulltune-waiting"))
    found = record(tmp_path, "saving")
    measured = found["measured"]
    assert isinstance(measured, dict)
    for rounds in measured.values():
        assert len(rounds) == 2
        assert all(one["updates"] >= 1 and one["stood"] >= one["blocked"] > 0 for one in rounds)
    assert all(one["stood"] == one["blocked"] for name in measured if name != "fulltune" for one in measured[name])
    text = (tmp_path / "saving.md").read_text() + json.dumps(found)
    assert str(tmp_path) not in text and str(ROOT) not in text
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == [], "what it worked on is removed"


def test_all_save_the_same_state(tmp_path: Path) -> None:
    bed = Bed("tiny", "cpu", "float32", rows=1, tokens=16)
    for number in (1, 2):
        bed.update()
        (tmp_path / str(number)).mkdir()
        for saver in savers(bed, tmp_path / str(number)).values():
            saver.save(number)
            saver.wait()
        files = (tmp_path / str(number)).rglob("*.safetensors")
        weights = [load_file(path) for path in files if path.stem in ("model", "weights")]
        assert len(weights) == 4
        own = dict(bed.model.named_parameters())
        for saved in weights:
            assert saved.keys() == own.keys()
            assert all(torch.equal(saved[name], own[name]) for name in own)


@pytest.mark.slow
def test_the_forecast_beside_what_is_held(tmp_path: Path) -> None:
    """In a process of its own: torch's agent leaves files open, which is an error here."""
    words = [sys.executable, "-m", "benchmarks.forecast", "--tiny", "--results", str(tmp_path)]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "- inside: 2 of 2" in done.stdout
    measured = record(tmp_path, "forecast")["measured"]
    assert isinstance(measured, list)
    assert [(one["engine"], one["peak"] > 1 << 20) for one in measured] == [("single", True), ("fsdp2", True)]


def test_peaks_of_an_earlier_run_are_held_against_a_new_forecast(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = ["tiny, single, float32, padded, 2 x 16", "tiny, fsdp2, float32, padded, 2 x 16"]
    before = tmp_path / "before.json"
    for peaks, code, inside in (((50 << 20, 60 << 20), 0, "2 of 2"), ((50 << 20, 1 << 40), 1, "1 of 2")):
        made = [{"row": row, "peak": peak} for row, peak in zip(rows, peaks, strict=True)]
        before.write_text(json.dumps({"measured": made}))
        assert forecast.main(["--tiny", "--again", str(before), "--results", str(tmp_path)]) == code
        shown = capsys.readouterr().out
        assert f"- inside: {inside}" in shown
        assert "- peaks: those of before.json" in shown


@pytest.mark.slow
def test_a_lever_beside_none(tmp_path: Path) -> None:
    words = "--model tiny --data embedded --levers selective --batch 2 --updates 2 --cycles 1 --rounds 1 --threads 1"
    assert levers.main([*words.split(), "--results", str(tmp_path)]) == 0
    found = record(tmp_path, "levers")
    assert found["differences"] == {"none": 0, "selective": 0}
    measured = found["measured"]
    assert isinstance(measured, dict)
    ((one,), (other,)) = measured["none"], measured["selective"]
    assert one["losses"] == other["losses"]
    assert len(set(one["losses"])) == 4, "it learns"
    assert min(one["peak"], other["peak"]) > 1 << 20
    assert str(tmp_path) not in (tmp_path / "levers.md").read_text()


def test_a_lever_that_moves_a_loss_is_seen() -> None:
    moved = [
        Moved(peak=peak << 20, seconds=[2.0, 2.0], cpu=[cpu, cpu], losses=losses)
        for peak, cpu, losses in ((100, 1.0, [3.0, 2.0]), (80, 1.5, [3.0, 2.0]), (60, 2.0, [3.0, 1.75]))
    ]
    measured = {name: [one] for name, one in zip(("none", "selective", "one example"), moved, strict=True)}
    assert [levers.difference(measured, name) for name in measured] == [0, 0, 0.25]
    lesson = Lesson(path=Path("x"), examples=1, tokens=30, supervised=9, longest=20)
    shown = levers.page(occasion("benchmarks.levers", []), levers._asked(["--threads", "1"]), lesson, measured)
    line = next(line for line in shown.splitlines() if line.startswith("| one example"))
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    assert cells == ["one example", "60 MiB", "60%", "15", "15", "2.00 (2.00 to 2.00)", "1.00", "2.5e-01"]


def test_cases_of_the_forecast_are_picked_by_their_words(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = tmp_path / "before.json"
    before.write_text(json.dumps({"measured": [{"row": "tiny, fsdp2, float32, padded, 2 x 16", "peak": 60 << 20}]}))
    words = ["--tiny", "--only", "fsdp2", "--again", str(before), "--results", str(tmp_path)]
    assert forecast.main(words) == 0
    assert "- inside: 1 of 1" in capsys.readouterr().out


def test_every_case_of_the_forecast_is_another() -> None:
    names = [str(row) for row in forecast.ROWS]
    assert len(set(names)) == len(names) > 20
