"""What becomes of control tokens that a row spells: letters, nothing, or control tokens."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from fulltune.base.errors import DataError
from fulltune.data.example import Chat, Message, RowFault, Text
from fulltune.data.prepare import Kit, prepare
from fulltune.data.spelling import Speller
from fulltune.data.template import Template
from fulltune.recipe.load import load_recipe
from tests import tiny
from tests.unit.data.test_render import ANSWER, QUESTION, chat, render, taught

END, USER, ASSISTANT = (tiny.SPECIAL.index(name) for name in ("<|end|>", "<|user|>", "<|assistant|>"))
SPOKEN = chat(Message("user", "the <|end|><|user|>cat"), Message("assistant", "yes <|system|>a dog"))
PLAIN = chat(Message("user", "the cat"), Message("assistant", "yes a dog"))


def letters(*texts: str) -> list[int]:
    tokens = tiny.tokenizer()
    return [i for text in texts for i in tokens(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]]


def refused(code: str, content: Any, **options: Any) -> RowFault:
    with pytest.raises(RowFault) as caught:
        render(content, **options)
    assert caught.value.code == code
    return caught.value


def test_as_text_they_are_letters() -> None:
    ids = render(SPOKEN).ids.tolist()
    asked = letters("the <|end|><|user|>cat")
    assert ids == [1, USER, *asked, END, ASSISTANT, *letters("yes <|system|>a dog"), END]
    assert not set(asked) & set(range(len(tiny.SPECIAL)))


def test_dropped_the_row_is_as_if_they_had_not_been_there() -> None:
    made, wanted = render(SPOKEN, control_tokens="drop"), render(PLAIN)
    assert made.ids.tolist() == wanted.ids.tolist()
    assert made.labels.tolist() == wanted.labels.tolist()
    assert taught(made) == ["yes a dog<|end|>"]


def test_kept_they_are_control_tokens() -> None:
    system = tiny.SPECIAL.index("<|system|>")
    made = render(SPOKEN, control_tokens="keep")
    asked = [*letters("the "), END, USER, *letters("cat")]
    assert made.ids.tolist() == [1, USER, *asked, END, ASSISTANT, *letters("yes "), system, *letters("a dog"), END]
    assert taught(made) == ["yes <|system|>a dog<|end|>"]
    tokens = tiny.tokenizer()
    served = tokens.apply_chat_template([m.turn() for m in SPOKEN.messages], return_dict=False)
    assert made.ids.tolist() == served


def test_kept_a_row_without_any_is_as_ever() -> None:
    for mode in ("drop", "keep"):
        made = render(chat(QUESTION, ANSWER), control_tokens=mode)
        assert made.ids.tolist() == render(chat(QUESTION, ANSWER)).ids.tolist()


@pytest.mark.parametrize("said", ["yes<|end|>", "yes<|end|> no", "</s>yes", "yes</s> no</s>"])
def test_kept_a_stop_token_inside_a_taught_answer_is_refused(said: str) -> None:
    """The model would learn to go on behind it, where no inference ever comes."""
    fault = refused("stop_token", chat(QUESTION, Message("assistant", said)), control_tokens="keep")
    assert "turn 2 writes <" in fault.what
    silent = chat(QUESTION, Message("assistant", said, 0.0), QUESTION, ANSWER)
    assert taught(render(silent, control_tokens="keep")) == ["yes a dog<|end|>"]


def test_kept_a_rows_own_stop_token_ends_an_answer_that_the_template_does_not_end() -> None:
    bare = tiny.TEMPLATE.replace(" + '<|end|>'", "")
    refused("template_no_end", chat(QUESTION, ANSWER), control_tokens="keep", template=bare)
    made = render(chat(QUESTION, Message("assistant", "yes</s>")), control_tokens="keep", template=bare)
    assert taught(made) == ["yes</s>"]
    assert made.ids[-1] == 2


def test_kept_a_second_beginning_is_refused() -> None:
    first = "{{ bos_token }}{{ messages[0].content }}{% for m in messages[1:] %}{{ m.content + eos_token }}{% endfor %}"
    refused("double_bos", chat(Message("user", "<s>the cat"), ANSWER), control_tokens="keep", template=first)
    refused("double_bos", Text("<s>the cat"), control_tokens="keep")


def test_in_documents() -> None:
    content = Text("the <|end|>cat")
    assert render(content).ids.tolist() == [1, *letters("the <|end|>cat"), 2]
    assert render(content, control_tokens="drop").ids.tolist() == [1, *letters("the cat"), 2]
    assert render(content, control_tokens="keep").ids.tolist() == [1, *letters("the "), END, *letters("cat"), 2]
    assert render(Text("the cat</s>"), control_tokens="keep").ids.tolist() == [1, *letters("the cat"), 2]


def test_segments_are_control_tokens_in_any_case() -> None:
    content = Text("the<|end|>cat", ((10, 13),))
    wanted = render(content).ids.tolist()
    assert END in wanted
    for mode in ("drop", "keep"):
        assert render(content, control_tokens=mode).ids.tolist() == wanted


@pytest.mark.parametrize(
    ("content", "code"),
    [
        (chat(QUESTION, Message("assistant", "<|end|> ")), "empty_answer"),
        (Text("<|end|></s>"), "empty_text"),
        (chat(QUESTION, ANSWER, tools=({"function": {"name": "f", "a": 1, "a</s>": 2}},)), "special_token_text"),
    ],
)
def test_what_dropping_leaves_is_checked_as_any_row(content: Any, code: str) -> None:
    refused(code, content, control_tokens="drop")


def test_dropping_one_makes_no_other() -> None:
    speller = Speller(tiny.tokenizer())
    value = {"a<|en<|end|>d|>": ["<</s>/s>b", ("<|<|user|>end|>",), 1, None]}
    assert speller.drop(value) == {"a": ["b", [""], 1, None]}


@pytest.mark.parametrize("mode", ["text", "drop", "keep"])
def test_a_private_character_is_refused_in_any_case(mode: str) -> None:
    taken = Speller(tiny.tokenizer()).hide("</s>")
    refused("private_character", chat(Message("user", f"a{taken}"), ANSWER), control_tokens=mode)


def run(folder: Path, rows: Sequence[Any], **data: Any) -> Any:
    path, tokens = tiny.jsonl(folder / "rows.jsonl", rows), tiny.tokenizer()
    asked = load_recipe({"model": {"path": "x/y"}, "data": {"train": str(path), "heldout": 0, **data}}).data
    return prepare(asked, Kit(tokens, Template(tokens, None, "t")), folder / "store", "x")


@pytest.mark.parametrize(
    ("mode", "note"),
    [("text", "special_token_text"), ("drop", "special_token_dropped"), ("keep", "special_token_kept")],
)
def test_each_row_is_noted(tmp_path: Path, mode: str, note: str) -> None:
    rows = [{"prompt": "a", "completion": "b"}, {"prompt": "a </s> <|user|>", "completion": "b"}]
    facts = run(tmp_path, rows, control_tokens=mode)
    assert facts.notes == {note: f"1 x: {tmp_path / 'rows.jsonl'}:2 (</s>, <|user|>)"}


def test_a_stop_token_inside_is_a_bad_row(tmp_path: Path) -> None:
    rows = [{"prompt": "a", "completion": "b"}, {"prompt": "a", "completion": "b</s>c"}]
    with pytest.raises(DataError) as caught:
        run(tmp_path, rows, control_tokens="keep")
    assert [(fault.code, fault.where) for fault in caught.value.faults] == [
        ("stop_token", f"{tmp_path / 'rows.jsonl'}:2")
    ]


def test_the_row_itself_is_not_changed() -> None:
    before = Chat(tuple(SPOKEN.messages))
    render(SPOKEN, control_tokens="drop")
    assert before == SPOKEN
