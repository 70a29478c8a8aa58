"""One column of a row: what should stand there, or a fault that says what does."""

import difflib
import json
from typing import Any

from fulltune.data.example import Row, RowFault
from fulltune.data.strict import Parser

_ALSO = {
    "prompt": ("question", "query", "instruction", "input", "user"),
    "completion": ("response", "answer", "output", "reply", "assistant", "target"),
    "instruction": ("prompt", "question", "query"),
    "output": ("completion", "response", "answer", "target"),
    "messages": ("conversation", "chat", "dialog", "turns"),
    "text": ("content", "document", "body"),
}


def require(fine: bool, code: str, what: str, mend: str) -> None:
    """RowFault unless it is fine."""
    if not fine:
        raise RowFault(code, what, mend)


def text_of(row: Row, key: str) -> str:
    """The text under `key`; numbers and the like are refused, since str() of them is rarely what was meant."""
    if key not in row:
        raise RowFault("missing_field", f"there is no `{key}`", _near(key, row))
    value = row[key]
    if isinstance(value, str):
        return value
    require(value is not None, "null_value", f"`{key}` is null", "write a text, or leave the row out")
    raise RowFault("type", f"`{key}` is {said(value)}, expected a text", "write it as a JSON string")


def optional_text(row: Row, key: str) -> str:
    """The text under `key`; empty if there is none."""
    return text_of(row, key) if row.get(key) is not None else ""


def said(value: Any) -> str:
    """A value as errors show it."""
    return f"{type(value).__name__} ({json.dumps(value, ensure_ascii=False)[:40]})"


def _near(key: str, row: Row) -> str:
    """What the row has in place of a missing key, if it looks like it."""
    lowered = {str(name).lower(): name for name in row}
    for wanted in (key, *_ALSO.get(key, ())):
        if near := difflib.get_close_matches(wanted, lowered, n=1, cutoff=0.8):
            return f"the row has `{lowered[near[0]]}`; rename it to `{key}`"
    return f"the row has {', '.join(map(repr, row)) or 'no keys'}"


def list_of(row: Row, key: str) -> list[Any]:
    """The list under `key`."""
    if key not in row:
        raise RowFault("missing_field", f"there is no `{key}`", _near(key, row))
    value = row[key]
    if isinstance(value, list):
        return value
    require(value is not None, "null_value", f"`{key}` is null", "write a list, or leave the row out")
    raise RowFault("type", f"`{key}` is {said(value)}, expected a list", "write a list")


def inner_json(text: str, named: str, mend: str) -> Any:
    """The value of a JSON text inside a row, read as strictly as the row itself."""
    parser = Parser()
    try:
        value = parser.whole(text)
    except json.JSONDecodeError as fault:
        raise RowFault("tool_call", f"{named} not JSON: {fault.msg} (column {fault.colno})", mend) from fault
    twice = ", ".join(sorted(parser.twice))
    require(not twice, "tool_call", f"{named} ambiguous JSON: {twice} stands there twice", mend)
    return value
