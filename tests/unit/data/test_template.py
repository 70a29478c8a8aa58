"""Chat templates: the text that transformers writes, to the byte, and nothing that a template does can stop us."""

import json
import pickle
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from fulltune.base.errors import DataError, RecipeError
from fulltune.data import sandbox
from fulltune.data.example import RowFault
from fulltune.data.template import Template
from fulltune.material import template as assembled
from fulltune.recipe.schema import ModelSection
from tests import tiny

QUESTION, ANSWER = {"role": "user", "content": "the cat sat"}, {"role": "assistant", "content": "yes a dog"}
TURNS = [QUESTION, ANSWER]
TOOLS = [{"type": "function", "function": {"name": "f", "description": "é <b>", "parameters": {}}}]
LATER = "{% if messages|length > 2 %}"
"""What comes behind it the plainest conversation does not meet."""
ENDLESS = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"


def made(source: str | None = None, *, own: Any = tiny.TEMPLATE) -> Template:
    tokens = tiny.tokenizer()
    tokens.chat_template = own
    return Template(tokens, source, "t.jinja")


# What transformers writes


@pytest.mark.parametrize("prompt", [False, True])
def test_real_templates_write_what_transformers_writes(shared: Path, prompt: bool) -> None:
    tokens = tiny.tokenizer()
    tokens.unk_token = "<unk>"
    folder = shared / "templates"
    asked: dict[str, dict[str, Any]] = json.loads((folder / "_conversations.json").read_text())
    golden: dict[str, dict[str, dict[str, str]]] = json.loads((folder / "_golden.json").read_text())
    dated = {entry["file"] for entry in json.loads((folder / "_index.json").read_text()) if entry["uses_date"]}
    assert len(golden) == 36
    for file, texts in golden.items():
        source = (folder / file).read_text()
        template = Template(tokens, source, file)
        for name, conversation in asked.items():
            turns, tools = conversation["messages"], conversation.get("tools", [])
            wanted = texts[name]
            options = {"tools": tools or None, "add_generation_prompt": prompt, "tokenize": False}
            if "error" in wanted:
                with pytest.raises(RowFault) as caught:
                    template.render(turns, tools, prompt=prompt)
                assert " ".join(wanted["message"].split())[:300] in caught.value.what, (file, name)
                continue
            text = template.render(turns, tools, prompt=prompt)
            assert text == tokens.apply_chat_template(turns, chat_template=source, **options), (file, name)
            if prompt == conversation.get("add_generation_prompt", False) and file not in dated:
                assert text == wanted["text"], (file, name)


@pytest.mark.parametrize(
    "source",
    [
        "{{ messages|tojson }}{{ messages|tojson(indent=2) }}{{ tools|tojson(sort_keys=true, separators=(',', ':')) }}",
        "{{ bos_token ~ eos_token ~ pad_token }}{{ unk_token is defined }}{{ documents is none }}{{ tools is none }}",
        "{{ strftime_now('%Y') }}{{ strftime_now is callable }}",
        "a\n  {% if true %}\n  b\n  {%- endif %}\n\n{#- note -#}\n c {% for m in messages %}\n{{ m }}\n{% endfor %}\n",
        "{% for m in messages %}{% if loop.last %}{% continue %}{% endif %}{{ m.content }}{% break %}{% endfor %}",
        "{% for m in messages if m.role == 'x' %}{{ loop.length }}{% else %}none{% endfor %}{{ messages[1:]|length }}",
        "{% for m in messages %}{{ loop.index }}/{{ loop.length }}{{ loop.revindex0 }}{{ loop.nextitem }}{% endfor %}",
        "{% set ns = namespace(n=0, t='') %}{% for m in messages %}{% set ns.n = ns.n + 1 %}"
        "{% set ns.t = ns.t ~ m.role %}{% endfor %}{{ ns.n }}{{ ns.t }}",
        "{% macro f(x, y=2) %}{{ x * y }}{{ caller() if caller }}{% endmacro %}{{ f(3) }}"
        "{% call f('ab') %}c{% endcall %}",
        "{% for n in [[1, [2]], [3]] recursive %}{{ loop(n) if n is iterable else n }};{% endfor %}",
        "{% for m in messages %}{%- generation -%} {{ m.content }} {%- endgeneration -%}{% endfor %}",
        "{% set x = 1 %}{% generation %}{% set x = 2 %}{{ x }}{% endgeneration %}{{ x }}",
        "{{ dict(a=1, b='c').items()|list }}{{ (messages + messages)|length }}{{ 2 ** 10 }}{{ 'ab' * 3 }}{{ 3 * 'c' }}",
        "{{ messages[1].reasoning_content }}{{ messages[1].thinking }}{{ messages[1].reasoning }}",
        "{{ messages[0].name is defined }}{{ messages|map(attribute='role')|join(',') }}{{ missing }}{{ missing ~ 1 }}",
        "{% filter upper %}{{ messages[0].content }}{% endfilter %}{% set y %}z{% endset %}{{ y + y ~ 1 ~ none }}",
        "{% with z = 1 %}{{ z }}{% endwith %}{% block b scoped %}{{ messages[0].role|e }}{% endblock %}{{ self.b() }}",
    ],
)
@pytest.mark.parametrize("tools", [[], TOOLS])
def test_every_piece_of_the_language_writes_what_transformers_writes(source: str, tools: list[Any]) -> None:
    tokens = tiny.tokenizer()
    answer = {**ANSWER, "reasoning": "thought", "thinking": None}
    turns = [{**QUESTION, "name": None}, answer, QUESTION]
    for prompt in (False, True):
        options = {"tools": tools or None, "add_generation_prompt": prompt, "tokenize": False}
        wanted = tokens.apply_chat_template(turns, chat_template=source, **options)
        assert Template(tokens, source, "t").render(turns, tools, prompt=prompt) == wanted


@pytest.mark.parametrize("name", ["reasoning", "thinking", "reasoning_content"])
def test_reasoning_goes_by_every_name(name: str) -> None:
    source = "{% for m in messages %}{{ m.reasoning_content }}|{{ m.thinking }}|{{ m.reasoning }};{% endfor %}"
    turns = [QUESTION, {**ANSWER, name: "so"}]
    wanted = tiny.tokenizer().apply_chat_template(turns, chat_template=source, tokenize=False)
    assert made(source).render(turns, prompt=False) == wanted


def test_templates_cannot_reach_python_or_change_the_row() -> None:
    for source in (
        "{{ ''.__class__.__mro__ }}",
        "{{ messages.append(1) }}",
        "{{ messages[0].update(content='x') }}",
        "{{ dict.update(messages[0], content='x') }}",
        "{% set ns = namespace() %}{% set ns.__class__ = 1 %}",
    ):
        turns = [dict(turn) for turn in (*TURNS, QUESTION)]
        with pytest.raises(RowFault):
            made(tiny.TEMPLATE + LATER + source + "{% endif %}").render(turns, prompt=False)
        assert turns == [*TURNS, QUESTION]


def test_a_tokenizer_that_writes_another_text_by_code_of_its_own_is_refused() -> None:
    class Own(PreTrainedTokenizerFast):  # type: ignore[misc]
        def apply_chat_template(self, *asked: Any, **options: Any) -> Any:
            return str(super().apply_chat_template(*asked, **options)) + end

    plain = tiny.tokenizer()
    tokens = Own(tokenizer_object=plain.backend_tokenizer, bos_token="<s>", eos_token="</s>")
    tokens.chat_template, end = tiny.TEMPLATE, ""
    assert Template(tokens, None, "t").render(TURNS, prompt=False) == made().render(TURNS, prompt=False)
    end = "something else"
    with pytest.raises(DataError, match="apply_chat_template writes another text"):
        Template(tokens, None, "t")


def test_a_template_goes_to_worker_processes() -> None:
    template = made()
    again = pickle.loads(pickle.dumps(template))
    assert again.render(TURNS, prompt=True) == template.render(TURNS, prompt=True)


# Templates by name


NAMED = {"default": tiny.TEMPLATE, "tool_use": "{{ tools|tojson }}" + tiny.TEMPLATE, "rag": "{{ documents }}"}


def test_tool_use_renders_rows_with_tools_as_in_transformers() -> None:
    tokens = tiny.tokenizer()
    tokens.chat_template = dict(NAMED)
    template = Template(tokens, None, "t")
    for tools in ([], TOOLS):
        wanted = tokens.apply_chat_template(TURNS, tools=tools or None, tokenize=False)
        assert template.render(TURNS, tools, prompt=False) == wanted
    assert template.render(TURNS, TOOLS, prompt=False).startswith("[{")
    own = Template(tokens, "own" + tiny.TEMPLATE, "t")
    assert own.render(TURNS, TOOLS, prompt=False).startswith("own")


def test_the_digest_covers_all_templates() -> None:
    digests = {made(own=own).digest for own in (None, tiny.TEMPLATE, NAMED, NAMED | {"rag": ""}, NAMED | {"x": ""})}
    digests.add(made(own={**NAMED, "tool_use": "{{ tools }}"}).digest)
    assert len(digests) == 6
    assert made(own=None).digest == ""
    assert made(own={"default": tiny.TEMPLATE}).digest == made().digest
    assert made(own=dict(reversed(NAMED.items()))).digest == made(own=NAMED).digest


def test_what_is_exported_keeps_the_names() -> None:
    assert made(own=NAMED).exported == NAMED == made(own=NAMED).source
    tagged = NAMED | {"tool_use": "{% generation %}x{% endgeneration %}"}
    assert made(own=tagged).exported == NAMED | {"tool_use": "{% if true %}x{% endif %}"}
    assert made(own={"default": tiny.TEMPLATE}).exported == tiny.TEMPLATE


@pytest.mark.parametrize(
    ("own", "said"),
    [
        ({}, "none is named default"),
        ({"a": "x", "b": "y"}, "of 2 chat templates none is named default: a, b"),
        (5, "'default' is no text, but int"),
        ({"default": 5}, "'default' is no text, but int"),
        ({"default": "x", "tool_use": None}, "'tool_use' is no text, but NoneType"),
        ({"default": "x", 5: "y"}, "5 is no text"),
        (["x"], "no text, but list"),
    ],
)
def test_templates_that_are_none(own: Any, said: str) -> None:
    with pytest.raises(DataError, match=said):
        made(own=own)
    assert made(tiny.TEMPLATE, own=own).source == tiny.TEMPLATE


# Whatever a template does


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("{{ 'a' + none }}", "TypeError"),
        ("{{ 1/0 }}", "ZeroDivisionError"),
        ("{% include 'x' %}", "TypeError: no loader"),
        ("{{ nothing|tojson }}", "TypeError: Object of type Undefined"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "RecursionError"),
        ("{% for i in range(100001) %}{% endfor %}", "OverflowError"),
        ("{{ raise_exception('no\nway') }}", "no way"),
        ("{{ ''.__class__.x }}", "unsafe"),
        ("{{ messages|sum }}", "TypeError"),
    ],
)
def test_whatever_a_template_raises_is_a_fault_of_the_row_or_of_the_template(source: str, said: str) -> None:
    with pytest.raises(DataError, match=said):
        made(source)
    with pytest.raises(RowFault, match=said) as caught:
        made(tiny.TEMPLATE + LATER + source + "{% endif %}").render([*TURNS, QUESTION], prompt=False)
    assert caught.value.code == "template_refused"


def test_a_conversation_without_turns_is_refused_as_in_transformers() -> None:
    with pytest.raises(RowFault, match="no turn"):
        made().render([], prompt=True)


@pytest.mark.parametrize(
    "source",
    [
        ENDLESS,
        "{% for a in range(99999) %}{% for b in range(99999) if b > 1 %}x{% endfor %}{% endfor %}",
        "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(99) }}",
        "{% macro f() %}{% for a in range(99999) %}x{% endfor %}{% endmacro %}"
        "{% for a in range(99999) %}{% set y = f() %}{% endfor %}",
        "{% generation %}" + ENDLESS + "{% endgeneration %}",
        "{% for n in [1, 2] recursive %}{{ loop([1, 2]) if loop.depth0 < 40 }}{% endfor %}",
        "{% for a in range(99999) %}{% for b in range(99999) if false %}{% endfor %}{% endfor %}",
    ],
)
def test_landmine_M7_a_template_without_end_is_interrupted(source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox, "SECONDS", 0.1)
    with pytest.raises(DataError, match=r"not done after 0\.1 s") as told:
        made(source)
    assert told.value.faults[0].code == "template_too_slow"

    def render() -> RowFault:
        with pytest.raises(RowFault) as caught:
            made(tiny.TEMPLATE + LATER + source + "{% endif %}").render([*TURNS, QUESTION], prompt=False)
        return caught.value

    with ThreadPoolExecutor(1) as other:
        assert render().code == other.submit(render).result().code == "template_too_slow"


def test_a_template_that_is_too_slow_for_row_after_row_is_at_fault_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    template = made(tiny.TEMPLATE + LATER + ENDLESS + "{% endif %}")
    monkeypatch.setattr(sandbox, "SECONDS", 0.05)
    faults: list[type[Exception]] = []
    for _ in range(3):
        with pytest.raises((RowFault, DataError)) as caught:
            template.render([*TURNS, QUESTION], prompt=False)
        faults.append(caught.type)
    assert faults == [RowFault, RowFault, DataError]
    assert template.render(TURNS, prompt=False)


@pytest.mark.parametrize(
    "source",
    [
        "{% for a in range(99) %}{% for b in range(99) %}x{% endfor %}{% endfor %}",
        "{% set ns = namespace(t='x') %}{% for a in range(99) %}{% set ns.t = ns.t + ns.t %}{% endfor %}",
        "{% set ns = namespace(t='x') %}{% for a in range(99) %}{% set ns.t = ns.t ~ ns.t %}{% endfor %}",
        "{% set ns = namespace(t=[1]) %}{% for a in range(99) %}{% set ns.t = ns.t + ns.t %}{% endfor %}",
        "{% set ns = namespace(t=(1,)) %}{% for a in range(99) %}{% set ns.t = ns.t * 2 %}{% endfor %}",
        "{{ 'a' * 10 ** 13 }}",
        "{{ (10 ** 13) * 'a' }}",
        "{{ [0] * 10 ** 13 }}",
        "{{ 10 ** (10 ** 13) }}",
        "{% set ns = namespace(n=3) %}{% for a in range(99) %}{% set ns.n = ns.n * ns.n %}{% endfor %}",
        "{% macro f() %}{% for a in range(9999) %}x{% endfor %}{% endmacro %}{{ f()|length }}",
        "{% set y %}{% for a in range(9999) %}x{% endfor %}{% endset %}",
    ],
)
def test_landmine_M7_a_template_without_measure_is_interrupted(source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox, "CHARACTERS", 5000)
    with pytest.raises(DataError, match="more than 5,000 characters") as told:
        made(source)
    assert told.value.faults[0].code == "template_too_long"
    with pytest.raises(RowFault) as caught:
        made(tiny.TEMPLATE + LATER + source + "{% endif %}").render([*TURNS, QUESTION], prompt=False)
    assert caught.value.code == "template_too_long"
    assert made(tiny.TEMPLATE + "{{ 'x' * 4000 }}").render(TURNS, prompt=False).endswith("x" * 4000)


def test_random_text_is_no_template() -> None:
    with pytest.raises(DataError, match="lipsum"):
        made("{{ lipsum(10 ** 9) }}")


# The file that a recipe names


def section(path: Path) -> ModelSection:
    return ModelSection(path="m", chat_template=str(path))


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_a_byte_order_mark_is_no_part_of_a_template(tmp_path: Path, encoding: str) -> None:
    path = tmp_path / "t.jinja"
    path.write_bytes(("é" + tiny.TEMPLATE).encode(encoding))
    template = assembled(section(path), tiny.tokenizer())
    assert template.source == template.exported == "é" + tiny.TEMPLATE


@pytest.mark.parametrize("encoding", ["latin-1", "utf-16", "utf-16-le", "utf-32"])
def test_a_template_in_another_encoding_is_refused(tmp_path: Path, encoding: str) -> None:
    path = tmp_path / "t.jinja"
    path.write_bytes(((" " if encoding == "utf-16-le" else "é") + tiny.TEMPLATE).encode(encoding))
    with pytest.raises(DataError, match=r"not UTF-8|null characters") as caught:
        assembled(section(path), tiny.tokenizer())
    assert caught.value.faults[0].where == str(path)


def test_a_template_that_is_not_there(tmp_path: Path) -> None:
    for path in (tmp_path / "none", tmp_path):
        with pytest.raises(RecipeError, match="cannot be read"):
            assembled(section(path), tiny.tokenizer())
