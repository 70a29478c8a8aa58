"""Reading recipes: every fault at once, each with file and line."""

from pathlib import Path

import pytest
from hypothesis import given, strategies

from fulltune.base.errors import RecipeError
from fulltune.recipe.foreign import FOREIGN
from fulltune.recipe.load import load_recipe
from fulltune.recipe.schema import Recipe
from fulltune.recipe.tree import given as given_on_the_command_line
from fulltune.recipe.tree import parse
from fulltune.recipe.write import as_yaml, schema, starter

GOOD = "model: {path: m/x}\ndata: {train: rows.jsonl}\n"


def write(folder: Path, text: str) -> Path:
    path = folder / "recipe.yaml"
    path.write_text(text)
    return path


def faults(folder: Path, text: str, **overrides: object) -> dict[str, tuple[str, str]]:
    """Line -> (what, mend) of every fault."""
    with pytest.raises(RecipeError) as caught:
        load_recipe(write(folder, text), overrides)
    return {fault.where.rpartition(":")[2]: (fault.what, fault.mend) for fault in caught.value.faults}


def test_a_minimal_recipe_loads_and_paths_count_from_its_folder(tmp_path: Path) -> None:
    recipe = load_recipe(write(tmp_path, GOOD))
    assert recipe.data.train[0].path == str(tmp_path / "rows.jsonl")
    assert recipe.model.path == "m/x"
    (tmp_path / "m/x").mkdir(parents=True)
    assert load_recipe(write(tmp_path, GOOD)).model.path == str(tmp_path / "m/x")


def test_exponents_are_numbers(tmp_path: Path) -> None:
    assert load_recipe(write(tmp_path, GOOD + "optim: {lr: 2e-5}\n")).optim.lr == 2e-5


def test_all_faults_are_told_at_once_with_their_lines(tmp_path: Path) -> None:
    text = """\
model: {path: x}
data:
  train: rows.jsonl
  max_lenght: 7
  heldout: 1.5
train:
  epochs: "3"
  layout: pakced
optim:
  warmup: 1.0
learning_rate: 3
evaluate: {every: soon}
"""
    found = faults(tmp_path, text)
    assert "did you mean `max_length`?" in found["4"][1]
    assert "less than 1" in found["5"][0]
    assert "'3'" in found["7"][0]
    assert "'packed'" in found["8"][0]
    assert "neither a share below 1 nor a whole number" in found["10"][0]
    assert "optim.lr" in found["11"][1]
    assert "0.5 epochs" in found["12"][0]
    assert len(found) == 7


def test_missing_fields_say_what_belongs_there(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"`model` is missing") as caught:
        load_recipe(write(tmp_path, "data: {train: a.jsonl}\n"))
    assert len(caught.value.faults) == 1
    with pytest.raises(RecipeError, match="A folder that transformers can load"):
        load_recipe(write(tmp_path, "model: {}\ndata: {train: a.jsonl}\n"))


def test_duplicate_keys_name_both_places(tmp_path: Path) -> None:
    found = faults(tmp_path, GOOD + "train: {seed: 1}\ntrain: {seed: 2}\n")
    assert "given twice" in found["4"][0]
    assert "recipe.yaml:3" in found["4"][0]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("model: [", "not YAML"),
        ("- a\n- b\n", "mapping of sections"),
        ("model: {path: !!python/object/apply:os.system [ls]}\ndata: {train: a}\n", "not allowed"),
        ("", "`model` is missing"),
    ],
)
def test_broken_texts(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        load_recipe(write(tmp_path, text))


def test_alias_bombs_are_refused(tmp_path: Path) -> None:
    text = "a: &a [x, x, x, x, x, x, x, x, x, x]\n"
    for n in range(8):
        inner, outer = "abcdefghi"[n], "abcdefghi"[n + 1]
        text += f"{outer}: &{outer} [{', '.join([f'*{inner}'] * 10)}]\n"
    with pytest.raises(RecipeError, match="20,000"):
        load_recipe(write(tmp_path, GOOD + text))


def test_unreadable_files(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="no such recipe"):
        load_recipe(tmp_path / "none.yaml")
    with pytest.raises(RecipeError, match="cannot be read"):
        load_recipe(tmp_path)
    (tmp_path / "latin.yaml").write_bytes(b"model: {path: \xe9}")
    with pytest.raises(RecipeError, match="UTF-8"):
        load_recipe(tmp_path / "latin.yaml")
    (tmp_path / "huge.yaml").write_text("#" * (1 << 21))
    with pytest.raises(RecipeError, match="1 MiB"):
        load_recipe(tmp_path / "huge.yaml")


def test_overrides_are_checked_like_the_file(tmp_path: Path) -> None:
    path = write(tmp_path, GOOD)
    assert load_recipe(path, given_on_the_command_line(["train.epochs=1", "optim.lr=1e-4"])).optim.lr == 1e-4
    assert load_recipe(path, {"train": {"seed": 5}}).train.seed == 5
    with pytest.raises(RecipeError, match=r"did you mean `epochs`[\s\S]*") as caught:
        load_recipe(path, {"train.epoch": 1, "train.seed.x": 2})
    assert {fault.where for fault in caught.value.faults} == {"override: train.epoch", "override: train.seed"}
    with pytest.raises(RecipeError, match="is no override"):
        given_on_the_command_line(["train"])


def test_overridden_paths_count_from_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    recipe = load_recipe(write(tmp_path, GOOD), {"data.test": "t.jsonl"})
    assert recipe.data.test[0].path == str(tmp_path / "here/t.jsonl")
    listed = write(tmp_path, "model: {path: x}\ndata: {train: [{path: a.jsonl}]}\n")
    assert load_recipe(listed, {"data.train.0.path": "b.jsonl"}).data.train[0].path == str(tmp_path / "here/b.jsonl")


def test_sources_are_written_in_three_ways(tmp_path: Path) -> None:
    for train in ("a.jsonl", "{path: a.jsonl}", "[a.jsonl]", "[{path: a.jsonl}]"):
        recipe = load_recipe(write(tmp_path, f"model: {{path: x}}\ndata: {{train: {train}}}\n"))
        assert [source.path for source in recipe.data.train] == [str(tmp_path / "a.jsonl")]


@pytest.mark.parametrize(
    ("section", "said"),
    [
        ("train: {epochs: 1, steps: 5}", "exclude each other"),
        ("train: {batch_examples: 1, batch_tokens: 5}", "exclude each other"),
        ("optim: {schedule: constant, floor: 0.1}", "has no floor"),
        ("optim: {warmup: -1}", "share of the run"),
        ("optim: {warmup: true}", "share of the run"),
        ("evaluate: {every: 0}", "number of updates"),
        ("evaluate: {every: 1.5 updates}", "whole numbers"),
        ("checkpoint: {keep: 0}", "greater than or equal to 1"),
    ],
)
def test_contradictions(tmp_path: Path, section: str, said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        load_recipe(write(tmp_path, GOOD + section + "\n"))


def test_shares_are_given_to_all_sources_or_none(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="every source"):
        load_recipe({"model": {"path": "x"}, "data": {"train": [{"path": "a", "share": 1.0}, "b"]}})
    with pytest.raises(RecipeError, match="group_by"):
        load_recipe({"model": {"path": "x"}, "data": {"train": "a", "heldout": ["b"], "group_by": "c"}})


def test_names_of_other_tools_are_answered(tmp_path: Path) -> None:
    for name, answer in FOREIGN.items():
        with pytest.raises(RecipeError) as caught:
            load_recipe(write(tmp_path, GOOD + f"{name}: 1\n"))
        assert any(answer in fault.mend for fault in caught.value.faults), name


def test_the_answers_name_fields_that_exist() -> None:
    known = {section: set(field.annotation.model_fields) for section, field in Recipe.model_fields.items()}  # type: ignore[union-attr]
    for name, answer in FOREIGN.items():
        first = answer.split()[0].rstrip(":;,")
        if "." in first:
            section, field = first.split(".")
            assert field in known[section], (name, answer)


def test_a_resolved_recipe_loads_to_the_same_recipe(tmp_path: Path) -> None:
    for extra in ("", "train: {steps: 4, batch_tokens: 99}\n", "optim: {schedule: constant, clip: null}\n"):
        recipe = load_recipe(write(tmp_path, GOOD + extra))
        assert load_recipe(write(tmp_path, as_yaml(recipe))).model_dump() == recipe.model_dump()


def test_the_starter_is_a_recipe_and_names_every_field(tmp_path: Path) -> None:
    text = starter()
    load_recipe(write(tmp_path, text))
    for section, field in Recipe.model_fields.items():
        assert f"{section}:" in text
        for name in field.annotation.model_fields:  # type: ignore[union-attr]
            assert f"{name}: " in text
    uncommented = "\n".join(line.replace("# ", "", 1) if _is_field(line) else line for line in text.splitlines()[2:])
    load_recipe(write(tmp_path, uncommented.replace("  steps: null\n", "").replace("  batch_tokens: null\n", "")))


def _is_field(line: str) -> bool:
    words = line.split()
    return len(words) > 1 and words[0] == "#" and words[1].endswith(":") and words[1][:-1].isidentifier()


def test_every_field_is_described_and_in_the_schema() -> None:
    text = schema()
    for section, field in Recipe.model_fields.items():
        for name, inner in field.annotation.model_fields.items():  # type: ignore[union-attr]
            assert inner.description, f"{section}.{name}"
            assert f'"{name}"' in text


def test_a_loaded_recipe_can_be_given_again() -> None:
    recipe = load_recipe({"model": {"path": "x"}, "data": {"train": "a"}})
    assert load_recipe(recipe, {"train.steps": 3}).train.steps == 3


@given(strategies.text(max_size=200))
def test_no_text_makes_the_reader_crash(text: str) -> None:
    tree = parse(text, "r.yaml")
    assert tree.faults or isinstance(tree.values, dict)
