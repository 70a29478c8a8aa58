"""`fulltune blend`: at the ends the models themselves, to the bit; between them the formula; averages of several."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

import fulltune
from fulltune.base.errors import DataError, RecipeError
from fulltune.blending import mixtures
from fulltune.reporting import figures
from tests import command, tiny


def recipe(folder: Path, model: Path, **sections: Any) -> dict[str, Any]:
    kept = tiny.jsonl(folder / "kept.jsonl", [{"text": row["completion"]} for row in tiny.rows(12, seed=5)])
    data = tiny.jsonl(folder / "rows.jsonl", tiny.rows(40))
    return tiny.recipe(model, data, data={"retention": str(kept)}, **sections)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base") / "model"
    made = tiny.model("llama-tied").to(torch.bfloat16)
    made.save_pretrained(folder)
    tiny.tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, base: Path) -> list[Path]:
    folder = tmp_path_factory.mktemp("runs")
    asked = recipe(folder, base, optim={"lr": 3e-3})
    for number in range(2):
        fulltune.train(asked, out=folder / str(number), train={"seed": number})
    return [folder / "0", folder / "1"]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def test_at_the_ends_it_is_the_models_and_their_scores(tmp_path: Path, base: Path, runs: list[Path]) -> None:
    tuned = runs[0] / "model"
    for part, model in ((0.0, base), (1.0, tuned)):
        made = fulltune.blend(runs[0], at="0,1", write=part, to=tmp_path / str(part))
        found, wanted = weights(tmp_path / str(part)), weights(model)
        assert found.keys() == wanted.keys()
        assert all(found[name].dtype == wanted[name].dtype == torch.bfloat16 for name in wanted)
        assert all(torch.equal(found[n].view(torch.int16), wanted[n].view(torch.int16)) for n in wanted)
        assert made.written == str(tmp_path / str(part))
    true = fulltune.evaluate(runs[0])
    for point, report in zip(made.points, (true["base"], true["result"]), strict=True):
        assert point.scores == {name: report.scores[name] for name in point.scores}
        assert {"heldout.loss", "retention.loss"} <= point.scores.keys()
    assert made.points[0].scores["heldout.loss"] > made.points[1].scores["heldout.loss"], "it learned"


def test_between_them_it_is_the_formula(tmp_path: Path, base: Path, runs: list[Path]) -> None:
    made = fulltune.blend(runs[0], at="0:1:0.25", write=0.3, to=tmp_path / "x")
    assert [point.parts for point in made.points] == [(1 - part, part) for part in (0.0, 0.25, 0.5, 0.75, 1.0)]
    one, other, found = weights(base), weights(runs[0] / "model"), weights(tmp_path / "x")
    for name, value in found.items():
        expected = (0.7 * one[name].double() + 0.3 * other[name].double()).to(torch.bfloat16)
        assert torch.allclose(value.float(), expected.float(), rtol=2**-7, atol=1e-7), name
        assert (value == expected).float().mean() > 0.99
    assert any(not torch.equal(found[name], one[name]) for name in one)
    card = (tmp_path / "x/README.md").read_text()
    assert "These weights are a mixture, made after training: 0.7 of the base, 0.3 of 0." in card
    kept = fulltune.blend(runs[0], at="0.3").points[0].scores["retention.loss"]
    assert re.search(rf"\| retention\.loss \| [\d.]+ \| {kept:.4g} \|", card), "of the mixture, not of the run"
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "x") is not None
    losses = [point.scores["heldout.loss"] for point in made.points]
    assert losses[0] > losses[2] > losses[4]
    assert json.loads((runs[0] / "blend.json").read_text())["points"][0]["parts"] == [0.7, 0.3]


def test_the_report_shows_them(runs: list[Path]) -> None:
    page = runs[1] / "report.html"
    before = page.read_text()
    assert 'id="blends"' not in before, "nothing is said of what was not asked for"
    made = fulltune.blend(runs[1], at="0,0.5,1")
    after = page.read_text()
    assert 'id="blends"' in after
    assert "held-out loss against retention loss" in after
    assert all(figures.number(point.scores["retention.loss"]) in after for point in made.points)
    assert "of a run that is done" in after[:200]


def test_several_runs_are_averaged(tmp_path: Path, runs: list[Path], base: Path) -> None:
    made = fulltune.blend(runs[0], others=[runs[1], "base"], to=tmp_path / "soup")
    assert [point.parts for point in made.points] == [(1 / 3, 1 / 3, 1 / 3)]
    each = [weights(folder) for folder in (runs[1] / "model", base, runs[0] / "model")]
    for name, value in weights(tmp_path / "soup").items():
        expected = torch.stack([own[name].double() for own in each]).mean(0)
        assert torch.allclose(value.double(), expected, rtol=2**-7, atol=1e-7), name


def test_the_command_prints_a_row_for_each(tmp_path: Path, runs: list[Path]) -> None:
    done = command.run("blend", str(runs[0]), "--at", "0:1:0.5", "--with", str(runs[1]), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0] == f"1: {runs[1]}"
    assert lines[2].split() == ["part", "of", "1", "part", "of", "2", "heldout.loss", "retention.loss"]
    assert [line.split()[:2] for line in lines[3:]] == [["1", "0"], ["0.5", "0.5"], ["0", "1"]]
    told = json.loads(command.run("blend", str(runs[0]), "--at", "0.5", "--json", cwd=tmp_path).stdout)
    assert told["points"][0]["parts"] == [0.5, 0.5]


def test_what_cannot_be_is_refused(tmp_path: Path, runs: list[Path]) -> None:
    with pytest.raises(RecipeError, match="no parts"):
        mixtures("0:1:0", 1, None, writes=False)
    with pytest.raises(RecipeError, match="no parts"):
        mixtures("a", 1, None, writes=False)
    with pytest.raises(RecipeError, match="no part of"):
        mixtures("0:2:1", 1, None, writes=False)
    with pytest.raises(RecipeError, match="give both"):
        mixtures("0:1:1", 1, 0.5, writes=False)
    with pytest.raises(RecipeError, match="averaged"):
        mixtures("0:1:1", 2, 0.5, writes=True)
    with pytest.raises(RecipeError, match="the folder exists"):
        fulltune.blend(runs[0], write=0.5, to=tmp_path)
    other = tiny.folder(tmp_path / "wide", "llama-tied", hidden_size=64)
    with pytest.raises(DataError, match="has shape"):
        fulltune.blend(runs[0], others=[other], at="0.5")
    for others in ([runs[1], runs[1]], [runs[0] / "model"]):
        with pytest.raises(RecipeError, match="mixed with itself"):
            fulltune.blend(runs[0], others=others, at="0.5")
    tokens = tiny.folder(tmp_path / "spoken", "llama-tied", tokens=tiny.tokenizer(adds_bos=False))
    with pytest.raises(DataError, match="another tokenizer"):
        fulltune.blend(runs[0], others=[tokens], at="0.5")


def test_weights_that_cannot_be_read_one_by_one_are_loaded(tmp_path: Path) -> None:
    """Of mixtures of experts transformers makes one tensor of many in the files."""
    base = tiny.folder(tmp_path / "base", "mixtral")
    asked = recipe(tmp_path, base, optim={"lr": 3e-3}, train={"steps": 2})
    fulltune.train(asked, out=tmp_path / "run")
    fulltune.blend(tmp_path / "run", at="0.5", write=0.5, to=tmp_path / "x")
    one, other, found = weights(base), weights(tmp_path / "run/model"), weights(tmp_path / "x")
    assert found.keys() == one.keys()
    assert all(torch.allclose(found[name], (one[name] + other[name]) / 2, atol=1e-7) for name in found)
    wide = tiny.folder(tmp_path / "wide", "mixtral", intermediate_size=32)
    with pytest.raises(DataError, match="otherwise"):
        fulltune.blend(tmp_path / "run", others=[wide], at="0.5")


def test_one_model_is_in_memory_and_of_the_others_a_tensor_at_a_time(runs: list[Path]) -> None:
    """What is read of the others is let go before the next tensor."""
    import gc
    import weakref

    from fulltune.blending import mixed

    alive: list[weakref.ref[torch.Tensor]] = []

    def read(name: str, rows: slice | None) -> torch.Tensor:
        gc.collect()
        assert sum(one() is not None for one in alive) <= 2
        made = torch.ones(4)
        alive.append(weakref.ref(made))
        return made

    for number in range(5):
        assert torch.equal(mixed([read, read], (0.25, 0.75), str(number), None), torch.ones(4))
