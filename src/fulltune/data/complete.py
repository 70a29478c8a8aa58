"""Does the template write all that a row says? Asked with marks in place of the texts, once for each shape of row."""

from collections.abc import Iterator, Sequence
from typing import Any

from fulltune.data.example import RowFault
from fulltune.data.template import Template

_THOUGHTS = ("reasoning_content", "reasoning", "thinking")
"""What a turn may hold beside its content, by the names that chat templates know."""


class Completeness:
    """Finds what a template leaves out, which training would then never teach and the reader never miss."""

    def __init__(self, template: Template) -> None:
        self._template = template
        self._lost: dict[Any, list[str]] = {}

    def require(self, turns: Sequence[Any], tools: Sequence[Any], text: str) -> None:
        """RowFault if something of the conversation is not in its text, or was changed on the way."""
        shape = (tuple(_shape(turn) for turn in turns), len(tools))
        if shape not in self._lost:
            self._lost[shape] = list(self._find(turns, tools))
        lost = self._lost[shape] + [
            turn["role"]
            for index, turn in enumerate(turns)
            if turn["content"].strip() not in text and not self._history(turns, tools, index)
        ]
        if lost:
            what = f"{self._template.name} leaves out or changes: {', '.join(dict.fromkeys(lost))}"
            raise RowFault("template_lossy", what, "use a template that renders it, or remove it from the row")

    def _history(self, turns: Sequence[Any], tools: Sequence[Any], index: int) -> bool:
        """Whether a turn of the assistant is whole until others follow: its thoughts go, at inference too."""
        if turns[index]["role"] != "assistant" or index == len(turns) - 1:
            return False
        return turns[index]["content"].strip() in self._template.render(turns[: index + 1], tools, prompt=False)

    def _find(self, turns: Sequence[Any], tools: Sequence[Any]) -> Iterator[str]:
        """What is lost of a conversation of this shape."""
        marks: dict[str, str] = {}
        last_user = max((index for index, turn in enumerate(turns) if turn["role"] == "user"), default=-1)
        # Before the last question a template may leave thoughts out: at inference it does so too.
        marked = [_marked(turn, index, index > last_user, marks) for index, turn in enumerate(turns)]
        named = [_named(tool, index, marks) for index, tool in enumerate(tools)]
        text = self._template.render(marked, named, prompt=False)
        return (what for mark, what in marks.items() if mark not in text)


def _shape(turn: Any) -> tuple[Any, ...]:
    if len(turn) == 2:  # role and content
        return turn["role"], bool(turn["content"].strip())
    calls = tuple(len(call["function"]["arguments"]) for call in turn.get("tool_calls", ()))
    return turn["role"], bool(turn["content"].strip()), calls, tuple(bool(turn.get(key)) for key in _THOUGHTS)


def _marked(turn: Any, index: int, thinks: bool, marks: dict[str, str]) -> dict[str, Any]:
    """The turn with marks for texts; `marks` learns what each stands for."""
    made = dict(turn)

    def mark(what: str, kind: str) -> str:
        name = f"qq{index}{kind}{len(marks)}z"
        marks[name] = what
        return name

    if turn["content"].strip():
        made["content"] = mark(turn["role"], "content")
    for key in _THOUGHTS:
        if thinks and isinstance(turn.get(key), str) and turn[key].strip():
            made[key] = mark(f"{key} of turn {index + 1}", "thought")
    calls = []
    for call in turn.get("tool_calls", ()):
        function = call["function"]
        arguments = {key: mark(f"argument {key}", "argument") for key in function["arguments"]}
        name = mark(f"tool {function['name']}", "call")
        calls.append({**call, "function": {**function, "name": name, "arguments": arguments}})
    if calls:
        made["tool_calls"] = calls
    return made


def _named(tool: Any, index: int, marks: dict[str, str]) -> dict[str, Any]:
    """The tool with a mark for its name."""
    inner = tool.get("function", tool)
    mark = f"qqtool{index}z"
    marks[mark] = f"tool {inner['name']}"
    return {**tool, "function": {**inner, "name": mark}} if "function" in tool else {**tool, "name": mark}
