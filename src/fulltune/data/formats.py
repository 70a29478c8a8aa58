"""FORMATS: raw row -> content. A new data format is one function and one line in the table."""

from collections.abc import Callable, Mapping
from typing import Any

from fulltune.base.table import Table
from fulltune.data.example import Chat, Content, Labelled, Message, Preference, Row, Text, Tokens
from fulltune.data.fields import list_of, optional_text, require, said, text_of
from fulltune.data.turns import message, prompted, shared_turn, tools_of, with_system

Format = Callable[[Row], Content]
"""Reads one row; RowFault says what is wrong with it."""


def messages(row: Row) -> Content:
    """`{"messages": [{"role", "content"}, ...], "tools"?}`: the OpenAI and Hugging Face chat shape."""
    turns = [message(turn, number) for number, turn in enumerate(list_of(row, "messages"), 1)]
    return Chat(with_system(row, turns), tools_of(row))


def sharegpt(row: Row) -> Content:
    """`{"conversations": [{"from": "human" | "gpt" | "system" | "function_call" | "observation", "value"}, ...]}`."""
    turns = [shared_turn(turn, number) for number, turn in enumerate(list_of(row, "conversations"), 1)]
    return Chat(with_system(row, turns), tools_of(row))


def instruction(row: Row) -> Content:
    """`{"instruction", "input"?, "output", "system"?, "history"?}`: the Alpaca shape; input follows a blank line."""
    asked = "\n\n".join(part for part in (text_of(row, "instruction"), optional_text(row, "input")) if part)
    before: list[Message] = []
    history = list_of(row, "history") if row.get("history") is not None else []
    for pair in history:
        fine = isinstance(pair, list) and len(pair) == 2 and all(isinstance(text, str) for text in pair)
        require(fine, "type", "`history` is not a list of [question, answer] texts", "mend or remove it")
        before += [Message("user", pair[0]), Message("assistant", pair[1])]
    turns = [*before, Message("user", asked), Message("assistant", text_of(row, "output"))]
    return Chat(with_system(row, turns), tools_of(row))


def prompt_completion(row: Row) -> Content:
    """`{"prompt", "completion"}`: a question and the answer to it, each a text or a list of messages."""
    question, answer = _text_or_turns(row, "prompt"), _text_or_turns(row, "completion")
    turns = [*prompted(question, "user", "prompt"), *prompted(answer, "assistant", "completion")]
    return Chat(with_system(row, turns), tools_of(row))


def input_output(row: Row) -> Content:
    """`{"segments": [{"text", "label": true | false}, ...]}`: joined as they are, taught where the label is true."""
    parts, spans, at = [], [], 0
    for number, segment in enumerate(list_of(row, "segments"), 1):
        fine = isinstance(segment, dict) and isinstance(segment.get("label"), bool)
        require(fine, "type", f"segment {number} has no label", 'write {"text": ..., "label": true or false}')
        part = text_of(segment, "text")
        if segment["label"] and part:
            spans.append((at, at + len(part)))
        at += len(part)
        parts.append(part)
    return Text("".join(parts), tuple(spans))


def text(row: Row) -> Content:
    """`{"text"}`: a document, all of it taught."""
    return Text(text_of(row, "text"))


def classification(row: Row) -> Content:
    """`{"text", "text_pair"?, "label" | "labels"}`: what the texts are; labels are texts or whole numbers."""
    pair = text_of(row, "text_pair") if row.get("text_pair") is not None else None
    several = "labels" in row and "label" not in row
    given = list_of(row, "labels") if several else [row["label"]] if "label" in row else [text_of(row, "label")]
    for label in given:
        require(label is not None, "null_value", "the label is null", "write it, or leave the row out")
        fine = isinstance(label, str | int) and not isinstance(label, bool)
        require(fine, "type", f"a label is {said(label)}", "write a text or a whole number")
        require(label != "", "label", "the label is empty", "write it, or leave the row out")
    return Labelled(text_of(row, "text"), pair, tuple(given), several)


def preference(row: Row) -> Content:
    """`{"prompt", "chosen", "rejected"}`: two answers, the first of them better, as texts or lists of messages."""
    asked = _text_or_turns(row, "prompt")
    better, worse = _text_or_turns(row, "chosen"), _text_or_turns(row, "rejected")
    kinds = {isinstance(value, list) for value in (asked, better, worse)}
    require(len(kinds) == 1, "type", "of prompt, chosen and rejected some are texts, some messages", "write all alike")
    return Preference(
        Chat(with_system(row, prompted(asked, "user", "prompt")), tools_of(row)),
        tuple(prompted(better, "assistant", "chosen")),
        tuple(prompted(worse, "assistant", "rejected")),
    )


def tokens(row: Row) -> Content:
    """`{"input_ids", "labels"?, "attention_mask"?}`: ready ids; labels beside their own ids, -100 where not taught."""
    ids = _numbers(row, "input_ids")
    labels = _numbers(row, "labels") if row.get("labels") is not None else ids
    require(len(labels) == len(ids), "type", f"{len(ids)} ids but {len(labels)} labels", "write one label for each id")
    odd = [place for place, (token, label) in enumerate(zip(ids, labels, strict=True)) if label not in (token, -100)]
    mend = "a label is the id that stands there, or -100; nothing is shifted yet"
    require(not odd, "type", f"label {odd[:1]} is neither its id nor -100", mend)
    require(all(token >= 0 for token in ids), "type", "an id is negative", "write ids of the model's tokenizer")
    return Tokens(ids, labels)


FORMATS: Table[Format] = Table(
    "data format",
    {
        "messages": messages,
        "sharegpt": sharegpt,
        "instruction": instruction,
        "prompt_completion": prompt_completion,
        "input_output": input_output,
        "text": text,
        "classification": classification,
        "preference": preference,
        "tokens": tokens,
    },
)

_SHARED = frozenset({"tools", "system"})
READ: Mapping[str, frozenset[str]] = {
    "messages": frozenset({"messages"}) | _SHARED,
    "sharegpt": frozenset({"conversations"}) | _SHARED,
    "instruction": frozenset({"instruction", "input", "output", "history"}) | _SHARED,
    "prompt_completion": frozenset({"prompt", "completion"}) | _SHARED,
    "input_output": frozenset({"segments"}),
    "text": frozenset({"text"}),
    "classification": frozenset({"text", "text_pair", "label", "labels"}),
    "preference": frozenset({"prompt", "chosen", "rejected"}) | _SHARED,
    "tokens": frozenset({"input_ids", "labels", "attention_mask"}),
}
"""The columns that each format reads."""


def _text_or_turns(row: Row, key: str) -> Any:
    return row[key] if isinstance(row.get(key), list) else text_of(row, key)


def _numbers(row: Row, key: str) -> tuple[int, ...]:
    found = list_of(row, key)
    fine = all(isinstance(number, int) and not isinstance(number, bool) for number in found)
    require(fine, "type", f"`{key}` holds other than whole numbers", "write a list of token ids")
    return tuple(found)
