"""Rows -> content, and what is wrong with a row."""

import json
from typing import Any, cast

import pytest

from fulltune.base.errors import DataError
from fulltune.data.detect import detect, detect_source
from fulltune.data.example import Chat, Labelled, Preference, RowFault, Text, Tokens
from fulltune.data.formats import FORMATS, READ
from fulltune.data.screen import check

CALL = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": {"x": 1}}}


def turns(content: Any) -> list[tuple[str, str]]:
    assert isinstance(content, Chat)
    return [(message.role, message.content) for message in content.messages]


def test_every_format_gives_one_shape() -> None:
    asked = [("user", "q"), ("assistant", "a")]
    rows = {
        "messages": {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]},
        "sharegpt": {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]},
        "instruction": {"instruction": "q", "input": "", "output": "a"},
        "prompt_completion": {"prompt": "q", "completion": "a"},
    }
    for name, row in rows.items():
        assert turns(FORMATS[name](row)) == asked, name
        assert detect(row) == name
    assert FORMATS["text"]({"text": "t"}) == Text("t")
    assert {*rows, "text", "input_output", "classification", "preference", "tokens"} == set(FORMATS)


def test_instruction_joins_input_history_and_system() -> None:
    row = {"instruction": "i", "input": "n", "output": "o", "system": "s", "history": [["q", "a"]]}
    wanted = [("system", "s"), ("user", "q"), ("assistant", "a"), ("user", "i\n\nn"), ("assistant", "o")]
    assert turns(FORMATS["instruction"](row)) == wanted


def test_texts_are_kept_to_the_byte() -> None:
    said = "{KEY} UPPER \N{GRINNING FACE} \r\n \0 {{ x }} %s"
    assert turns(FORMATS["prompt_completion"]({"prompt": said, "completion": said}))[0][1] == said


@pytest.mark.parametrize(
    ("form", "row", "code", "hint"),
    [
        ("prompt_completion", {"prompt": "q"}, "missing_field", "'prompt'"),
        ("prompt_completion", {"prompt": "q", "responce": "a"}, "missing_field", "`responce`"),
        ("prompt_completion", {"Prompt": "q", "Completion": "a"}, "missing_field", "`Prompt`"),
        ("prompt_completion", {"prompt": "q", "completion": None}, "null_value", "leave the row out"),
        ("prompt_completion", {"prompt": 3, "completion": "a"}, "type", "JSON string"),
        ("prompt_completion", {"prompt": True, "completion": "a"}, "type", "JSON string"),
        ("prompt_completion", {"prompt": ["q"], "completion": "a"}, "type", "role"),
        ("messages", {"messages": "hello"}, "type", "write a list"),
        ("messages", {"messages": None}, "null_value", "write a list"),
        ("messages", {"messages": ["x"]}, "type", "role"),
        ("messages", {"messages": [{"role": "bot", "content": "x"}]}, "unknown_role", "system, user"),
        ("messages", {"messages": [{"role": "user"}]}, "missing_field", "'role'"),
        ("messages", {"messages": [{"role": "user", "content": None}]}, "null_value", "text"),
        ("messages", {"messages": [{"role": "user", "content": "x", "weight": "a"}]}, "type", "number"),
        ("messages", {"messages": [], "tools": "{"}, "tool_call", "tools"),
        ("messages", {"messages": [], "tools": {"a": 1}}, "type", "tools"),
        ("sharegpt", {"conversations": [{"from": "alien", "value": "x"}]}, "unknown_role", "system"),
        ("instruction", {"instruction": "q", "output": "a", "history": ["x"]}, "type", "remove"),
        ("instruction", {"instruction": "q"}, "missing_field", "instruction"),
        ("text", {"text": 3.5}, "type", "string"),
    ],
)
def test_faults_have_a_code_and_a_mend(form: str, row: dict, code: str, hint: str) -> None:
    with pytest.raises(RowFault) as caught:
        FORMATS[form](row)
    assert caught.value.code == code
    assert hint in caught.value.mend


def test_tool_calls_take_arguments_as_object_or_text() -> None:
    as_text = {**CALL, "function": {"name": "f", "arguments": '{"x": 1}'}}
    for call in (CALL, as_text):
        content = FORMATS["messages"]({"messages": [{"role": "assistant", "content": None, "tool_calls": [call]}]})
        assert isinstance(content, Chat)
        assert content.messages[0].extra["tool_calls"][0]["function"]["arguments"] == {"x": 1}


@pytest.mark.parametrize(
    "function",
    [
        None,
        {},
        "f",
        ["f"],
        {"name": ["f"]},
        {"name": "f", "arguments": "{"},
        {"name": "f", "arguments": "[1]"},
        {"name": "f", "arguments": '{"a": NaN}'},
        {"name": "f", "arguments": '{"a": 1, "a": 2}'},
        {"name": "f", "arguments": '{"a": "\\ud800"}'},
        {"name": "f", "arguments": "[" * 100_000},
        {"name": "f", "arguments": '{"a": ' + "9" * 5000 + "}"},
    ],
)
def test_broken_tool_calls(function: Any) -> None:
    row = {"messages": [{"role": "assistant", "content": "", "tool_calls": [{"function": function}]}]}
    with pytest.raises(RowFault) as caught:
        FORMATS["messages"](row)
    assert caught.value.code in ("tool_call", "json_nan", "json_parse", "unicode_surrogate")


@pytest.mark.parametrize("calls", ["", {}, 0, False, "f"])
def test_tool_calls_are_a_list(calls: Any) -> None:
    with pytest.raises(RowFault, match="tool_calls"):
        FORMATS["messages"]({"messages": [{"role": "assistant", "content": "a", "tool_calls": calls}]})


def test_an_empty_list_of_calls_is_no_call() -> None:
    content = FORMATS["messages"]({"messages": [{"role": "assistant", "content": "a", "tool_calls": []}]})
    assert isinstance(content, Chat)
    assert content.messages[0].extra == {}
    with pytest.raises(RowFault, match="empty"):
        check(cast(Chat, FORMATS["messages"]({"messages": [ASKED, {**ANSWERED, "content": "", "tool_calls": []}]})))


ASKED, ANSWERED = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}


@pytest.mark.parametrize("tools", [["f"], [None], [{}], [{"function": "f"}], [{"function": {"name": ["f"]}}], "[{}]"])
def test_broken_tools(tools: Any) -> None:
    with pytest.raises(RowFault) as caught:
        FORMATS["messages"]({"messages": [ASKED, ANSWERED], "tools": tools})
    assert caught.value.code == "tool_call"


@pytest.mark.parametrize(
    ("form", "row"),
    [
        ("messages", {"messages": [ASKED, ANSWERED]}),
        ("sharegpt", {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]}),
        ("prompt_completion", {"prompt": "q", "completion": "a"}),
        ("instruction", {"instruction": "q", "output": "a"}),
    ],
)
def test_system_and_tools_columns_are_read(form: str, row: dict[str, Any]) -> None:
    content = FORMATS[form]({**row, "system": "be kind", "tools": json.dumps([{"name": "f"}])})
    assert isinstance(content, Chat)
    assert [(m.role, m.content) for m in content.messages] == [("system", "be kind"), ("user", "q"), ("assistant", "a")]
    assert content.tools == ({"type": "function", "function": {"name": "f"}},)


def test_two_system_texts_are_ambiguous() -> None:
    with pytest.raises(RowFault, match="system"):
        FORMATS["messages"]({"messages": [{"role": "system", "content": "a"}, ASKED, ANSWERED], "system": "b"})


@pytest.mark.parametrize("weight", [float("inf"), 1e39, 10**400, -1, True, "1"])
def test_weights_are_bounded_in_both_chat_formats(weight: Any) -> None:
    with pytest.raises(RowFault, match="weight"):
        FORMATS["messages"]({"messages": [ASKED, {**ANSWERED, "weight": weight}]})
    with pytest.raises(RowFault, match="weight"):
        FORMATS["sharegpt"]({"conversations": [{"from": "gpt", "value": "a", "weight": weight}]})


def test_a_sharegpt_turn_has_its_weight() -> None:
    content = FORMATS["sharegpt"]({"conversations": [{"from": "gpt", "value": "a", "weight": 0}]})
    assert isinstance(content, Chat)
    assert content.messages[0].weight == 0


def test_what_a_message_says_besides_reaches_the_template() -> None:
    row = {"messages": [{"role": "assistant", "content": "a", "reasoning_content": "r", "weight": 0.5}]}
    content = FORMATS["messages"](row)
    assert isinstance(content, Chat)
    assert content.messages[0].turn() == {"role": "assistant", "content": "a", "reasoning_content": "r"}
    assert content.messages[0].weight == 0.5


def test_a_source_has_the_format_of_most_of_its_rows() -> None:
    rows = [{"prompt": "a"}, {"prompt": "a", "completion": "b"}, {"text": "x"}, {"prompt": "a", "completion": "b"}]
    assert detect_source(rows, "f") == "prompt_completion"


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"foo": 1, "bar": 2}, "bar, foo"),
        ({"prompt": "a", "completion": "b", "messages": []}, "more than one"),
    ],
)
def test_what_is_ambiguous_is_asked(row: dict, said: str) -> None:
    assert detect(row) is None
    with pytest.raises(DataError, match=said):
        detect_source([row], "f")


def test_some_keys_decide_whatever_stands_beside_them() -> None:
    assert detect({"text": "x", "label": "y"}) == "classification"
    assert detect({"text": "x", "labels": ["y"]}) == "classification"
    assert detect({"prompt": "x", "chosen": "a", "rejected": "b"}) == "preference"
    assert detect({"input_ids": [1], "text": "x"}) == "tokens"
    rows = [{"text": "x", "label": "y"}, {"text": "x"}, {"text": "x", "label": "y"}]
    assert detect_source(rows, "f") == "classification"


def test_tools_reach_the_template_as_servers_hand_them_over() -> None:
    """ShareGPT rows and newer APIs write the bare function; a template that asks for `tool.function` would see none."""
    served = {"type": "function", "function": {"name": "f", "parameters": {}}}
    other = {"type": "search", "name": "s"}
    bare = {"name": "f", "parameters": {}}
    content = FORMATS["messages"](
        {"messages": [ANSWERED], "tools": [bare, {"type": "function", **bare}, served, other]}
    )
    assert isinstance(content, Chat)
    assert content.tools == (served, served, served, other)


def test_every_format_reads_columns() -> None:
    assert set(READ) == set(FORMATS)


def test_sharegpt_calls_tools_as_llama_factory_writes_them() -> None:
    row = {
        "conversations": [
            {"from": "human", "value": "q"},
            {"from": "function_call", "value": '{"name": "f", "arguments": {"x": 1}}'},
            {"from": "observation", "value": "12"},
            {"from": "gpt", "value": "a"},
        ],
        "tools": '[{"name": "f", "parameters": {}}]',
    }
    content = FORMATS["sharegpt"](row)
    assert isinstance(content, Chat)
    assert [m.role for m in content.messages] == ["user", "assistant", "tool", "assistant"]
    assert content.messages[1].extra["tool_calls"] == [
        {"type": "function", "function": {"name": "f", "arguments": {"x": 1}}}
    ]
    check(content)
    row["conversations"][1]["value"] = "f(1)"  # type: ignore[index]
    with pytest.raises(RowFault, match="turn 2"):
        FORMATS["sharegpt"](row)


def test_prompts_and_completions_may_be_messages() -> None:
    row = {"prompt": [{"role": "system", "content": "s"}, ASKED], "completion": [ANSWERED]}
    assert turns(FORMATS["prompt_completion"](row)) == [("system", "s"), ("user", "q"), ("assistant", "a")]
    assert turns(FORMATS["prompt_completion"]({**row, "completion": "b"}))[-1] == ("assistant", "b")
    with pytest.raises(RowFault, match="begins with user"):
        FORMATS["prompt_completion"]({**row, "completion": [ASKED]})


@pytest.mark.parametrize(("train", "weight"), [(True, 1.0), (False, 0.0)])
def test_train_is_a_weight_of_one_or_nothing(train: bool, weight: float) -> None:
    content = FORMATS["messages"]({"messages": [ASKED, {**ANSWERED, "train": train}]})
    assert isinstance(content, Chat)
    assert content.messages[1].weight == weight
    assert "train" not in content.messages[1].turn()
    for odd in ({"train": 1}, {"train": True, "weight": 1}):
        with pytest.raises(RowFault, match="train"):
            FORMATS["messages"]({"messages": [ASKED, {**ANSWERED, **odd}]})


def test_segments_have_their_own_labels() -> None:
    parts = [{"text": "Q: ", "label": False}, {"text": "", "label": True}, {"text": "yes", "label": True}]
    assert FORMATS["input_output"]({"segments": parts}) == Text("Q: yes", ((3, 6),))
    with pytest.raises(RowFault, match="segment 1"):
        FORMATS["input_output"]({"segments": [{"text": "x"}]})
    with pytest.raises(RowFault, match="nothing to learn"):
        check(FORMATS["input_output"]({"segments": [{"text": "x", "label": False}]}))


def test_labels_of_texts_and_pairs() -> None:
    read = FORMATS["classification"]
    assert read({"text": "x", "label": "spam"}) == Labelled("x", None, ("spam",))
    assert read({"text": "x", "text_pair": "y", "label": 3}) == Labelled("x", "y", (3,))
    assert read({"text": "x", "labels": ["a", "b"]}) == Labelled("x", None, ("a", "b"), several=True)
    assert read({"text": "x", "labels": []}) == Labelled("x", None, (), several=True)
    for label, code in ((None, "null_value"), (True, "type"), (1.5, "type"), ("", "label")):
        with pytest.raises(RowFault) as caught:
            read({"text": "x", "label": label})
        assert caught.value.code == code
    with pytest.raises(RowFault) as caught:
        read({"text": "x"})
    assert caught.value.code == "missing_field"


def test_preferences() -> None:
    row = {"prompt": "q", "chosen": "good", "rejected": "bad"}
    content = FORMATS["preference"](row)
    assert isinstance(content, Preference)
    assert [m.content for m in (*content.prompt.messages, *content.chosen, *content.rejected)] == ["q", "good", "bad"]
    check(content)
    as_turns = {"prompt": [ASKED], "chosen": [ANSWERED], "rejected": [{**ANSWERED, "content": "b"}]}
    check(FORMATS["preference"](as_turns))
    for change, code in (
        ({"rejected": "good"}, "preference"),
        ({"chosen": ""}, "empty_answer"),
        ({"prompt": [], "chosen": [ANSWERED], "rejected": [{**ANSWERED, "content": "b"}]}, "empty_conversation"),
        ({"chosen": [ANSWERED]}, "type"),
    ):
        with pytest.raises(RowFault) as caught:
            check(FORMATS["preference"]({**row, **change}))
        assert caught.value.code == code


def test_ready_ids() -> None:
    read = FORMATS["tokens"]
    assert read({"input_ids": [5, 6, 7], "labels": [-100, 6, 7]}) == Tokens((5, 6, 7), (-100, 6, 7))
    assert read({"input_ids": [5, 6]}) == Tokens((5, 6), (5, 6))
    for row in (
        {"input_ids": [5, 6], "labels": [6]},
        {"input_ids": [5, 6], "labels": [6, 7]},
        {"input_ids": [-1]},
        {"input_ids": ["a"]},
    ):
        with pytest.raises(RowFault):
            read(row)
    with pytest.raises(RowFault, match="no label"):
        check(Tokens((5, 6), (5, -100)))
