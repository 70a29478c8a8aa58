"""The gate: order of turns, empty answers, tool calls, identities, the held-out share."""

from typing import Any

import pytest
from hypothesis import given, strategies

from fulltune.data.example import Chat, Message, RowFault, Text
from fulltune.data.screen import check, content_id, loose_id

TOOLS = ({"type": "function", "function": {"name": "f"}},)


def chat(*roles: str, tools: Any = (), **contents: str) -> Chat:
    return Chat(tuple(Message(role, contents.get(role, f"{role} {n}")) for n, role in enumerate(roles)), tools)  # type: ignore[arg-type]


def call(name: str = "f") -> Message:
    made = {"id": "c", "type": "function", "function": {"name": name, "arguments": {}}}
    return Message("assistant", "", 1.0, {"tool_calls": [made]})


@pytest.mark.parametrize(
    "roles",
    [
        ("user", "assistant"),
        ("system", "user", "assistant"),
        ("user", "assistant", "user", "assistant"),
    ],
)
def test_good_orders(roles: tuple[str, ...]) -> None:
    check(chat(*roles))


@pytest.mark.parametrize(
    ("roles", "code"),
    [
        ((), "empty_conversation"),
        (("user",), "no_answer"),
        (("assistant", "user", "assistant"), "role_order"),
        (("user", "user", "assistant"), "role_order"),
        (("user", "assistant", "user"), "role_order"),
        (("user", "system", "assistant"), "role_order"),
        (("user", "assistant", "assistant"), "role_order"),
        (("user", "tool", "assistant"), "role_order"),
        (("system", "assistant"), "role_order"),
    ],
)
def test_bad_orders(roles: tuple[str, ...], code: str) -> None:
    with pytest.raises(RowFault) as caught:
        check(chat(*roles))
    assert caught.value.code == code


@pytest.mark.parametrize("answer", ["", "  \n", "\u200b\u200d\ufeff", "\u00ad"])
def test_empty_answers(answer: str) -> None:
    with pytest.raises(RowFault, match="empty"):
        check(chat("user", "assistant", assistant=answer))
    with pytest.raises(RowFault):
        check(Text(answer))


def test_short_answers_are_answers() -> None:
    check(chat("user", "assistant", assistant="."))


def test_weight_zero_is_not_taught() -> None:
    silent = Message("assistant", "", 0.0)
    check(Chat((Message("user", "q"), silent, Message("user", "q"), Message("assistant", "a"))))
    with pytest.raises(RowFault, match="weight 0"):
        check(Chat((Message("user", "q"), silent)))


def test_tool_calls() -> None:
    answer = Message("tool", "1", 1.0, {"tool_call_id": "c"})
    check(Chat((Message("user", "q"), call(), answer, Message("assistant", "a")), TOOLS))
    check(Chat((Message("user", "q"), call()), TOOLS))
    for messages, tools in (
        ((Message("user", "q"), call()), ()),
        ((Message("user", "q"), call("g")), TOOLS),
        (
            (Message("user", "q"), call(), Message("tool", "1", 1.0, {"tool_call_id": "x"}), Message("assistant", "a")),
            TOOLS,
        ),
    ):
        with pytest.raises(RowFault) as caught:
            check(Chat(messages, tools))
        assert caught.value.code == "tool_call"


def test_identity_is_what_is_taught() -> None:
    one = chat("user", "assistant")
    assert content_id(one) == content_id(chat("user", "assistant"))
    assert content_id(one) != content_id(chat("user", "assistant", assistant="Assistant 1"))
    assert loose_id(one) == loose_id(chat("user", "assistant", assistant=" Assistant\n 1"))
    assert content_id(Text("a")) != content_id(chat("user", "assistant", user="a"))


@given(strategies.text(min_size=1, max_size=9))
def test_the_loose_hash_is_blind_to_case_and_spacing(text: str) -> None:
    if text.upper().lower().casefold() == text.casefold():
        assert len({loose_id(Text(variant)) for variant in (text, text.upper().lower(), f" {text}\n")}) == 1
    assert loose_id(Text(text)) != loose_id(Text(text + "x"))
