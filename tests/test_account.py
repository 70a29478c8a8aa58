"""Every run leaves a report, however it ends, and the commands make the same again."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

import fulltune
from fulltune import account
from fulltune.base.errors import CheckpointError, DiskError, Interrupted
from fulltune.engine.native import NativeEngine
from tests import tiny
from tests.command import run as command


@pytest.fixture
def recipe(llama: Path, data: Path) -> dict[str, Any]:
    return tiny.recipe(llama, data)


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory, llama: Path) -> Path:
    """A run that is done; tests copy it and do not change it."""
    folder = tmp_path_factory.mktemp("done")
    rows = tiny.jsonl(folder / "rows.jsonl", tiny.rows(40))
    fulltune.train(tiny.recipe(llama, rows), out=folder / "run")
    return folder / "run"


def undated(page: str) -> str:
    return re.sub(r"\d{4}-\d\d-\d\d \d\d:\d\d UTC", "", page)


def failing(monkeypatch: pytest.MonkeyPatch, at: int, fault: Exception) -> None:
    """Make the update of that number fail."""
    real, made = NativeEngine.update, [0]

    def update(self: NativeEngine, rates: Any) -> Any:
        made[0] += 1
        if made[0] == at:
            raise fault
        return real(self, rates)

    monkeypatch.setattr(NativeEngine, "update", update)


@pytest.mark.parametrize(
    "fault",
    [DiskError("the disk is full", mend="free some space"), Interrupted("stopped by SIGTERM"), ValueError("a bug")],
)
def test_a_run_that_ends_early_leaves_a_report_of_what_it_did_and_why(
    tmp_path: Path, recipe: dict[str, Any], monkeypatch: pytest.MonkeyPatch, fault: Exception
) -> None:
    with monkeypatch.context() as patch:
        failing(patch, 4, fault)
        with pytest.raises(type(fault)):
            fulltune.train(recipe, out=tmp_path / "run")
    page = (tmp_path / "run" / "report.html").read_text()
    assert "This run is not done: it stands after update" in page
    assert str(fault).splitlines()[0] in page
    assert "A row as the model is taught it" in page
    assert "<mark>" in page
    fulltune.train(recipe, out=tmp_path / "run")
    page = (tmp_path / "run" / "report.html").read_text()
    assert "This run is not done" not in page
    assert str(fault).splitlines()[0] not in page


def test_what_is_refused_before_anything_was_done_leaves_the_folder_as_it_was(tmp_path: Path, done: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(done, run)
    for path in ("report.html", "record.json"):
        (run / path).unlink()
    for weights in run.glob("checkpoints/*/weights.safetensors"):
        weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(CheckpointError, match="none is whole"):
        fulltune.train(run)
    assert not (run / "report.html").exists()


@pytest.mark.parametrize("second", [OSError(28, "No space left on device"), ValueError("[Errno 28]: a bug of ours")])
def test_a_report_that_cannot_be_written_hides_no_failure(
    tmp_path: Path,
    recipe: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    second: Exception,
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise second

    failing(monkeypatch, 3, Interrupted("stopped by SIGTERM"))
    monkeypatch.setattr(account, "write_page", full)
    with pytest.raises(Interrupted, match="SIGTERM"):
        fulltune.train(recipe, out=tmp_path / "run")
    assert "the report could not be written: [Errno 28]" in caplog.text


@pytest.mark.parametrize("older", [None, "<!doctype html><!-- written by fulltune report -->\nnot done"])
def test_a_run_that_was_killed_before_its_report_gets_it_by_the_same_command(
    tmp_path: Path, done: Path, older: str | None
) -> None:
    run = tmp_path / "run"
    shutil.copytree(done, run)
    before = (run / "report.html").read_text()
    (run / "report.html").unlink()
    if older is not None:  # from when it was stopped for the first time
        (run / "report.html").write_text(older)
    fulltune.train(run)
    assert undated((run / "report.html").read_text()).replace(str(run), str(done)) == undated(before)
    (run / "report.html").write_text(before + "<!-- kept -->")
    fulltune.train(run)
    assert (run / "report.html").read_text().endswith("<!-- kept -->"), "nothing is to be caught up with"


def test_a_file_of_that_name_that_is_not_ours_stays(
    tmp_path: Path, recipe: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    fulltune.prepare(recipe, out=tmp_path / "run")
    (tmp_path / "run" / "report.html").write_text("years of work")
    fulltune.train(recipe, out=tmp_path / "run")
    assert (tmp_path / "run" / "report.html").read_text() == "years of work"
    assert "no report is written" in caplog.text


def test_the_command_writes_the_report_again(tmp_path: Path, done: Path) -> None:
    finished = command("report", str(done), "--out", "story.html", cwd=tmp_path)
    assert (finished.returncode, finished.stdout) == (0, "story.html is written\n")
    assert undated((tmp_path / "story.html").read_text()) == undated((done / "report.html").read_text())


def test_a_report_needs_a_run_folder(tmp_path: Path) -> None:
    finished = command("report", str(tmp_path), cwd=tmp_path)
    assert finished.returncode == 2
    assert finished.stderr.splitlines()[0] == "error: this is no run folder"


def test_without_the_prepared_data_a_report_says_why_no_row_is_shown(tmp_path: Path, done: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(done, run)
    shutil.rmtree(run / "data")
    page = fulltune.report(run).read_text()
    assert "Not shown: the prepared data is damaged" in page
    assert "up to 64" in page, "lengths come from the card then"


def test_the_command_compares(tmp_path: Path, done: Path, llama: Path) -> None:
    other = tmp_path / "other"
    fulltune.train(done, out=other, optim={"lr": 2e-3})
    finished = command("compare", str(done), str(other), "--page", "both.html", cwd=tmp_path)
    assert finished.returncode == 0
    assert "optim.lr" in finished.stdout
    assert finished.stderr.endswith("both.html is written\n")
    assert "optim.lr" in (tmp_path / "both.html").read_text()
    values = json.loads(command("compare", str(done), str(other), "--json", cwd=tmp_path).stdout)
    assert list(values["runs"]) == ["run", "other"]
    assert values["runs"]["other"]["recipe"] == {"optim.lr": 2e-3}
    assert command("compare", str(done), cwd=tmp_path).returncode == 2


def test_the_record_says_how_far_weights_moved(done: Path) -> None:
    weights = json.loads((done / "record.json").read_text())["weights"]
    parts = {(each["layer"], each["part"]) for each in weights}
    assert {(0, "self_attn"), (1, "mlp"), (None, "model.embed_tokens")} <= parts
    assert all(0 < each["relative"] < 1 for each in weights)
