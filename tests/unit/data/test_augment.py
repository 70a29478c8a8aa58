"""Further rows of a row: the same wherever they are made, and what cannot be made is said."""

import subprocess
import sys
from collections.abc import Iterator
from random import Random
from typing import Any

import pytest
from hypothesis import given, strategies

from fulltune.base.errors import RecipeError
from fulltune.data.augment import AUGMENTS, Augmenting, augmented, augments
from fulltune.data.example import Row, RowFault
from fulltune.planning.make import require_names
from fulltune.recipe.data import Source
from fulltune.recipe.load import load_recipe

ROW = {"instruction": "Translate.", "input": "Haus", "output": "house", "system": "s"}
WORDS = [
    "Please: {{ instruction }}",
    "{{ instruction }} Thanks!",
    "{{ instruction | upper }}",
    "{{ system }} {{ input }}",
]


def source(*asked: Any, form: str = "auto") -> Source:
    return Source.model_validate({"path": "a.jsonl", "format": form, "augment": list(asked)})


def made(*asked: Any, form: str = "auto") -> tuple[Augmenting, ...]:
    return augments(source(*asked, form=form), "data.train.0")


def phrased(copies: int = 1, texts: Any = WORDS, column: Any = "instruction") -> dict[str, Any]:
    return {"use": "phrasings", "copies": copies, "options": {"column": column, "phrasings": texts}}


def faults(*asked: Any, form: str = "auto") -> dict[str, str]:
    """Place of each fault and what it is."""
    with pytest.raises(RecipeError) as caught:
        made(*asked, form=form)
    assert all(fault.mend for fault in caught.value.faults)
    return {fault.where.removeprefix("data.train.0.augment."): fault.what for fault in caught.value.faults}


def test_the_input_comes_before_the_instruction() -> None:
    (new,) = augmented(ROW, made("field_order"), "key")
    assert new == {**ROW, "instruction": "Haus", "input": "Translate."}
    from fulltune.data.formats import instruction

    assert instruction(new).messages[1].content == "Haus\n\nTranslate."  # type: ignore[union-attr]


@pytest.mark.parametrize(
    "row",
    [
        {"instruction": "a", "output": "b"},
        {"instruction": "a", "input": "", "output": "b"},
        {"instruction": "a", "input": None, "output": "b"},
        {"instruction": "a", "input": "a", "output": "b"},
        {"text": "a", "label": "b"},
    ],
)
def test_without_two_fields_there_is_one_order(row: Row) -> None:
    assert augmented(row, made("field_order"), "key") == []


def test_a_pair_is_turned() -> None:
    row = {"text": "a cat", "text_pair": "a feline", "label": 1}
    assert augmented(row, made("field_order"), "key") == [{"text": "a feline", "text_pair": "a cat", "label": 1}]


def test_every_phrasing_is_used_once_and_chance_decides_which_come_first() -> None:
    wanted = {"Please: Translate.", "Translate. Thanks!", "TRANSLATE.", "s Haus"}
    firsts = set()
    for key in map(str, range(40)):
        rows = augmented(ROW, made(phrased(4)), key)
        assert {row["instruction"] for row in rows} == wanted
        assert len(rows) == 4
        assert all(row == {**ROW, "instruction": row["instruction"]} for row in rows)
        firsts.add(rows[0]["instruction"])
    assert firsts == wanted


@given(strategies.text(), strategies.integers(1, 4), strategies.integers(1, 4))
def test_a_copy_hangs_on_the_content_and_its_number_alone(key: str, few: int, many: int) -> None:
    few, many = sorted((few, many))
    assert augmented(ROW, made(phrased(many)), key)[:few] == augmented(ROW, made(phrased(few)), key)
    both = augmented(ROW, made("field_order", phrased(few)), key)
    assert both[:1] == augmented(ROW, made("field_order"), key), "one after the other, each of the row as it is"
    assert all(row["input"] == "Haus" for row in both[1:])


def test_two_entries_of_one_kind_draw_apart() -> None:
    rows = [augmented(ROW, made(phrased(), phrased()), str(key)) for key in range(40)]
    assert any(one != other for one, other in rows)


def test_another_process_makes_the_same_rows() -> None:
    script = (
        "from tests.unit.data.test_augment import *\n"
        "print([row['instruction'] for n in range(9) for row in augmented(ROW, made(phrased(2)), f'é{n}')])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    here = [row["instruction"] for n in range(9) for row in augmented(ROW, made(phrased(2)), f"é{n}")]
    assert done.stdout.strip() == str(here)


def test_the_copies_are_pinned() -> None:
    """A change here changes what is taught: the store's version is raised with it."""
    rows = augmented(ROW, made(phrased(4)), "0" * 32)
    assert [row["instruction"] for row in rows] == ["s Haus", "TRANSLATE.", "Translate. Thanks!", "Please: Translate."]


def test_what_is_written_as_it_was_is_no_further_row() -> None:
    assert augmented(ROW, made(phrased(2, ["{{ instruction }}", "Translate."])), "key") == []


def test_a_column_that_a_row_lacks_may_be_written() -> None:
    row = {"prompt": "p", "completion": "c"}
    assert augmented(row, made(phrased(texts=["Be brief."], column="system")), "key") == [
        {**row, "system": "Be brief."}
    ]


@pytest.mark.parametrize(
    ("row", "asked", "code", "said"),
    [
        ({"messages": []}, "field_order", "augment", "neither `instruction` nor `text`"),
        ({"instruction": "a", "input": 5}, "field_order", "type", "`input` is int"),
        ({"output": "b"}, phrased(texts=["{{ instruction }}!"]), "missing_field", "`instruction`, which phrasing 1"),
        ({"instruction": ["a"]}, phrased(texts=["x"]), "augment", "`instruction` is list"),
        ({"instruction": 5}, phrased(texts=["x"]), "augment", "`instruction` is int"),
        ({"instruction": " "}, phrased(texts=["{{ instruction }}"]), "augment", "phrasing 1 gives an empty text"),
        ({"instruction": "a"}, phrased(texts=["{{ 1 / 0 }}"]), "augment", "phrasing 1 fails"),
        ({"instruction": "a"}, phrased(texts=["{{ instruction.a.b }}"]), "augment", "phrasing 1 fails"),
        ({"instruction": "a"}, phrased(texts=["{{ instruction.__class__.mro() }}"]), "augment", "phrasing 1 fails"),
        ({"instruction": "a"}, phrased(texts=["{{ instruction * 10**9 }}"]), "augment", "phrasing 1 fails"),
    ],
)
def test_a_row_that_cannot_be_changed_is_a_fault_of_the_row(row: Row, asked: Any, code: str, said: str) -> None:
    with pytest.raises(RowFault) as caught:
        augmented(row, made(asked), "key")
    assert caught.value.code == code
    assert said in caught.value.what
    assert caught.value.mend


def test_what_cannot_be_is_told_before_any_row_and_at_once() -> None:
    found = faults("phrasing", {"use": "field_order", "options": {"a": 1}}, {"use": "phrasings"}, phrased(5))
    assert found["0.use"] == "no augmentation is called 'phrasing'"
    assert "unexpected keyword argument 'a'" in found["1.options"]
    assert "missing a required argument: 'column'" in found["2.options"]
    assert "5 copies of 4 phrasings" in found["3.copies"]
    assert faults({"use": "field_order", "copies": 2}).keys() == {"0.copies"}
    assert "does nothing for rows of 'messages'" in faults("field_order", form="messages")["0.use"]
    texts = ["{{ a", "fine", "{{ b | nosuchfilter }}"]
    found = faults(phrased(texts=texts, column="question"))
    assert found.keys() == {"0.options.column"} | {f"0.options.phrasings.{n}" for n in (0, 2)}
    assert "'prompt' is no column of 'instruction'" in faults(phrased(column="prompt"), form="instruction").popitem()[1]
    for column in (None, 5, ["instruction"]):
        assert "0.options.column" in faults(phrased(column=column))
    for wrong in ([], "x", [1], ["a", "a"], [" "], {"a": 1}, None):
        assert faults(phrased(texts=wrong)).keys() == {"0.options.phrasings"}


def test_a_recipe_is_asked_for_them_with_all_its_other_names() -> None:
    train = [{"path": "a", "format": "nosuch", "augment": "field_orde"}, {"path": "b", "augment": phrased(9)}]
    replay = {"sources": {"path": "c", "format": "messages", "augment": "field_order"}}
    recipe = load_recipe({"model": {"path": "x"}, "data": {"train": train, "replay": replay}})
    with pytest.raises(RecipeError) as caught:
        require_names(recipe)
    assert {fault.where for fault in caught.value.faults} == {
        "data.train.0.format",
        "data.train.0.augment.0.use",
        "data.train.1.augment.0.copies",
        "data.replay.sources.0.augment.0.use",
    }


@pytest.mark.parametrize("split", ["heldout", "test", "retention"])
def test_what_is_measured_is_measured_as_it_is(split: str) -> None:
    with pytest.raises(RecipeError, match="`augment` makes more of what is trained on"):
        load_recipe({"model": {"path": "x"}, "data": {"train": "a", split: {"path": "b", "augment": "field_order"}}})


def noisy(row: Row, random: Random, *, amount: int = 1) -> Iterator[Row]:
    while True:
        yield {**row, "output": f"{row['output']} {random.random() * amount}"}


def broken(row: Row, random: Random, way: str = "key") -> Any:
    if way == "row":
        return [5]
    if way == "none":
        return None
    row["output"] = "changed"  # type: ignore[index]
    return [{"x": row["nothing"]}]


def test_one_from_outside_may_go_on_for_ever() -> None:
    asked = {"use": "tests.unit.data.test_augment:noisy", "copies": 3, "options": {"amount": 2}}
    rows = augmented(ROW, made(asked), "key")
    assert len({row["output"] for row in rows}) == 3
    assert rows == augmented(ROW, made(asked), "key")
    assert "amount" in faults_of({**asked, "options": {"loud": 2}})
    assert set(AUGMENTS) == {"field_order", "phrasings"}


def faults_of(asked: Any) -> str:
    with pytest.raises(RecipeError) as caught:
        made(asked)
    return caught.value.faults[0].mend


def test_one_from_outside_that_fails_is_named() -> None:
    for way, said in (("key", "KeyError('nothing')"), ("row", "gives int"), ("none", "not iterable")):
        asked = {"use": "tests.unit.data.test_augment:broken", "options": {"way": way}}
        with pytest.raises(RowFault) as caught:
            augmented(ROW, made(asked), "key")
        assert said in caught.value.what
        assert "test_augment:broken" in caught.value.what
    assert ROW["output"] == "house", "the row itself stays as it is"
