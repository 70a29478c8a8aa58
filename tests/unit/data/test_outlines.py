"""Ends that are counted are those that rendering finds, and a template that looks into texts is always rendered."""

import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fulltune.data.example import RowFault
from fulltune.data.outlines import Outlines
from fulltune.data.template import Template
from fulltune.data.veil import Read, Veiled, guarded, veil
from tests import tiny
from tests.shared.test_templates import source, tokenizer

LOOP = "{% for m in messages %}{{ '<|' + m.role + '|>' }}SAID{{ '<|end|>' }}{% endfor %}"
PROMPT = "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
ROLES = ("system", "user", "assistant", "user", "assistant")
CONTENTS = ("be kind", "are 2 < 3?", "yes, <b>really</b>", "more", "a\nb")


def made(said: str) -> Template:
    """Writes each turn between its role and its end token as `said` has it."""
    return Template(tiny.tokenizer(), LOOP.replace("SAID", said) + PROMPT, "t")


def turns(contents: Sequence[str] = CONTENTS, roles: Sequence[str] = ROLES) -> list[dict[str, Any]]:
    return [{"role": role, "content": content} for role, content in zip(roles, contents, strict=True)]


def wanted(asked: Sequence[Any]) -> list[int]:
    return [index for index, turn in enumerate(asked) if turn["role"] == "assistant"]


def counted(template: Template, asked: list[dict[str, Any]], outlines: Outlines | None = None) -> dict[int, Any]:
    """What is found once two conversations of these roles were seen."""
    outlines = outlines or Outlines(template)
    for _ in range(2):
        outlines.of(asked, (), wanted(asked))
    return found(template, asked, outlines)


def found(template: Template, asked: list[dict[str, Any]], outlines: Outlines) -> dict[int, Any]:
    """What is known; text and marks are those of the template."""
    shown = outlines.of(asked, (), wanted(asked))
    assert (shown.text, shown.marks) == template.marked(asked, ())
    return dict(shown.ends)


def rendered(template: Template, asked: list[dict[str, Any]]) -> dict[int, Any]:
    """The same by rendering."""
    return {
        index: tuple(len(template.render(asked[:end], prompt=end == index)) for end in (index, index + 1))
        for index in wanted(asked)
    }


COPIES = {
    "as it is": "{{ m.content }}",
    "added": "{{ 'a: ' + m['content'] + '!' }}",
    "joined": "{{ 'a: ' ~ m.get('content') ~ '!' }}",
    "trimmed": "{{ m.content | trim }}",
    "stripped": "{{ m.content.strip() }}",
    "of one line break": "{{ m.content.lstrip('\\n').rstrip('\\n') }}",
    "by a macro": "{% macro say(x) %}{{ '(' + x + ')' }}{% endmacro %}{{ say(m.content) }}",
    "by a block": "{% set x %}[{{ m.content }}]{% endset %}{{ x | trim }}",
    "by a namespace": "{% set ns = namespace(x='') %}{% set ns.x = ns.x + m.content %}{{ ns.x }}",
    "if it is a text": "{% if m.content is string and m.content is iterable %}{{ m.content }}{% endif %}",
    "if it is none": "{% if m.content is not none and m.content is defined %}{{ m.content }}{% endif %}",
    "if there is one": "{% if m.content %}{{ m.content }}{% endif %}",
    "twice": "{{ m.content }}{{ m.content }}",
    "not at all": "{{ 'x' }}",
    "with thoughts cut off": "{% if '</think>' in m.content %}x{% endif %}{{ m.content.split('</think>')[-1] }}",
    "unless it begins so": "{% if not m.content.startswith('<tool>') %}{{ m.content }}{% endif %}",
    "unless it ends so": "{% if not m.content.endswith('</tool>') %}{{ m.content }}{% endif %}",
    "with something replaced": "{{ m.content.replace('<image>', '') }}",
    "unless it is empty": "{% if m.content != '' %}{{ m.content }}{% endif %}",
    "unless it is a word": "{% if m.content == '/stop' %}x{% else %}{{ m.content }}{% endif %}",
    "of the others": "{{ (messages | selectattr('role', 'equalto', 'user') | list | first).content }}{{ m.content }}",
    "by its place": "{{ messages[loop.index0].content }}{{ messages[0]['content'] }}",
    "with a tag": "{% generation %}{{ m.content }}{% endgeneration %}",
}


@pytest.mark.parametrize("said", COPIES.values(), ids=COPIES)
def test_ends_are_counted_where_contents_are_copied(said: str) -> None:
    template = made(said)
    assert counted(template, turns()) == rendered(template, turns())


READS = {
    "length": "{{ m.content | length }}",
    "counted": "{% if m.content.count('a') %}{% endif %}{{ m.content }}",
    "first letter": "{{ m.content[0] }}",
    "cut": "{{ m.content[:2] }}",
    "first of it": "{{ m.content | first }}",
    "last of it": "{{ m.content | last }}",
    "turned": "{{ m.content | reverse }}",
    "letters": "{% for x in m.content %}{{ x }}{% endfor %}",
    "listed": "{{ (m.content | list)[0] }}",
    "upper case": "{{ m.content | upper }}",
    "lower case": "{{ m.content.lower() }}",
    "as JSON": "{{ m.content | tojson }}",
    "turns as JSON": "{{ m | tojson }}",
    "joined": "{{ [m.content, 'x'] | join('-') }}",
    "joined by a method": "{{ '-'.join([m.content, 'x']) }}",
    "contents": "{{ messages | map(attribute='content') | join('-') }}",
    "formatted": "{{ '%s' % m.content }}",
    "formatted by a filter": "{{ '%s' | format(m.content) }}",
    "many times": "{{ m.content * 2 }}",
    "ordered": "{% if m.content < 'm' %}{% endif %}{{ m.content }}",
    "a part of a text": "{% if m.content in 'yes no more' %}{% endif %}{{ m.content }}",
    "no part of a text": "{% if m.content not in 'yes no more' %}{% endif %}{{ m.content }}",
    "a test": "{% if m.content is in 'yes no more' %}{% endif %}{{ m.content }}",
    "a beginning": "{% if 'yes no more'.startswith(m.content) %}{% endif %}{{ m.content }}",
    "a name": "{{ {'yes': 1}.get(m.content, m.content) }}",
    "a place": "{{ {'yes': 1}[m.content] }}{{ m.content }}",
    "words": "{{ m.content.split() | first }}",
    "two texts": "{% if m.content == messages[0].content %}{% endif %}{{ m.content }}",
    "a digit": "{% if m.content.isdigit() %}{% endif %}{{ m.content }}",
    "what was joined": "{% if (m.role ~ m.content).endswith('r2') %}{% endif %}{{ m.content }}",
    "what was added": "{% if 'n<' in 'n' + m.content %}{% endif %}{{ m.content }}",
    "what a macro wrote": "{% macro x(y) %}:{{ y }}{% endmacro %}{{ x(m.content) | length }}",
    "what a block wrote": "{% set x %}:{{ m.content }}{% endset %}{{ x | length }}",
    "sorted": "{{ (messages | sort(attribute='content'))[0].role }}{{ m.content }}",
    "chosen": "{{ messages | selectattr('content', 'equalto', messages[0].content) | list | length }}",
    "by its name": "{{ m | attr('content') | length }}",
}


@pytest.mark.parametrize("said", READS.values(), ids=READS)
def test_a_template_that_looks_into_contents_is_rendered(said: str) -> None:
    asked = [{"role": "assistant", "content": veil(0)}]
    with guarded(), pytest.raises(RowFault) as caught:
        made(said).veiled(asked, prompt=False)
    assert isinstance(caught.value.__cause__, Read)
    assert counted(made(said), turns()) == {}


@pytest.mark.parametrize(
    ("said", "content"),
    [
        ("with thoughts cut off", "odd</think>7"),
        ("unless it begins so", "<tool>x"),
        ("unless it ends so", "x</tool>"),
        ("with something replaced", "an <image>"),
        ("unless it is a word", "/stop"),
        ("trimmed", " x"),
        ("stripped", "x\n"),
        ("of one line break", "\nx"),
        ("as it is", ""),
    ],
)
def test_a_content_that_is_not_as_the_others_is_rendered(said: str, content: str) -> None:
    template = made(COPIES[said])
    outlines = Outlines(template)
    assert counted(template, turns(), outlines)
    for place in range(len(CONTENTS)):
        asked = turns([*CONTENTS[:place], content, *CONTENTS[place + 1 :]])
        assert found(template, asked, outlines) == {}


class Counting(Template):
    """Counts how often it is rendered."""

    times = 0

    def marked(self, *args: Any) -> Any:
        self.times += 1
        return super().marked(*args)


@pytest.mark.parametrize("name", ["as it is", "by a namespace", "with thoughts cut off", "with a tag"])
def test_of_many_conversations_few_are_rendered(name: str) -> None:
    template = Counting(tiny.tokenizer(), LOOP.replace("SAID", COPIES[name]) + PROMPT, "t")
    outlines = Outlines(template)
    for number in range(100):
        shown = outlines.of(asked := turns([f"{content} {number}" for content in CONTENTS]), (), [2, 4])
        assert shown.text == template.render(asked, prompt=False)
    assert 2 <= template.times <= 6


def test_a_template_that_knows_the_time_is_rendered_each_time() -> None:
    said = "{{ strftime_now('%H:%M:%S.%f') }}{{ m.content }}"
    template = Counting(tiny.tokenizer(), LOOP.replace("SAID", said) + PROMPT, "t")
    outlines = Outlines(template)
    texts = {outlines.of(turns(), (), [2, 4]).text for _ in range(20)}
    assert len(texts) == template.times == 20


def test_what_was_learned_and_is_no_longer_so_is_not_used() -> None:
    """A template is foreign code: what is put together is rendered too, now and then."""
    template = Counting(tiny.tokenizer(), LOOP.replace("SAID", "{{ m.content }}") + PROMPT, "t")
    outlines = Outlines(template)
    assert counted(template, turns(), outlines)
    template._sources = {"default": LOOP.replace("SAID", "!{{ m.content }}") + PROMPT}
    shown = [outlines.of(turns(), (), [2, 4]) for _ in range(64)]
    assert any(one.ends == {} and "!be kind" in one.text for one in shown)


def test_what_is_not_plain_is_rendered() -> None:
    template = made("{{ m.content }}")
    outlines = Outlines(template)
    assert counted(template, turns(), outlines)
    thinking = [{**turn, "thinking": "hm"} for turn in turns()]
    assert outlines.of(turns(), ({"name": "f"},), [2, 4]).ends == {}
    assert outlines.of(thinking, (), [2, 4]).ends == {}


def test_one_conversation_of_its_roles_is_not_worth_an_outline() -> None:
    template = made("{{ m.content }}")
    outlines = Outlines(template)
    assert outlines.of(turns(), (), [2, 4]).ends == {}
    assert set(outlines.of(turns(), (), [2, 4]).ends) == {2, 4}
    assert outlines.of(turns(), (), [4]).ends == {}
    assert outlines.of(turns([*CONTENTS, "?"], [*ROLES, "user"]), (), [2, 4]).ends == {}


def test_tags_whose_text_is_processed_are_rendered() -> None:
    """Where in the text such a block lies, its edges do not tell."""
    said = "{% macro say(x) %}{% generation %}{{ x }}{% endgeneration %}{% endmacro %}{{ say(m.content) }}"
    assert counted(made(said), turns()) == {}


def test_what_is_too_long_is_rendered(monkeypatch: pytest.MonkeyPatch) -> None:
    """The template's own bound is to judge it."""
    template = Counting(tiny.tokenizer(), LOOP.replace("SAID", "{{ m.content }}") + PROMPT, "t")
    outlines = Outlines(template)
    assert counted(template, turns(), outlines)
    before = template.times
    monkeypatch.setattr("fulltune.data.outlines.CHARACTERS", 20)
    outlines.of(turns(), (), [2, 4])
    assert template.times == before + 1


def test_outlines_are_forgotten_and_not_gathered_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fulltune.data.outlines._MOST", 1)
    template = made("{{ m.content }}")
    outlines = Outlines(template)
    assert counted(template, turns(), outlines)
    assert outlines.of(turns(CONTENTS[1:], ROLES[1:]), (), [1, 3]).ends == {}
    assert len(outlines._known) == 1
    assert outlines.of(turns(), (), [2, 4]).ends == {}


def test_there_are_veils_for_so_many_turns() -> None:
    with pytest.raises(Read):
        veil(0x7000)


def test_history_that_is_rewritten_is_rendered() -> None:
    """Only turns behind which nothing changed what stands before have ends."""
    template = made("{% if loop.last and m.role == 'assistant' %}{{ 'now: ' }}{% endif %}{{ m.content }}")
    assert counted(template, turns()) == {4: rendered(template, turns())[4]}


def test_a_veil_has_no_open_way() -> None:
    """Whatever a text can be asked, a veil answers by its own means or not at all."""
    own = {"__new__", "__getattribute__", "__doc__", "__sizeof__", "__getnewargs__"}
    for name in vars(str).keys() - own:
        assert inspect.getattr_static(Veiled, name) is not vars(str)[name]
    with pytest.raises(Read):
        len(veil(3))


TEXT = st.text(alphabet=st.sampled_from("ab <>/|\n&é☃"), max_size=6)


@settings(max_examples=150, deadline=None)
@given(many=st.lists(st.tuples(st.sampled_from(("user", "assistant")), TEXT), min_size=1, max_size=7), data=st.data())
def test_random_conversations(many: list[tuple[str, str]], data: st.DataObject) -> None:
    template = made(data.draw(st.sampled_from(sorted(COPIES.values()))))
    many = [("user", "q"), *many, ("assistant", "a")]
    asked = turns([content for _, content in many], [role for role, _ in many])
    learned = turns([f"x{n}" for n in range(len(many))], [role for role, _ in many])
    outlines = Outlines(template)
    assert counted(template, learned, outlines)
    assert found(template, asked, outlines) in ({}, rendered(template, asked))


REWRITES = {
    "axolotl__mistral_v2v3.jinja": "the system's text stands before the last question",
    "axolotl__mistral_v3_tekken.jinja": "as axolotl__mistral_v2v3.jinja",
    "trl__deepseekv3.jinja": "its prompt opens <think>, which its turns never begin with",
    "trl__deepseekv3_training.jinja": "as trl__deepseekv3.jinja",
}
"""Real templates with which a turn changes what stands before it, so that nothing is counted; no other reads texts."""


def test_real_templates(shared: Path) -> None:
    """Nearly all only copy, and what is counted is what rendering finds."""
    never = set()
    for file in sorted(path.name for path in (shared / "templates").glob("*.jinja")):
        text = source(shared, file)
        template = Template(tokenizer(shared, "gpt2", text), text, file)
        for roles in (("user", "assistant"), ("user", "assistant") * 3, ROLES):
            asked = turns([f"text {n}" for n in range(len(roles))], roles)
            try:
                ends = counted(template, asked)
            except RowFault:
                continue  # it knows no system
            if not ends:
                never.add(file)
            own = rendered(template, asked)
            assert {index: own[index] for index in ends} == ends, file
    assert never == REWRITES.keys()
