"""FORMATS: raw row -> content. A new data format is one function and one line in the table."""

import difflib
import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

from fulltune.base.errors import DataError
from fulltune.base.table import Table
from fulltune.data.example import ROLES, Chat, Content, Message, Role, Row, RowFault, Text
from fulltune.data.strict import Parser

Format = Callable[[Row], Content]
"""Reads one row; RowFault says what is wrong with it."""

_ALSO = {
    "prompt": ("question", "query", "instruction", "input", "user"),
    "completion": ("response", "answer", "output", "reply", "assistant", "target"),
    "instruction": ("prompt", "question", "query"),
    "output": ("completion", "response", "answer", "target"),
    "messages": ("conversation", "chat", "dialog", "turns"),
    "text": ("content", "document", "body"),
}
_HEAVIEST = 100
"""A larger weight is a slip: the loss is a weighted mean, so only ratios count."""
_SHAREGPT: Mapping[str, Role] = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
}


def messages(row: Row) -> Content:
    """`{"messages": [{"role", "content"}, ...], "tools"?}`: the OpenAI and Hugging Face chat shape."""
    turns = _list(row, "messages")
    made = [_message(turn, number) for number, turn in enumerate(turns, 1)]
    return Chat(_with_system(row, made), _tools(row))


def sharegpt(row: Row) -> Content:
    """`{"conversations": [{"from": "human" | "gpt" | "system", "value"}, ...]}`."""
    made = []
    for number, turn in enumerate(_list(row, "conversations"), 1):
        _require(
            isinstance(turn, dict),
            "type",
            f"turn {number} is not an object",
            'write {"from": ..., "value": ...}',
        )
        sender = _text(turn, "from")
        role = _SHAREGPT.get(sender, sender)
        made.append(Message(_role(role, number), _text(turn, "value"), _weight(turn, number)))
    return Chat(_with_system(row, made), _tools(row))


def instruction(row: Row) -> Content:
    """`{"instruction", "input"?, "output", "system"?, "history"?}`: the Alpaca shape; input follows a blank line."""
    _text(row, "instruction")
    asked = "\n\n".join(part for part in (_text(row, "instruction"), _optional(row, "input")) if part)
    before: list[Message] = []
    for pair in row.get("history") or ():
        fine = isinstance(pair, list) and len(pair) == 2 and all(isinstance(text, str) for text in pair)
        _require(fine, "type", "`history` is not a list of [question, answer] texts", "mend or remove it")
        before += [Message("user", pair[0]), Message("assistant", pair[1])]
    turns = [*before, Message("user", asked), Message("assistant", _text(row, "output"))]
    return Chat(_with_system(row, turns), _tools(row))


def prompt_completion(row: Row) -> Content:
    """`{"prompt", "completion"}`, both texts: a user turn and the answer to it."""
    turns = [Message("user", _text(row, "prompt")), Message("assistant", _text(row, "completion"))]
    return Chat(_with_system(row, turns), _tools(row))


def text(row: Row) -> Content:
    """`{"text"}`: a document, all of it taught."""
    return Text(_text(row, "text"))


def _with_system(row: Row, turns: Sequence[Message]) -> tuple[Message, ...]:
    """The turns, behind the text of a column `system` if there is one."""
    system = _optional(row, "system")
    twice = bool(system and turns and turns[0].role == "system")
    _require(not twice, "role_order", "a `system` column and a system turn", "leave one of them out")
    return (Message("system", system), *turns) if system else tuple(turns)


FORMATS: Table[Format] = Table(
    "data format",
    {
        "messages": messages,
        "sharegpt": sharegpt,
        "instruction": instruction,
        "prompt_completion": prompt_completion,
        "text": text,
    },
)

_KEYS: Mapping[str, frozenset[str]] = {
    "messages": frozenset({"messages"}),
    "sharegpt": frozenset({"conversations"}),
    "instruction": frozenset({"instruction", "output"}),
    "prompt_completion": frozenset({"prompt", "completion"}),
    "text": frozenset({"text"}),
}
READ: Mapping[str, frozenset[str]] = {
    "messages": frozenset({"messages", "tools", "system"}),
    "sharegpt": frozenset({"conversations", "tools", "system"}),
    "instruction": frozenset({"instruction", "input", "output", "history", "tools", "system"}),
    "prompt_completion": frozenset({"prompt", "completion", "tools", "system"}),
    "text": frozenset({"text"}),
}
"""The columns that each format reads."""
_OTHER_TASKS: Mapping[str, frozenset[str]] = {
    "preference pairs": frozenset({"chosen", "rejected"}),
    "classification": frozenset({"text", "label"}),
    "tokens": frozenset({"input_ids"}),
}


def detect(row: Row) -> str | None:
    """The one format whose keys the row has; None if there is none, or more than one."""
    if _task(row) is not None:
        return None
    found = [name for name, keys in _KEYS.items() if keys <= row.keys()]
    return found[0] if len(found) == 1 else None


def detect_source(rows: Sequence[Row], where: str) -> str:
    """The format that most of the first rows have. DataError names the keys if that cannot be said."""
    seen = Counter(_task(row) or detect(row) for row in rows)
    del seen[None]
    keys = ", ".join(sorted({key for row in rows for key in row})) or "none"
    if not seen:
        raise DataError(
            f"the rows' keys ({keys}) fit no format, or more than one",
            where=where,
            mend="say `format:` beside the path: "
            + "; ".join(f"{n} ({', '.join(sorted(k))})" for n, k in _KEYS.items()),
        )
    found = str(seen.most_common(1)[0][0])
    if found in _OTHER_TASKS:
        raise DataError(
            f"these rows look like {found} ({keys}), which this version does not train on",
            where=where,
            mend="if only the text matters, say `format: text` beside the path",
        )
    return found


def _task(row: Row) -> str | None:
    """Another kind of task that the row's keys speak of."""
    return next((task for task, keys in _OTHER_TASKS.items() if keys <= row.keys()), None)


def _require(fine: bool, code: str, what: str, mend: str) -> None:
    if not fine:
        raise RowFault(code, what, mend)


def _text(row: Row, key: str) -> str:
    """The text under `key`; numbers and the like are refused, since str() of them is rarely what was meant."""
    if key not in row:
        raise RowFault("missing_field", f"there is no `{key}`", _near(key, row))
    value = row[key]
    _require(value is not None, "null_value", f"`{key}` is null", "write a text, or leave the row out")
    _require(
        isinstance(value, str),
        "type",
        f"`{key}` is {_name(value)}, expected a text",
        "write it as a JSON string",
    )
    return cast(str, value)


def _optional(row: Row, key: str) -> str:
    return _text(row, key) if row.get(key) is not None else ""


def _name(value: Any) -> str:
    return f"{type(value).__name__} ({json.dumps(value, ensure_ascii=False)[:40]})"


def _near(key: str, row: Row) -> str:
    """What the row has in place of a missing key, if it looks like it."""
    lowered = {str(name).lower(): name for name in row}
    for wanted in (key, *_ALSO.get(key, ())):
        if near := difflib.get_close_matches(wanted, lowered, n=1, cutoff=0.8):
            return f"the row has `{lowered[near[0]]}`; rename it to `{key}`"
    return f"the row has {', '.join(map(repr, row)) or 'no keys'}"


def _list(row: Row, key: str) -> list[Any]:
    if key not in row:
        raise RowFault("missing_field", f"there is no `{key}`", _near(key, row))
    value = row[key]
    _require(value is not None, "null_value", f"`{key}` is null", "write a list of turns, or leave the row out")
    _require(
        isinstance(value, list),
        "type",
        f"`{key}` is {_name(value)}, expected a list",
        "write a list of turns",
    )
    return cast(list[Any], value)


def _role(role: str, number: int) -> Role:
    if role not in ROLES:
        raise RowFault("unknown_role", f"turn {number} has the role {role!r}", f"known roles: {', '.join(ROLES)}")
    return role


def _message(turn: Any, number: int) -> Message:
    fine = isinstance(turn, dict)
    _require(fine, "type", f"turn {number} is not an object", 'write {"role": ..., "content": ...}')
    role = _role(_text(turn, "role"), number)
    calls = turn.get("tool_calls")
    fine = calls is None or isinstance(calls, list)
    _require(fine, "tool_call", f"`tool_calls` of turn {number} is {_name(calls)}", "write a list of calls")
    answered = turn.get("tool_call_id")
    fine = answered is None or isinstance(answered, str)
    _require(fine, "tool_call", f"`tool_call_id` of turn {number} is {_name(answered)}", "write a text")
    # With tool calls the content may be absent or null: the OpenAI shape.
    content = _optional(turn, "content") if calls else _text(turn, "content")
    own = ("role", "content", "weight", "tool_calls")
    extra = {key: value for key, value in turn.items() if key not in own and value is not None}
    if calls:
        _require(role == "assistant", "tool_call", f"turn {number} is {role} and calls a tool", "only assistants may")
        extra["tool_calls"] = [_call(call, number) for call in calls]
    return Message(role, content, _weight(turn, number), extra)


def _weight(turn: Mapping[str, Any], number: int) -> float:
    """How much a turn's tokens count, 1 by default."""
    weight = turn.get("weight", 1)
    fine = isinstance(weight, int | float) and not isinstance(weight, bool) and 0 <= weight <= _HEAVIEST
    _require(fine, "type", f"the weight of turn {number} is {_name(weight)}", f"write a number from 0 to {_HEAVIEST}")
    return float(weight)


def _call(call: Any, number: int) -> dict[str, Any]:
    """One tool call with its arguments as an object; OpenAI writes them as a JSON text."""
    function = call.get("function") if isinstance(call, dict) else None
    fine = isinstance(function, dict) and isinstance(function.get("name"), str)
    _require(
        fine, "tool_call", f"a tool call of turn {number} has no function name", "write function: {name, arguments}"
    )
    function = cast(dict[str, Any], function)
    name, arguments = function["name"], function.get("arguments", {})
    if isinstance(arguments, str):
        arguments = _inner_json(arguments, f"the arguments of {name!r} are", "write a JSON object")
    fine = isinstance(arguments, dict)
    _require(fine, "tool_call", f"the arguments of {name!r} are no object", "write a JSON object")
    return {**call, "type": call.get("type", "function"), "function": {**function, "arguments": arguments}}


def _tools(row: Row) -> tuple[Mapping[str, Any], ...]:
    tools = row.get("tools")
    if isinstance(tools, str):
        tools = _inner_json(tools, "`tools` is", "write a list of tools") if tools.strip() else None
    if tools is None:
        return ()
    _require(isinstance(tools, list), "type", "`tools` is not a list", "write a list of tools in JSON Schema")
    for number, tool in enumerate(tools, 1):
        function = tool.get("function", tool) if isinstance(tool, dict) else None
        fine = isinstance(function, dict) and isinstance(function.get("name"), str)
        mend = 'write {"type": "function", "function": {"name": ..., "parameters": ...}}'
        _require(fine, "tool_call", f"tool {number} has no function name", mend)
    return tuple(tools)


def _inner_json(text: str, named: str, mend: str) -> Any:
    """The value of a JSON text inside a row, read as strictly as the row itself."""
    parser = Parser()
    try:
        value = parser.whole(text)
    except json.JSONDecodeError as fault:
        raise RowFault("tool_call", f"{named} not JSON: {fault.msg} (column {fault.colno})", mend) from fault
    twice = ", ".join(sorted(parser.twice))
    _require(not twice, "tool_call", f"{named} ambiguous JSON: {twice} stands there twice", mend)
    return value
