"""Reading recipes: every fault at once, each with file and line."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, strategies

from fulltune.base.errors import RecipeError
from fulltune.recipe.foreign import FOREIGN
from fulltune.recipe.load import given as given_on_the_command_line
from fulltune.recipe.load import load_recipe
from fulltune.recipe.schema import Recipe
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
    with pytest.raises(RecipeError, match="cannot be read: Not a directory"):
        load_recipe(write(tmp_path, GOOD) / "x")
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(RecipeError, match="cannot be read: Too many levels"):
        load_recipe(tmp_path / "loop")
    with pytest.raises(RecipeError, match="cannot be read: File name too long"):
        load_recipe(tmp_path / ("x" * 300))
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


@pytest.mark.parametrize(
    ("key", "what", "mend"),
    [
        ("learning-rate: 1e-5", "`learning-rate`", "optim.lr"),
        ("train: {learning-rate: 1}", "`train.learning-rate`", "optim.lr"),
        ("data: {train: a, max-length: 7}", "`data.max-length`", "`max_length`"),
        ("data: {train: {t.jsonl: 1, path: a}}", "`data.train.0.t.jsonl`", "known here: path"),
        ("data: {train: a, <share>: 1}", "`data.<share>`", "did you mean `share_by`"),
        ("1: 2", "`1`", "known here: model"),
        ("1.5: 2", "`1.5`", "known here: model"),
        ("'': 2", "``", "known here: model"),
        ("'[key]': 2", "`[key]`", "known here: model"),
        ("'<<': 2", "`<<`", "known here: model"),
        ("é ü: 2", "`é ü`", "known here: model"),
    ],
)
def test_keys_of_any_spelling_are_named(tmp_path: Path, key: str, what: str, mend: str) -> None:
    good = "model: {path: x}\n" + ("" if key.startswith("data") else "data: {train: a}\n")
    ((said, meant),) = faults(tmp_path, good + key + "\n").values()
    assert said == f"there is no field {what}"
    assert mend in meant


@pytest.mark.parametrize(
    ("text", "what", "mend"),
    [
        ("=5", "is no override", "key=value"),
        (".=1", "is no override", "key=value"),
        ("train.=1", "is no override", "key=value"),
        ("train..epochs=1", "is no override", "key=value"),
        ("train", "is no override", "key=value"),
        ("out=x", "`out` is no field", "known here: model"),
        ("recipe={a: 1}", "`recipe` is no field", "known here: model"),
        ("sinks=1", "`sinks` is no field", "known here: model"),
        ("learning-rate=1", "`learning-rate` is no field", "optim.lr"),
        ("model=x", "`model` is no field", "model.field=value"),
        ("train=&a [*a]", "`train` is no field", "train.field=value"),
    ],
)
def test_texts_that_are_no_overrides(text: str, what: str, mend: str) -> None:
    with pytest.raises(RecipeError) as caught:
        given_on_the_command_line([text])
    (fault,) = caught.value.faults
    assert what in fault.what
    assert mend in fault.mend
    assert fault.where == "command line"


def test_an_override_is_given_once() -> None:
    for texts in (["train.epochs=1", "train.epochs=2"], ["train={epochs: 1}", " train.epochs =1"]):
        with pytest.raises(RecipeError, match="`train.epochs` is given twice"):
            given_on_the_command_line(texts)


def test_all_that_is_wrong_on_a_command_line_is_told_at_once() -> None:
    with pytest.raises(RecipeError) as caught:
        given_on_the_command_line(["=1", "out=2", "train.seed=1", "train.seed=1"])
    assert len(caught.value.faults) == 3


def test_sections_and_texts_of_more_lines_are_values() -> None:
    read = given_on_the_command_line(["train={epochs: 1, seed: 2}", "data.group_by=a\nb: c", "optim.options={x: 1}"])
    assert read == {"train.epochs": 1, "train.seed": 2, "data.group_by": "a\nb: c", "optim.options": {"x": 1}}


@given(strategies.text(max_size=30))
def test_no_text_makes_an_override_crash(text: str) -> None:
    assert set(given_on_the_command_line([f"train.objective={text}"])) == {"train.objective"}
    for whole in (text, f"{text}=1", f"train.{text}"):
        try:
            read = given_on_the_command_line([whole])
        except RecipeError as told:
            assert told.faults[0].where == "command line"
        else:
            assert all("." in key for key in read), "else it could be taken for an argument of a stage"


@pytest.mark.parametrize(
    "key", ["data.train.²", "data.train.٣", "data.train.-1.path", "data.train.1", "a." * 3000 + "a"]
)
def test_overrides_that_lead_nowhere(tmp_path: Path, key: str) -> None:
    path = write(tmp_path, "model: {path: x}\ndata: {train: [a.jsonl]}\n")
    with pytest.raises(RecipeError) as caught:
        load_recipe(path, {key: "x"})
    assert [fault.where for fault in caught.value.faults] == ["override"]


def test_numbers_are_keys_of_mappings_and_places_of_lists(tmp_path: Path) -> None:
    path = write(tmp_path, "model: {path: x}\ndata: {train: [a.jsonl]}\n")
    recipe = load_recipe(path, {"optim.options.5": 1, "data.train.0": "b.jsonl"})
    assert recipe.optim.options == {"5": 1}
    assert recipe.data.train[0].path == str(Path.cwd() / "b.jsonl")


@pytest.mark.parametrize(
    ("written", "changes", "wanted"),
    [
        ("train: {epochs: 2}", {"train.steps": 5}, {"steps": 5}),
        ("train: {steps: 5}", {"train.epochs": 2}, {"epochs": 2.0, "steps": None}),
        ("train: {epochs: 2}", {"train": {"steps": 5}}, {"steps": 5}),
        ("train: {epochs: 2}", {"train.steps": None}, {"epochs": 2.0, "steps": None}),
        ("train: {batch_examples: 4}", {"train.batch_tokens": 99}, {"batch_tokens": 99}),
        ("train: {batch_tokens: 99}", {"train.batch_examples": 4}, {"batch_examples": 4, "batch_tokens": None}),
        ("train: null", {"train.steps": 5}, None),
        ("train: {epochs: 2}", {"train.steps": 5, "train.epochs": 1}, None),
        ("train: {epochs: 2, steps: 5}", {}, None),
    ],
)
def test_an_override_stands_in_place_of_what_it_excludes(
    tmp_path: Path, written: str, changes: dict[str, Any], wanted: dict[str, Any] | None
) -> None:
    path = write(tmp_path, GOOD + written + "\n")
    if wanted is None:
        with pytest.raises(RecipeError):
            load_recipe(path, changes)
        return
    train = load_recipe(path, changes).train.model_dump()
    assert {name: train[name] for name in wanted} == wanted


def test_a_constant_schedule_may_be_asked_of_a_resolved_recipe(tmp_path: Path) -> None:
    path = write(tmp_path, as_yaml(load_recipe(write(tmp_path, GOOD))))
    assert load_recipe(path, {"optim.schedule": "constant"}).optim.schedule == "constant"
    with pytest.raises(RecipeError, match="has no floor"):
        load_recipe(path, {"optim.schedule": "constant", "optim.floor": 0.5})


def test_overridden_paths_count_from_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    recipe = load_recipe(write(tmp_path, GOOD), {"data.test": "t.jsonl"})
    assert recipe.data.test[0].path == str(tmp_path / "here/t.jsonl")
    listed = write(tmp_path, "model: {path: x}\ndata: {train: [{path: a.jsonl}]}\n")
    assert load_recipe(listed, {"data.train.0.path": "b.jsonl"}).data.train[0].path == str(tmp_path / "here/b.jsonl")


@pytest.mark.parametrize("path", ["~nosuchuser/t.jsonl", "x" * 300, "a\0b"])
@pytest.mark.parametrize(
    "field", ["model.path", "model.chat_template", "data.train", "data.heldout", "data.test.0.path"]
)
def test_paths_that_can_not_be_are_named_with_their_field(tmp_path: Path, field: str, path: str) -> None:
    listed = write(tmp_path, "model: {path: x}\ndata: {train: a.jsonl, test: [{path: a.jsonl}]}\n")
    with pytest.raises(RecipeError, match="no home folder|no file can have this name") as caught:
        load_recipe(listed, {field: path})
    assert caught.value.faults[0].where.startswith(f"override: {field}")
    (tmp_path / "b.yaml").write_text(f'model: {{path: x}}\ndata: {{train: "{path}"}}\n'.replace("\0", "\\0"))
    with pytest.raises(RecipeError, match=r"b\.yaml:2"):
        load_recipe(tmp_path / "b.yaml")


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
    for extra in (
        "",
        "train: {steps: 4, batch_tokens: 99}\n",
        "optim: {schedule: constant, clip: null}\n",
        "evaluate: {every: 1000000}\ncheckpoint: {every: 0.00001 epochs}\n",
        "evaluate: {every: 1234567}\ncheckpoint: {every: 0.3333333333 min}\n",
    ):
        recipe = load_recipe(write(tmp_path, GOOD + extra))
        assert load_recipe(write(tmp_path, as_yaml(recipe))).model_dump() == recipe.model_dump()


def test_a_mixed_recipe_resolves_to_itself(tmp_path: Path) -> None:
    augment = "{use: phrasings, copies: 2, options: {column: prompt, phrasings: ['a {{ prompt }}', b]}}"
    train = f"[{{path: a, share: 2, augment: [field_order, {augment}]}}, {{path: b, share: 1}}]"
    text = f"model: {{path: x}}\ndata: {{train: {train}, replay: {{sources: [g, h], share: 0.3}}, share_by: tokens}}\n"
    recipe = load_recipe(write(tmp_path, text))
    assert [asked.use for asked in recipe.data.train[0].augment] == ["field_order", "phrasings"]
    again = load_recipe(write(tmp_path, as_yaml(recipe)))
    assert again.model_dump() == recipe.model_dump()
    assert load_recipe(recipe).model_dump() == recipe.model_dump()


def test_replay_is_written_short_or_whole(tmp_path: Path) -> None:
    bare = "model: {path: x}\ndata: {train: a.jsonl, replay: %s}\n"
    for text in ("g.jsonl", "[g.jsonl]", "{sources: g.jsonl}", "{sources: [{path: g.jsonl}], share: 0.1}"):
        replay = load_recipe(write(tmp_path, bare % text)).data.replay
        assert replay is not None
        assert replay.share == 0.1
        assert [source.path for source in replay.sources] == [str(tmp_path / "g.jsonl")]
    path = write(tmp_path, bare % "{sources: [{path: g.jsonl}, h.jsonl]}")
    changed = load_recipe(path, given_on_the_command_line(["data.replay.share=0.5", "data.replay.sources.1=i.jsonl"]))
    assert changed.data.replay is not None
    assert changed.data.replay.share == 0.5
    assert [source.path for source in changed.data.replay.sources] == [
        str(tmp_path / "g.jsonl"),
        str(Path.cwd() / "i.jsonl"),
    ]
    for key in ("data.replay", "data.replay.sources", "data.replay.sources.0", "data.replay.sources.0.path"):
        changed = load_recipe(path, given_on_the_command_line([f"{key}=j.jsonl"]))
        assert changed.data.replay is not None
        assert changed.data.replay.sources[0].path == str(Path.cwd() / "j.jsonl"), key


@pytest.mark.parametrize(
    ("replay", "what", "mend"),
    [
        ("{share: 0.1}", "`data.replay.sources` is missing", "What is mixed in"),
        ("{sources: g, share: 1.0}", "`data.replay.share`: 1.0", "Its part of every update"),
        ("{sources: g, share: 0.0}", "`data.replay.share`: 0.0", "Its part of every update"),
        ("{sources: g, shares: 0.2}", "there is no field `data.replay.shares`", "did you mean `share`?"),
        ("{sources: {path: g, formatt: x}}", "no field `data.replay.sources.0.formatt`", "did you mean `format`?"),
        ("{sources: [{path: g, share: 1.0}, h]}", "every source a `share`", "What is mixed in"),
        ("{sources: {path: g, augment: {use: x, copy: 2}}}", "sources.0.augment.0.copy`", "did you mean `copies`?"),
        ("{sources: {path: g, augment: {use: x, copies: 0}}}", "augment.0.copies`: 0", "Most further rows"),
    ],
)
def test_what_is_wrong_with_replay_is_said_where_it_stands(tmp_path: Path, replay: str, what: str, mend: str) -> None:
    with pytest.raises(RecipeError) as caught:
        load_recipe(write(tmp_path, f"model: {{path: x}}\ndata:\n  train: a.jsonl\n  replay: {replay}\n"))
    (fault,) = caught.value.faults
    assert what in fault.what
    assert mend in fault.mend
    assert fault.where.endswith("recipe.yaml:4")


def test_shares_that_are_not_there_count_nothing() -> None:
    def load(**data: Any) -> None:
        load_recipe({"model": {"path": "x"}, "data": {"share_by": "tokens", **data}})

    for alone in ("a", ["a", "b"], {"path": "a", "share": 1.0}):
        with pytest.raises(RecipeError, match="`share_by` says what shares count"):
            load(train=alone)
    load(train="a", replay="b")
    load(train=[{"path": "a", "share": 1.0}, {"path": "b", "share": 1.0}])


def test_a_score_that_nobody_asked_for_is_not_resolved(tmp_path: Path) -> None:
    """Written out it would be asked for, and without held-out data it is not measured."""
    bare = "model: {path: x}\ndata: {train: a.jsonl, heldout: 0}\n"
    assert "best_by" in as_yaml(load_recipe(write(tmp_path, GOOD)))
    for text, kept in ((bare, False), (bare + "checkpoint: {best_by: retention.loss}\n", True)):
        recipe = load_recipe(write(tmp_path, text))
        again = load_recipe(write(tmp_path, as_yaml(recipe)))
        assert ("best_by" in again.checkpoint.model_fields_set) is kept
        assert again.model_dump() == recipe.model_dump()
        assert as_yaml(again) == as_yaml(recipe)


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
