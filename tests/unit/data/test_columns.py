"""A source's own column names."""

from pathlib import Path

import pytest

from fulltune.base.errors import DataError, RecipeError
from fulltune.data.columns import Columns
from fulltune.data.example import RowFault
from fulltune.data.findings import Findings
from fulltune.data.intake import Intake
from fulltune.recipe.load import load_recipe
from tests import tiny
from tests.unit.data.test_prepare import TOKENS, opened, run


def test_names_and_templates() -> None:
    columns = Columns({"prompt": "question", "completion": "{{ thought }} So: {{ answer | trim }}"}, "columns")
    row = {"question": "q", "thought": "hm", "answer": " a ", "source": "x"}
    assert columns(row) == {"prompt": "q", "completion": "hm So: a"}
    assert columns.read == {"question", "thought", "answer"}
    with pytest.raises(RowFault) as caught:
        columns({"question": "q", "answer": "a"})
    assert caught.value.code == "missing_field"
    assert "`thought`" in caught.value.what


@pytest.mark.parametrize("text", ["{{ answer", "{% for x in answer %}", "{{ answer | nosuchfilter }}"])
def test_a_template_that_does_not_parse_is_a_fault_of_the_recipe(text: str) -> None:
    with pytest.raises(RecipeError, match=r"columns\.prompt"):
        Columns({"prompt": text}, "columns")


def test_columns_that_no_row_has_are_named_and_templates_are_parsed_before_rows_are_read(tmp_path: Path) -> None:
    path = tiny.jsonl(tmp_path / "t.jsonl", [{"question": "q", "reply": "r"}] * 2)
    asked = {"path": str(path), "columns": {"prompt": "{{ nope }}", "completion": "reply"}}
    with pytest.raises(DataError) as caught:
        run(tmp_path / "s", train=asked)
    first = caught.value.faults[0]
    assert (first.where, first.code) == (f"{path}:1", "missing_field")
    assert "`nope`" in first.what
    broken = {**asked, "format": "prompt_completion", "columns": {"prompt": "{{ nope", "completion": "reply"}}
    source = load_recipe({"model": {"path": "x/y"}, "data": {"train": broken}}).data.train[0]
    with pytest.raises(RecipeError, match=r"columns of .*\.prompt"):
        Intake(source, (), Findings())


@pytest.mark.parametrize("text", ["{{ 1 / answer }}", "{{ answer.a.b }}", "{{ answer.__class__.mro() }}"])
def test_a_template_that_fails_on_a_row_is_a_fault_of_the_row(text: str) -> None:
    with pytest.raises(RowFault) as caught:
        Columns({"prompt": text}, "columns")({"answer": 0})
    assert caught.value.code == "columns"


def test_a_source_is_read_by_its_own_names(tmp_path: Path) -> None:
    made = [{"question": row["prompt"], "reply": row["completion"], "id": n} for n, row in enumerate(tiny.rows(5))]
    path = tiny.jsonl(tmp_path / "t.jsonl", [*made, {"question": "x"}])
    source = {"path": str(path), "columns": {"prompt": "question", "completion": "reply"}}
    with pytest.raises(DataError, match=r"t\.jsonl:6"):
        run(tmp_path / "a", train=source)
    facts = run(tmp_path / "s", train=source, on_bad_row="drop")
    plain = tiny.jsonl(tmp_path / "plain.jsonl", tiny.rows(5))
    wanted = run(tmp_path / "w", train=str(plain))
    assert facts.dropped == {"missing_field": 1}
    assert facts.notes == {}
    one, other = opened(tmp_path / "s", facts, "train"), opened(tmp_path / "w", wanted, "train")
    assert [one[i].ids.tolist() for i in range(5)] == [other[i].ids.tolist() for i in range(5)]


def test_segments_and_ready_ids_become_what_they_say(tmp_path: Path) -> None:
    row = {"segments": [{"text": "<s>the cat", "label": False}, {"text": " sat</s>", "label": True}]}
    facts = run(tmp_path / "a", train=str(tiny.jsonl(tmp_path / "a.jsonl", [row])))
    made = opened(tmp_path / "a", facts, "train")[0]
    taught = made.labels[made.labels != -100]
    assert TOKENS.decode(made.ids) == "<s>the cat sat</s>"
    assert TOKENS.decode(taught) == " sat</s>"
    ids = made.ids.tolist()
    labels = [-100] * (len(ids) - len(taught)) + ids[len(ids) - len(taught) :]
    facts = run(tmp_path / "b", train=str(tiny.jsonl(tmp_path / "b.jsonl", [{"input_ids": ids, "labels": labels}])))
    again = opened(tmp_path / "b", facts, "train")[0]
    assert (again.ids.tolist(), again.labels.tolist()) == (ids, made.labels.tolist())
    with pytest.raises(DataError, match="beyond"):
        run(tmp_path / "c", train=str(tiny.jsonl(tmp_path / "c.jsonl", [{"input_ids": [5, 10**6]}])))


def test_rows_of_other_tasks_are_checked_and_not_trained_on(tmp_path: Path) -> None:
    path = tiny.jsonl(tmp_path / "t.jsonl", [{"text": "x", "label": "a"}, {"text": "", "label": "a"}])
    with pytest.raises(DataError) as caught:
        run(tmp_path / "a", train=str(path))
    assert [fault.code for fault in caught.value.faults] == ["other_task", "empty_text"]
    assert "1 rows of 'classification' are fine" in str(caught.value)
