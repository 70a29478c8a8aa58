"""The command line: exit codes, three-line errors, results on standard output and progress on standard error."""

import errno
import io
import json
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from fulltune import cli
from fulltune.base.version import __version__
from fulltune.recipe.load import load_recipe
from tests import command, tiny
from tests.unit.base.test_lock import process


def main(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["fulltune", *arguments])
    return cli.main()


@pytest.fixture
def recipe(tmp_path: Path, llama: Path, data: Path) -> Path:
    path = tmp_path / "recipe.yaml"
    path.write_text(json.dumps(tiny.recipe(llama, data)))
    return path


def test_train_prints_results_and_progress_apart(tmp_path: Path, recipe: Path) -> None:
    words = [sys.executable, "-m", "fulltune", "train", "recipe.yaml", "train.steps=3"]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "heldout.loss" in done.stdout
    assert "runs/recipe/model" in done.stdout
    assert "plan: 3 updates" in done.stderr
    assert "update 3/3" in done.stderr
    assert "\x1b" not in done.stderr + done.stdout, "no colours and no bars where there is no terminal"
    again = command.run("train", "runs/recipe", "--json", cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    assert json.loads(again.stdout)["progress"]["update"] == 3
    scores = command.run("evaluate", "runs/recipe", cwd=tmp_path)
    assert scores.stdout.split()[:2] == ["base", "result"]
    exported = command.run("export", "runs/recipe", "out", "--dtype", "bfloat16", cwd=tmp_path)
    assert (tmp_path / "out/model.safetensors").exists(), exported.stderr


def test_a_live_line_on_a_terminal(tmp_path: Path, recipe: Path) -> None:
    words = ("train", str(recipe), "--out", str(tmp_path / "run"))
    code, text = command.run_on_terminal(*words, cwd=tmp_path, errors=True, COLUMNS="120")
    assert code == 0, text
    assert "tokens/s" in text
    assert "\x1b[" in text


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["train", "none.yaml"], 2, "no such recipe"),
        (["train"], 2, "Missing parameter: recipe"),
        (["nonsense"], 2, "No such command"),
        (["train", "recipe.yaml", "--nonsense"], 2, "No such option"),
        (["train", "recipe.yaml", "optim.learning_rate=1"], 2, "optim.lr"),
        (["train", "recipe.yaml", "data.train=none.jsonl"], 3, "no such file"),
        (["train", "recipe.yaml", "data.max_length=300"], 2, "positions for 256"),
        (["train", "recipe.yaml", "model.path=./nowhere"], 2, "no such folder"),
        (["evaluate", "recipe.yaml", "data.heldout=0"], 2, "nothing to measure"),
        (["prepare", "recipe.yaml", "train"], 2, "is no override"),
        (["prepare", "recipe.yaml", "out=x"], 2, "`out` is no field"),
        (["prepare", "recipe.yaml", "fresh=true"], 2, "`fresh` is no field"),
        (["plan", "recipe.yaml", "recipe=x"], 2, "`recipe` is no field"),
        (["train", "recipe.yaml", "sinks=1"], 2, "`sinks` is no field"),
        (["evaluate", "recipe.yaml", "model=x"], 2, "`model` is no field"),
        (["train", "recipe.yaml", "=5"], 2, "is no override"),
        (["train", "recipe.yaml", "optim.schedule=x"], 2, "where: optim.schedule"),
        (["train", "recipe.yaml", "data.train={path: rows.jsonl, format: foo}"], 2, "where: data.train.0.format"),
        (["train", "recipe.yaml", "model.path=" + "x" * 300], 2, "no file can have this name"),
        (["train", "recipe.yaml", "data.train=~nosuchuser/t.jsonl"], 2, "no home folder"),
        (["train", "recipe.yaml/x"], 2, "Not a directory"),
        (["train", "loop"], 2, "Too many levels"),
        (["train", "x" * 300], 2, "File name too long"),
        (["prepare", "recipe.yaml", "--out", "rows.jsonl"], 2, "rows.jsonl is no folder"),
        (["prepare", "recipe.yaml", "--out", "rows.jsonl/x"], 2, "rows.jsonl is no folder"),
        (["prepare", "recipe.yaml", "--out", "loop"], 2, "loop is no folder"),
        (["prepare", "recipe.yaml", "--out", "loop/x"], 2, "loop is no folder"),
        (["prepare", "recipe.yaml", "--out", "/proc/nowhere/x"], 7, "where: /proc/nowhere"),
        (["prepare", "recipe.yaml", "--out", "x" * 300], 7, "File name too long"),
        (["inspect", "recipe.yaml", "--row", "99"], 2, "its rows are 0 to "),
        (["inspect", "recipe.yaml", "--origin", "rows.jsonl:99"], 2, "no row of train comes from rows.jsonl:99"),
        (["inspect", "recipe.yaml", "--split", "retention"], 2, "splits that have rows: train"),
        (["inspect", "recipe.yaml", "--split", "tset"], 2, "is not one of"),
        (["inspect", "recipe.yaml", "--longest", "--random", "2"], 2, "exclude each other"),
        (["inspect", "recipe.yaml", "--html", "rows.jsonl"], 2, "no page of ours"),
        (["inspect", "recipe.yaml", "--html", "/proc/nowhere/x.html"], 7, "where: /proc/nowhere"),
        (["inspect", "recipe.yaml", "row=3"], 2, "`row` is no field"),
        (["quickstart", "--out", "rows.jsonl"], 2, "rows.jsonl is no folder"),
        (["init", "no/such/folder/r.yaml"], 2, "where: no/such/folder"),
        (["init", "/proc/nowhere.yaml"], 7, "where: /proc/nowhere.yaml"),
    ],
)
def test_mistakes_have_their_exit_code_and_no_traceback(
    tmp_path: Path,
    recipe: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    code: int,
    said: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("loop").symlink_to("loop")
    assert main(monkeypatch, *arguments) == code
    found = capsys.readouterr()
    assert said in found.err
    assert "Traceback" not in found.err
    assert found.out == ""


def test_a_full_disk_is_exit_7(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "/x/weights")

    monkeypatch.setattr(cli, "app", full)
    assert main(monkeypatch, "train", "x") == 7
    assert "/x/weights" in capsys.readouterr().err


@pytest.mark.parametrize(
    "fault",
    [
        PermissionError(errno.EACCES, "Permission denied", "rows.jsonl"),
        OSError(errno.EIO, "Input/output error"),
        OSError(errno.ENOSPC, "No space left on device"),
    ],
    ids=str,
)
def test_what_the_disk_says_is_exit_7(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], fault: OSError
) -> None:
    def failing(*_: object, **__: object) -> None:
        raise fault

    monkeypatch.setattr(cli, "app", failing)
    assert main(monkeypatch, "train", "x") == 7
    told = capsys.readouterr().err
    assert f"error: {fault.strerror}" in told
    assert f"where: {fault.filename or 'the disk'}" in told
    assert "mend: " in told


def test_a_fault_of_the_system_without_a_file_is_a_bug_of_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise OSError(errno.EBADF, "Bad file descriptor")

    monkeypatch.setattr(cli, "app", broken)
    with pytest.raises(OSError, match="Bad file descriptor"):
        main(monkeypatch, "train", "x")


def test_a_file_called_runs_is_told(
    tmp_path: Path, recipe: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("runs").write_text("x")
    assert main(monkeypatch, "prepare", "recipe.yaml") == 2
    assert "runs is no folder" in capsys.readouterr().err


def test_a_fresh_run_may_stand_beside_the_current_folder(
    tmp_path: Path, recipe: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    here = tmp_path / "here/below"
    here.mkdir(parents=True)
    monkeypatch.chdir(here)
    for out in (".", ".."):
        assert main(monkeypatch, "prepare", str(recipe), "--out", out, "--fresh") == 0
    assert (tmp_path / "here/below-2/data.json").exists()
    assert (tmp_path / "here-2/data.json").exists()


def test_a_run_without_held_out_data_is_planned_and_trained_again_from_its_folder(
    tmp_path: Path, recipe: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its resolved recipe asks for no score, and an override of the steps stands in place of its epochs."""
    monkeypatch.chdir(tmp_path)
    values = {**json.loads(recipe.read_text()), "train": {"epochs": 1, "batch_examples": 8, "precision": "float32"}}
    values["data"]["heldout"] = 0
    recipe.write_text(json.dumps(values))
    assert main(monkeypatch, "plan", "recipe.yaml") == 0
    assert main(monkeypatch, "plan", "runs/recipe") == 0
    capsys.readouterr()
    assert main(monkeypatch, "plan", "runs/recipe", "train.steps=1", "--json") == 0
    assert json.loads(capsys.readouterr().out)["updates"] == 1


def test_a_bug_of_ours_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(cli, "app", broken)
    with pytest.raises(ZeroDivisionError):
        main(monkeypatch, "train", "x")


def test_ctrl_c_says_how_to_go_on(
    recipe: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Before a stage listens to signals: typer would make it exit code 0 of an empty standard error."""

    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("fulltune.stages.train", interrupted)
    assert main(monkeypatch, "train", str(recipe)) == 130
    assert "same command" in capsys.readouterr().err


def test_a_second_command_on_a_run_is_told_who_writes_to_it(
    tmp_path: Path, recipe: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with process(tmp_path / "run") as (holder, _):
        assert main(monkeypatch, "train", str(recipe), "--out", str(tmp_path / "run")) == 9
    told = capsys.readouterr().err.splitlines()
    assert [line.split(":")[0] for line in told] == ["error", "where", "mend"]
    assert f"process {holder.pid} on {socket.gethostname()}" in told[0]


def test_init_writes_a_recipe_and_never_over_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(monkeypatch, "init") == 0
    load_recipe(tmp_path / "recipe.yaml")
    assert main(monkeypatch, "init") == 2
    assert "exists" in capsys.readouterr().err


def test_schema_and_version(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(monkeypatch, "schema") == 0
    assert json.loads(capsys.readouterr().out)["title"] == "Recipe"
    assert main(monkeypatch) == 0
    assert "quickstart" in capsys.readouterr().out
    assert main(monkeypatch, "--version") == 0
    assert capsys.readouterr().out.strip() == __version__


def test_prepare_plan_and_dry_run_print_json_for_programs(
    tmp_path: Path, recipe: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(monkeypatch, "prepare", "recipe.yaml", "--json") == 0
    assert json.loads(capsys.readouterr().out)["kept"] == 40
    assert main(monkeypatch, "plan", "recipe.yaml", "--json") == 0
    assert json.loads(capsys.readouterr().out)["updates"] == 6
    assert main(monkeypatch, "train", "recipe.yaml", "--dry-run", "--json") == 0
    assert json.loads(capsys.readouterr().out)["seconds_per_update"] > 0
    for verb in ("prepare", "plan"):
        assert main(monkeypatch, verb, "recipe.yaml") == 0
        assert capsys.readouterr().out


def test_check_only_reports_and_keeps_nothing(
    tmp_path: Path, llama: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    made = tiny.rows(40)
    (tmp_path / "recipe.yaml").write_text(json.dumps(tiny.recipe(llama, tiny.jsonl(tmp_path / "rows.jsonl", made))))
    assert main(monkeypatch, "prepare", "recipe.yaml", "--check-only") == 0
    told = capsys.readouterr()
    assert "tokens an epoch" in told.out
    assert not (tmp_path / "runs").exists()
    # Faulty rows are reported as well as refused, and classification rows are fine to look at.
    tiny.jsonl(tmp_path / "rows.jsonl", [*made, {"prompt": "a", "completion": ""}])
    assert main(monkeypatch, "prepare", "recipe.yaml", "--check-only") == 3
    told = capsys.readouterr()
    assert "tokens an epoch" in told.out
    assert "rows.jsonl:41" in told.err
    labelled = [{"text": f"the cat sat {n}", "label": "a" if n % 3 else "b"} for n in range(30)]
    tiny.jsonl(tmp_path / "rows.jsonl", labelled)
    assert main(monkeypatch, "prepare", "recipe.yaml", "--check-only", "--json") == 0
    card = json.loads(capsys.readouterr().out)
    assert card["kept"] == 30
    assert card["doctor"]["labels"]["counts"] == {'"b"': 10, '"a"': 20}
    assert not (tmp_path / "runs").exists()


def test_prepare_prints_what_the_doctor_found(
    tmp_path: Path, recipe: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(monkeypatch, "prepare", "recipe.yaml") == 0
    first = capsys.readouterr().out
    assert "tokens an epoch" in first
    assert main(monkeypatch, "prepare", "recipe.yaml") == 0
    assert capsys.readouterr().out == first, "the same from the card, when nothing is done again"


def test_inspect_shows_what_is_taught(
    tmp_path: Path, recipe: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NO_COLOR", "1")
    assert main(monkeypatch, "inspect", "recipe.yaml", "--tokens") == 0
    shown = capsys.readouterr()
    assert "‹<|assistant|>›⟦" in shown.out
    assert "prepared 40 of 40 rows" in shown.err
    assert "\x1b" not in shown.out
    assert main(monkeypatch, "inspect", "runs/recipe", "--json", "--first", "1") == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert set(row) >= set("origin text ids labels supervised weights length truncated".split())
    assert "/rows.jsonl:" in row["origin"]
    for index, label in enumerate(row["labels"]):
        assert label in (-100, row["ids"][index + 1] if index + 1 < row["length"] else -100)
    assert row["text"].endswith(row["supervised"][-1])
    assert main(monkeypatch, "inspect", "runs/recipe", "--html", "rows.html") == 0
    assert "rows.html" in capsys.readouterr().out
    assert Path("rows.html").read_text().startswith("<!doctype html>")


@pytest.mark.parametrize("forbidden", [False, True])
def test_inspect_is_in_colour_on_a_terminal_unless_forbidden(tmp_path: Path, recipe: Path, forbidden: bool) -> None:
    asked = ("inspect", str(recipe), "--out", str(tmp_path / "run"))
    code, text = command.run_on_terminal(*asked, cwd=tmp_path, **({"NO_COLOR": "1"} if forbidden else {}))
    assert code == 0
    assert ("\x1b[" in text, "⟦" in text) == (not forbidden, forbidden)


def test_chat_keeps_the_conversation_and_ends(
    tmp_path: Path, llama: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("the cat\nand then\n/new\nthe dog\n\n"))
    assert main(monkeypatch, "chat", str(llama), "--tokens", "3") == 0
    assert capsys.readouterr().out.count("> ") >= 4
    bare = tiny.folder(tmp_path / "bare", tokens=tiny.tokenizer(template=None))
    assert main(monkeypatch, "chat", str(bare)) == 3


def test_what_is_wrong_with_a_recipe_is_told_before_anything_heavy_is_loaded(tmp_path: Path) -> None:
    for verb in ("prepare", "inspect", "plan", "train", "sweep", "evaluate"):
        script = (
            "import sys\nfrom fulltune.cli import main\n"
            f"sys.argv = ['fulltune', {verb!r}, 'none.yaml']\ncode = main()\n"
            "heavy = {'torch', 'transformers'} & set(sys.modules)\n"
            "sys.exit(str(heavy) if heavy else code)"
        )
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=tmp_path)
        assert (done.returncode, done.stderr.splitlines()[0]) == (2, "error: there is no such recipe"), verb


def test_help_is_fast_and_loads_no_torch(tmp_path: Path) -> None:
    """Not timed here (tests never are); what makes it fast is that nothing heavy is imported."""
    for verb in ([], ["plan"], ["train"], ["quickstart"]):
        script = (
            "import sys\nfrom fulltune.cli import app\n"
            f"try:\n    app({[*verb, '--help']!r}, standalone_mode=False)\nexcept SystemExit:\n    pass\n"
            "heavy = {'torch', 'transformers', 'numpy', 'ruamel.yaml', 'fulltune.recipe'} & set(sys.modules)\n"
            "sys.exit(str(heavy) if heavy else 0)"
        )
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
