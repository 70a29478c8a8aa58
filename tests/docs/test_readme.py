"""What the README shows is run: every command, the recipe, the Python."""

import os
import re
import runpy
import shlex
import subprocess
from pathlib import Path

import pytest

from tests import command, tiny
from tests.conftest import ROOT
from tools.make_docs import TARGET, page

README = (ROOT / "README.md").read_text()
DATA = (ROOT / "docs/data.md").read_text()
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", README, re.DOTALL)
KINDS = {"sh", "yaml", "python", "text"}
RECIPES = ("kept.yaml", "checked.yaml", "mix.yaml")
"""Names for the recipes that docs/data.md shows, in its order."""


def blocks(kind: str) -> list[str]:
    return [text for language, text in BLOCKS if language == kind]


def commands() -> list[str]:
    return [line.partition("#")[0].strip() for text in blocks("sh") for line in text.splitlines() if line.strip()]


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what the README's recipe names."""
    folder = tmp_path_factory.mktemp("readme")
    tiny.folder(folder / "my-model", max_position_embeddings=1024)
    tiny.jsonl(folder / "train.jsonl", [{**row, "customer": n // 3} for n, row in enumerate(tiny.rows(120))])
    tiny.jsonl(folder / "general.jsonl", [{"text": row["prompt"]} for row in tiny.rows(8, seed=3)])
    (recipe,) = blocks("yaml")
    (folder / "recipe.yaml").write_text(recipe)
    for n, name in enumerate(("support", "kept"), 5):
        tiny.jsonl(folder / f"{name}.jsonl", tiny.rows(20, seed=n))
    for name, recipe in zip(RECIPES, re.findall(r"```yaml\n(.*?)```", DATA, re.DOTALL), strict=True):
        (folder / name).write_text(recipe)
    return folder


def run(shown: str, folder: Path) -> command.Done:
    name, *words = shlex.split(shown)
    assert name == "fulltune"
    return command.run(*words, cwd=folder, typed="the cat\n\n" if words[0] == "chat" else "")


def test_every_block_is_of_a_kind_that_is_checked() -> None:
    assert {language for language, _ in BLOCKS} == KINDS
    assert len(blocks("yaml")[0].splitlines()) <= 12, "twelve lines are enough for a real run"


def test_the_first_screen_has_the_two_commands() -> None:
    assert [command.split()[1] for command in commands()[:2]] == ["quickstart", "test"]
    words = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert {command.split()[1] for command in commands() if command.startswith("make ")} <= words
    assert "make test" in (ROOT / ".ci/run").read_text()


@pytest.mark.parametrize("shown", [c for c in commands() if c.startswith("fulltune ")])
def test_commands(workplace: Path, shown: str) -> None:
    """In the README's order, in one folder."""
    done = run(shown, workplace)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()


ABOUT_DATA = [
    line.partition("#")[0].strip()
    for text in re.findall(r"```sh\n(.*?)```", DATA, re.DOTALL)
    for line in text.splitlines()
]


@pytest.mark.parametrize("shown", ABOUT_DATA)
def test_commands_about_data(workplace: Path, shown: str) -> None:
    done = run(shown, workplace)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()


@pytest.mark.parametrize("recipe", RECIPES)
def test_recipes_about_data(workplace: Path, recipe: str) -> None:
    done = run(f"fulltune prepare {recipe}", workplace)
    assert done.returncode == 0, done.stderr
    assert "tokens an epoch" in done.stdout


def test_what_comes_out(workplace: Path) -> None:
    listed = re.findall(r"^(\S+)\s{2,}", blocks("text")[1], re.MULTILINE)
    assert "record.json" in listed
    for name in listed:
        assert (workplace / "runs/recipe" / name).exists(), name


def test_the_error_that_is_shown_is_the_error_that_is_given(workplace: Path, tmp_path: Path) -> None:
    rows = [*tiny.rows(1203), {"prompt": "a", "completion": " "}]
    tiny.jsonl(tmp_path / "train.jsonl", rows)
    done = run(f"fulltune prepare recipe.yaml data.train={tmp_path}/train.jsonl --out {tmp_path}/run", workplace)
    assert done.returncode == 3
    shown = blocks("text")[2].strip()
    assert shown in done.stderr.replace(f"{tmp_path}/", "")


def test_the_python(
    workplace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (python,) = blocks("python")
    for name in ("my-model", "train.jsonl", "general.jsonl", "recipe.yaml"):
        (tmp_path / name).symlink_to(workplace / name)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "script.py").write_text(python)
    runpy.run_path("script.py", run_name="__main__")
    assert "tokens are taught" in capsys.readouterr().out
    assert (tmp_path / "my-model-bf16/config.json").exists()


def test_links_lead_somewhere() -> None:
    for page_path in [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]:
        for link in re.findall(r"\]\(([^)#]+)\)", page_path.read_text()):
            assert (page_path.parent / link).exists(), f"{page_path.name}: {link}"


def test_the_reference_is_up_to_date() -> None:
    assert TARGET.read_text() == page(), "run `make docs`"


def test_landmines_are_all_answered() -> None:
    """Every row of docs/landmines.md names a test that exists, or says why the bug cannot happen here."""
    text = (ROOT / "docs/landmines.md").read_text()
    tests = "\n".join(path.read_text() for path in (ROOT / "tests").rglob("test_*.py"))
    rows = re.findall(r"^\| ([A-Z]\d+) \| (.+?) \| (.+?) \|$", text, re.MULTILINE)
    for number, _, answer in rows:
        for name in re.findall(r"`(test_\w+)`", answer):
            assert f"def {name}(" in tests, f"{number}: {name}"
        assert "`test_" in answer or answer.startswith("Cannot happen"), number
    assert {number for number, _, _ in rows} >= set(REQUIRED)


REQUIRED = (
    "N1 N3 N4 N5 E4 E9 A1 A5 A6 A7 A9 A12 A13 B1 B2 B3 B7 B8 B9 B10 B11 B12 B13 B14 B15 B16 B17 B22 C1 C3 C4 C5 C6 "
    "D1 D2 D3 D4 D5 D6 D7 D8 D9 D10 D11 D12 D13 D14 D15 D16 E1 E2 E3 E5 E6 E7 E8 F2 F3 F5 F6 F7 F8 G1 G2 G3 G4 G5 G6 "
    "A2 A3 A4 A8 A11 E10 E11 E12 F1 F4 F9 F10 I2 I8 J2 J3 J4 J5 K1 K2 K3 K4 K5 K6 K7 K8 "
    "G7 G8 G9 H1 H2 H3 H4 H5 H6 H7 I1 I3 I7 J1 M1 M2 M3 M4 M5 M8 N2"
).split()


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_fresh_clone_needs_the_two_commands_and_nothing_else(tmp_path: Path) -> None:
    """`make quickstart` in a clone without an environment, then the commands for a machine of one's own."""
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(tmp_path / "clone")], check=True)
    env = {key: value for key, value in os.environ.items() if key not in ("VIRTUAL_ENV", "PYTHONPATH")}
    env["PATH"] = os.pathsep.join(p for p in env["PATH"].split(os.pathsep) if ".venv" not in p)
    done = subprocess.run(["make", "quickstart"], cwd=tmp_path / "clone", env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "right answers" in done.stdout
    (command,) = [c for c in commands() if "pip install" in c]
    env["PATH"] = f"{tmp_path}/clone/.venv/bin{os.pathsep}{env['PATH']}"
    subprocess.run(shlex.split(command), cwd=tmp_path / "clone", env=env, check=True, capture_output=True)
    subprocess.run(["fulltune", "--version"], cwd=tmp_path, env=env, check=True, capture_output=True)
