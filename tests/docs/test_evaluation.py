"""What docs/evaluation.md shows is run, and its tables name all that there is and nothing else."""

import json
import os
import re
import shlex
import sys
from pathlib import Path

import pytest

from fulltune.evaluation.metrics import METRICS
from fulltune.recipe.suites import SUITES
from tests import command, tiny
from tests.conftest import ROOT

PAGE = (ROOT / "docs/evaluation.md").read_text()


def blocks(kind: str) -> list[str]:
    return re.findall(rf"```{kind}\n(.*?)```", PAGE, re.DOTALL)


def rows_of(title: str) -> list[list[str]]:
    """The cells of the table under a head."""
    lines = PAGE[PAGE.index(title) :].splitlines()[2:]
    table = lines[: next(n for n, line in enumerate(lines) if not line.startswith("|"))]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table]


def names(cell: str) -> list[str]:
    return re.findall(r"`(\w+)`", cell)


def test_the_tables_name_everything() -> None:
    table = rows_of("| metric | kinds |")
    assert [name for row in table for name in names(row[0])] == list(METRICS)
    for row in table:
        for name in names(row[0]):
            options = {"regex": {"pattern": "a"}, "json_schema": {"schema": {}}}.get(name, {})
            made = METRICS[name](**options)
            assert row[1].split(", ") == list(made.for_kinds), name
            assert ("less is better" in row[2]) == (made.better == "lower"), name
    described = {name: row for row in rows_of("| `use` | kind |") for name in names(row[0])}
    assert described.keys() == set(SUITES)
    for name, row in described.items():
        description = SUITES[name]
        assert row[1] == description.get("kind", "answer")
        for used in description.get("metrics", ()):
            assert used["use"] in row[3]


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what the page names."""
    folder = tmp_path_factory.mktemp("evaluation")
    tiny.folder(folder / "my-model")
    (question,) = blocks("json")
    (folder / "maths.jsonl").write_text(question * 3)
    tiny.jsonl(folder / "stories.jsonl", [{"text": row["prompt"]} for row in tiny.rows(5)])
    tiny.jsonl(folder / "train.jsonl", tiny.rows(30))
    suite, evaluate, own = blocks("yaml")
    (folder / "maths.yaml").write_text(suite)
    (folder / "own.yaml").write_text(own)
    for name, python in zip(("manners", "judge"), blocks("python"), strict=True):
        (folder / f"{name}.py").write_text(python)
    (folder / "recipe.yaml").write_text(
        "model: {path: ./my-model}\ndata: {train: train.jsonl, max_length: 256}\n"
        f"train: {{steps: 4, batch_examples: 8}}\noptim: {{lr: 0.1}}\n{evaluate}  samples: 0\n"
    )
    return folder


def test_what_the_page_shows(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
    trained = command.run("train", "recipe.yaml", cwd=workplace)
    assert trained.returncode == 0, trained.stderr
    assert "maths.numeric" in trained.stdout
    for line in "".join(blocks("sh")).splitlines():
        _, *words = shlex.split(line.partition("#")[0])
        if "--count" in words:
            (page,) = re.findall(r'"page":"(\w+)"', (workplace / "blind.html").read_text())
            (workplace / "choices.json").write_text(json.dumps({"page": page, "choices": {"0": "left"}}))
        done = command.run(*words, cwd=workplace)
        assert done.returncode == 0, done.stderr
        assert ("blind.key.json" if "--blind" in words else "interval") in done.stdout
    assert (workplace / "runs/recipe/evaluations/result-against-base.json").exists()
    monkeypatch.syspath_prepend(workplace)
    own = command.run("evaluate", "my-model", "--suite", "own.yaml", cwd=workplace)
    assert own.returncode == 0, own.stderr
    assert re.search(r"own +polite +my-model", own.stdout)
