"""A template that leaves out what a row says is found, also where the lost text happens to stand elsewhere."""

from typing import Any

import pytest

from fulltune.data.complete import Completeness
from fulltune.data.example import RowFault
from fulltune.data.template import Template
from tests import tiny

CALLS = (
    "{% for t in tools or [] %}[{{ t.function.name }}]{% endfor %}"
    "{% for m in messages %}<|{{ m.role }}|>{{ m.reasoning_content }}{{ m.content }}"
    "{% for c in m.tool_calls or [] %}{{ c.function.name }}{{ c.function.arguments | tojson }}{% endfor %}"
    "<|end|>{% endfor %}"
)
TOOL = {"type": "function", "function": {"name": "f"}}


def require(source: str, turns: list[dict[str, Any]], tools: tuple[Any, ...] = ()) -> None:
    template = Template(tiny.tokenizer(), source, "t.jinja")
    Completeness(template).require(turns, tools, template.render(turns, tools, prompt=False))


def call(**arguments: Any) -> dict[str, Any]:
    return {
        "role": "assistant",
        "content": "",
        "tool_calls": [{"type": "function", "function": {"name": "f", "arguments": arguments}}],
    }


def asked(content: str = "maybe a f") -> dict[str, Any]:
    return {"role": "user", "content": content}


def test_what_is_written_is_fine() -> None:
    require(CALLS, [{"role": "system", "content": "be"}, asked(), call(city="Paris", days=3)], (TOOL,))
    require(CALLS, [asked(), {"role": "assistant", "content": "no", "reasoning_content": "hm"}])


@pytest.mark.parametrize(
    ("source", "turns", "tools", "lost"),
    [
        (
            CALLS.replace("{% for m in messages %}", "{% for m in messages if m.role != 'system' %}"),
            [{"role": "system", "content": "be"}, asked(), {"role": "assistant", "content": "no"}],
            (),
            "system",
        ),
        (CALLS.replace("{{ c.function.arguments | tojson }}", ""), [asked(), call(city="Paris")], (TOOL,), "city"),
        (CALLS.replace("[{{ t.function.name }}]", ""), [asked("f?"), call()], (TOOL,), "tool f"),
        (
            CALLS.replace("{{ m.reasoning_content }}", ""),
            [asked(), {"role": "assistant", "content": "no", "reasoning_content": "hm"}],
            (),
            "reasoning_content of turn 2",
        ),
        (
            CALLS.replace("{{ m.content }}", "{{ m.content | upper }}"),
            [asked("x"), {"role": "assistant", "content": "no"}],
            (),
            "assistant",
        ),
    ],
)
def test_what_is_lost_is_named(source: str, turns: list[dict[str, Any]], tools: tuple[Any, ...], lost: str) -> None:
    with pytest.raises(RowFault, match=lost) as caught:
        require(source, turns, tools)
    assert caught.value.code == "template_lossy"


def test_thoughts_before_the_last_question_may_go_since_inference_drops_them_too() -> None:
    turns = [asked(), {"role": "assistant", "content": "no", "reasoning_content": "hm"}, asked()]
    require(CALLS.replace("{{ m.reasoning_content }}", ""), [*turns, {"role": "assistant", "content": "yes"}])
