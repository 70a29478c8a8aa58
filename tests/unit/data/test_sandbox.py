"""Short ways of the sandbox give what Jinja's own sandbox gives; tags are found where their text goes straight out."""

import json
from pathlib import Path
from typing import Any

import pytest
from jinja2.runtime import LoopContext
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace
from transformers.utils.chat_template_utils import _compile_jinja_template

from fulltune.data import sandbox
from fulltune.data.example import RowFault
from fulltune.data.sandbox import buried, compiled, write
from fulltune.data.template import Template
from tests import tiny
from tests.shared.test_templates import conversations, source, tokenizer

THEIRS = ImmutableSandboxedEnvironment()


def loop() -> LoopContext:
    made = LoopContext(["a", "b", "c"], THEIRS.undefined)
    next(made)
    return made


class Own(dict):  # type: ignore[type-arg]
    """No plain object: what it answers is its own business."""

    content = "of the class"


class OwnText(str):
    __slots__ = ()

    def strip(self, *_: Any) -> str:
        return "own"


OBJECTS = (
    {"content": "x", "items": "shadowed", "_private": 1, "__class__": "key", "": 2},
    {},
    "text",
    OwnText("text"),
    "",
    ["a"],
    ("a",),
    None,
    5,
    True,
    1.5,
    Own(content="key", other=1),
    Namespace(content="x", n=3, many=[1], f=str.upper, _private=1),
    loop(),
    len,
    tiny.text,
    THEIRS.undefined(name="gone"),
    {1, 2},
)
NAMES = (
    *(
        "content",
        "items",
        "get",
        "keys",
        "update",
        "pop",
        "clear",
        "_private",
        "__class__",
        "__init__",
        "",
        "n",
        "many",
    ),
    *(
        "f",
        "missing",
        "strip",
        "split",
        "startswith",
        "format",
        "format_map",
        "join",
        "append",
        "index",
        "index0",
        "last",
    ),
    *("first", "length", "previtem", "nextitem", "mro", "__mro__", "__code__", "func_code", "real", "add", "other"),
    *("_Namespace__attrs", "__getattribute__", "__dict__", "cycle", "changed"),
)


def told(environment: Any, value: Any, name: str) -> Any:
    """What came of it, as something to compare: methods by their name and what they belong to."""
    try:
        found = environment.getattr(value, name)
    except Exception as fault:  # noqa: BLE001 - whatever it raises is what came of it
        return type(fault), str(fault)
    if isinstance(found, environment.undefined):
        return "undefined", found._undefined_exception, found._undefined_name, found._undefined_message
    return type(found), getattr(found, "__name__", None) or repr(found)


@pytest.mark.parametrize("value", OBJECTS, ids=lambda value: type(value).__name__)
def test_attributes_are_those_of_jinjas_sandbox(value: Any) -> None:
    ours = compiled("").environment
    for name in NAMES:
        assert told(ours, value, name) == told(THEIRS, value, name), name


def test_what_is_harmless_is_so_by_jinjas_own_rule() -> None:
    for (kind, name), asked in sandbox._HARMLESS.items():
        example = "text" if kind is str else loop()
        value = asked(example)
        assert type(example) is kind
        assert THEIRS.is_safe_attribute(example, name, value)
        assert THEIRS.wrap_str_format(value) is None


@pytest.mark.parametrize(
    "asked",
    [
        "{{ m.content }}{{ m.missing }}{{ m.items is callable }}{{ m.get('content') }}{{ m['content'].upper() }}",
        "{{ m.content.strip('x').split(',')[0].replace('a', 'b') }}{{ m.content.join(['a', 'b']) }}",
        "{{ '{0.content} {a[content]}'.format(m, a=m) }}{{ '{x}'.format_map({'x': 1}) }}",
        "{% set ns = namespace(a=1) %}{{ ns.a }}{{ ns.b is defined }}{% set ns.a = m.content.strip %}{{ ns.a() }}",
        "{% set m = {'content': 'mine'} %}{{ m.content }}{% for m in [m, none, 'x'] %}{{ m.content }};{% endfor %}",
        "{{ no.content is defined }}{{ m.update is defined }}{{ m.calls is defined }}{{ m.nothing.more }}",
        "{% for a in ['b'] %}{{ loop.index }}{{ loop.last }}{{ loop.missing }}{{ loop.cycle('a', 'b') }}{% endfor %}",
        "{% macro f(m) %}{{ m.content }}{{ varargs }}{% endmacro %}{{ f({'content': 1}, 2) }}{{ f.name }}",
    ],
)
def test_expressions_are_those_of_jinjas_sandbox(asked: str) -> None:
    """Or the same error, as where an attribute of something undefined is asked for."""

    def outcome(render: Any) -> Any:
        try:
            return render()
        except Exception as fault:  # noqa: BLE001
            return type(fault).__name__, str(fault)

    message = {"content": "xa,bx", "items": "shadowed"}
    theirs = outcome(lambda: _compile_jinja_template(asked).render(m=message))
    assert outcome(lambda: write(compiled(asked), {"m": message})[0]) == theirs


@pytest.mark.parametrize(
    "attack",
    [
        "{{ m.__class__ }}",
        "{{ m.content.__class__.__mro__ }}",
        "{{ '{0.__class__}'.format(m) }}",
        "{{ m.update({'content': 1}) }}",
        "{{ m.content.format.__self__ }}",
        "{{ (m.content.strip).__self__.__class__ }}",
        "{% set ns = namespace(a=m) %}{{ ns.a.clear() }}",
        "{{ loop.__init__ if loop }}{{ namespace.__init__.__globals__ }}",
        "{{ m['__class__']['__base__'] }}",
        "{% for a in [m] %}{{ a.pop('content') }}{{ loop._iterable }}{% endfor %}",
    ],
)
def test_short_ways_lead_to_nothing_that_the_sandbox_forbids(attack: str) -> None:
    message = {"content": "{0.__class__}"}
    try:
        text = write(compiled("x" + attack), {"m": message})[0]
    except Exception as fault:  # noqa: BLE001
        text = str(fault)
        assert type(fault).__name__ in ("SecurityError", "UndefinedError")
    assert "<class" not in text and "object at" not in text and "built-in" not in text
    assert message == {"content": "{0.__class__}"}


# Generation tags


STRAIGHT = (
    "a{% generation %}b{% endgeneration %}c",
    "{% for x in [1, 2] %}{% if x %}{% with y = x %}{% generation %}{{ y }}{% endgeneration %}{% endwith %}{% endif %}"
    "{% endfor %}",
    "{% generation %}{% set x %}a{% endset %}{{ x|upper }}{% macro f() %}m{% endmacro %}{{ f() }}{% endgeneration %}",
    "{% set x = 1 %}{% generation %}{% set x = 2 %}{{ x }}{% endgeneration %}{{ x }}",
    "{% generation %}{% endgeneration %}{% generation %}{{ '\U0010fffc' }}{% endgeneration %}",
    "{% autoescape true %}{% generation %}{{ '<' }}{% endgeneration %}{% endautoescape %}",
)
BURIED = (
    "{% macro f() %}{% generation %}b{% endgeneration %}{% endmacro %}{{ f() }}",
    "{% set x %}{% generation %} b{% endgeneration %}{% endset %}{{ x }}",
    "{% filter upper %}{% generation %}b{% endgeneration %}{% endfilter %}",
    "{% block b %}{% generation %}b{% endgeneration %}{% endblock %}{{ self.b()|upper }}",
    "{% for x in [[1], 2] recursive %}{{ loop(x) if x is iterable }}{% generation %}b{% endgeneration %}{% endfor %}",
    "{% generation %}a{% generation %}b{% endgeneration %}{% endgeneration %}",
    "{% macro f() %}{{ caller() }}{% endmacro %}{% call f() %}{% generation %}b{% endgeneration %}{% endcall %}",
)


@pytest.mark.parametrize("source_", [*STRAIGHT, *BURIED])
def test_tags_are_buried_where_their_text_may_be_processed(source_: str) -> None:
    assert buried(compiled(source_)) == (source_ in BURIED)


@pytest.mark.parametrize("source_", STRAIGHT)
def test_edges_of_tags_lie_where_private_characters_would_stand(source_: str) -> None:
    text, edges = write(compiled(source_), {})
    assert text == _compile_jinja_template(source_).render()
    assert len(edges) == 2 * source_.count("{% generation %}") * (2 if "for x" in source_ else 1)
    if sandbox.OPENS not in text:
        marked = write(compiled(source_, marking=True), {})[0]
        signs = [at for at, char in enumerate(marked) if char in (sandbox.OPENS, sandbox.CLOSES)]
        assert edges == [at - number for number, at in enumerate(signs)]


@pytest.mark.parametrize("name", ["gpt2"])
def test_real_templates_mark_alike_by_both_ways(shared: Path, name: str) -> None:
    index = json.loads((shared / "templates" / "_index.json").read_text())
    compared = 0
    for file in (entry["file"] for entry in index if entry["generation_tags"]):
        asked = source(shared, file)
        template = Template(tokenizer(shared, name, asked), asked, file)
        assert not buried(compiled(asked))
        for chat in conversations(shared).values():
            turns = [message.turn() for message in chat.messages]
            try:
                text, marks = template.marked(turns, chat.tools)
            except RowFault:  # as `Only user and assistant roles are supported`
                continue
            compiled(asked).environment.buried = True
            try:
                assert template.marked(turns, chat.tools) == (text, marks)
            finally:
                compiled(asked).environment.buried = False
            assert text == template.render(turns, chat.tools, prompt=False)
            compared += 1
    assert compared > 50
