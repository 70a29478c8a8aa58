"""Turns of a conversation as rows write them: roles, weights, tools and calls of tools."""

from collections.abc import Mapping, Sequence
from typing import Any, cast

from fulltune.data.example import ROLES, Message, Role, Row, RowFault
from fulltune.data.fields import inner_json, optional_text, require, said, text_of

_HEAVIEST = 100
"""A larger weight is a slip: the loss is a weighted mean, so only ratios count."""
_PLAIN = frozenset({"role", "content"})
_OWN = frozenset({"role", "content", "weight", "train", "tool_calls"})
"""What a turn says in fields of its own; everything else is kept beside them."""


def role_of(role: str, number: int) -> Role:
    """The role, if it is one that chat templates know."""
    if role not in ROLES:
        raise RowFault("unknown_role", f"turn {number} has the role {role!r}", f"known roles: {', '.join(ROLES)}")
    return role


def message(turn: Any, number: int) -> Message:
    """One turn of the OpenAI shape: role, content, tool calls, weight or train, and what else it says."""
    # No message is put into words for the millions of turns that are fine.
    if not isinstance(turn, dict):
        raise RowFault("type", f"turn {number} is not an object", 'write {"role": ..., "content": ...}')
    role = role_of(text_of(turn, "role"), number)
    if turn.keys() == _PLAIN:
        return Message(role, text_of(turn, "content"))
    calls = turn.get("tool_calls")
    if calls is not None and not isinstance(calls, list):
        raise RowFault("tool_call", f"`tool_calls` of turn {number} is {said(calls)}", "write a list of calls")
    answered = turn.get("tool_call_id")
    if answered is not None and not isinstance(answered, str):
        raise RowFault("tool_call", f"`tool_call_id` of turn {number} is {said(answered)}", "write a text")
    # With tool calls the content may be absent or null: the OpenAI shape.
    content = optional_text(turn, "content") if calls else text_of(turn, "content")
    extra = {key: value for key, value in turn.items() if key not in _OWN and value is not None}
    if calls:
        require(role == "assistant", "tool_call", f"turn {number} is {role} and calls a tool", "only assistants may")
        extra["tool_calls"] = [call_of(call, number) for call in calls]
    return Message(role, content, weight_of(turn, number), extra)


def weight_of(turn: Mapping[str, Any], number: int) -> float:
    """How much a turn's tokens count, 1 by default."""
    weight, train = turn.get("weight", 1), turn.get("train")
    if train is not None:
        require(isinstance(train, bool), "type", f"`train` of turn {number} is {said(train)}", "true or false")
        require("weight" not in turn, "type", f"turn {number} has `train` and `weight`", "leave one of them out")
        return float(train)
    if not isinstance(weight, int | float) or isinstance(weight, bool) or not 0 <= weight <= _HEAVIEST:
        mend = f"write a number from 0 to {_HEAVIEST}"
        raise RowFault("type", f"the weight of turn {number} is {said(weight)}", mend)
    return float(weight)


def call_of(call: Any, number: int) -> dict[str, Any]:
    """One tool call with its arguments as an object; OpenAI writes them as a JSON text."""
    function = call.get("function") if isinstance(call, dict) else None
    fine = isinstance(function, dict) and isinstance(function.get("name"), str)
    require(
        fine, "tool_call", f"a tool call of turn {number} has no function name", "write function: {name, arguments}"
    )
    function = cast(dict[str, Any], function)
    name, arguments = function["name"], function.get("arguments", {})
    if isinstance(arguments, str):
        arguments = inner_json(arguments, f"the arguments of {name!r} are", "write a JSON object")
    fine = isinstance(arguments, dict)
    require(fine, "tool_call", f"the arguments of {name!r} are no object", "write a JSON object")
    return {**call, "type": call.get("type", "function"), "function": {**function, "arguments": arguments}}


def tools_of(row: Row) -> tuple[Mapping[str, Any], ...]:
    """The column `tools`: a list, or the JSON text of one; each as inference hands it to a template."""
    tools = row.get("tools")
    if isinstance(tools, str):
        tools = inner_json(tools, "`tools` is", "write a list of tools") if tools.strip() else None
    if tools is None:
        return ()
    require(isinstance(tools, list), "type", "`tools` is not a list", "write a list of tools in JSON Schema")
    for number, tool in enumerate(tools, 1):
        function = tool.get("function", tool) if isinstance(tool, dict) else None
        fine = isinstance(function, dict) and isinstance(function.get("name"), str)
        mend = 'write {"type": "function", "function": {"name": ..., "parameters": ...}}'
        require(fine, "tool_call", f"tool {number} has no function name", mend)
    return tuple(_wrapped(tool) for tool in tools)


def _wrapped(tool: Mapping[str, Any]) -> Mapping[str, Any]:
    """A bare function, as ShareGPT rows and newer APIs write it, in the shape that servers give to chat templates."""
    if "function" in tool or tool.get("type", "function") != "function":
        return tool
    return {"type": "function", "function": {key: value for key, value in tool.items() if key != "type"}}


def with_system(row: Row, turns: Sequence[Message]) -> tuple[Message, ...]:
    """The turns, behind the text of a column `system` if there is one."""
    system = optional_text(row, "system")
    twice = bool(system and turns and turns[0].role == "system")
    require(not twice, "role_order", "a `system` column and a system turn", "leave one of them out")
    return (Message("system", system), *turns) if system else tuple(turns)


_SENDERS: Mapping[str, Role] = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "function_call": "assistant",
    "tool": "tool",
    "observation": "tool",
    "function_response": "tool",
}
"""Who speaks in a ShareGPT row; tools as LLaMA-Factory writes them."""


def shared_turn(turn: Any, number: int) -> Message:
    """One turn of the ShareGPT shape: from, value, weight or train."""
    require(isinstance(turn, dict), "type", f"turn {number} is not an object", 'write {"from": ..., "value": ...}')
    sender, value = text_of(turn, "from"), text_of(turn, "value")
    role = role_of(_SENDERS.get(sender, sender), number)
    if sender != "function_call":
        return Message(role, value, weight_of(turn, number))
    made = inner_json(value, f"the call in turn {number} is", 'write {"name": ..., "arguments": {...}}')
    calls = [call_of({"function": call}, number) for call in (made if isinstance(made, list) else [made])]
    return Message(role, "", weight_of(turn, number), {"tool_calls": calls})


def prompted(value: Any, role: Role, key: str) -> list[Message]:
    """A prompt or an answer: a text is one turn of this role, a list is turns."""
    if isinstance(value, list):
        made = [message(turn, number) for number, turn in enumerate(value, 1)]
        fine = not made or role == "user" or made[0].role == role
        require(fine, "role_order", f"`{key}` begins with {made[0].role if made else role}", f"begin it with {role}")
        return made
    return [Message(role, value)]
