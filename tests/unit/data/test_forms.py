"""What is put together by a form is what is read: texts, spans, labels, whatever the contents are."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fulltune.data.example import Chat, Message
from fulltune.data.render import Renderer
from fulltune.data.template import Template
from tests import tiny
from tests.unit.data.test_borders import said

ROLES = ("system", "user", "assistant", "user", "assistant")
TEMPLATES = {
    "plain": tiny.TEMPLATE,
    "trimmed": tiny.TEMPLATE.replace("m['content']", "m['content'].strip()"),
    "begun before": tiny.TEMPLATE.replace("+ m['content']", "+ '<|' + m['content']"),
    "ended behind": tiny.TEMPLATE.replace("m['content'] +", "m['content'] + 'end|>' +"),
}
PIECES = ("a", "yes, really", " ", "\n", "", "<|", "end|>", "<|end|>", "|>", "é", "\U0010ff00", "</s>", "7")
CONTENTS = st.lists(st.sampled_from(PIECES), max_size=4).map("".join)


def renderer(template: str, **options: Any) -> Renderer:
    tokens = tiny.tokenizer(template=template)
    asked = {"supervise": "assistant", "max_length": 999, "over_length": "error"} | options
    return Renderer(tokens, Template(tokens, template, "t"), **asked)


def chat(contents: Any) -> Chat:
    return Chat(tuple(Message(role, content) for role, content in zip(ROLES, contents, strict=True)))  # type: ignore[arg-type]


def warm(template: str, **options: Any) -> Renderer:
    """One that has seen so many conversations of these roles that it reads the next ones no more."""
    made = renderer(template, **options)
    made.render([chat(f"{word} {number}" for word in ("be", "what", "this", "and", "that")) for number in range(3)])
    return made


WARM = {name: warm(template) for name, template in TEMPLATES.items()}


def forms(made: Renderer) -> list[bool]:
    return [form is not None for form in made._forms._known.values()]


@pytest.mark.parametrize("name", TEMPLATES)
@settings(max_examples=60, deadline=None)
@given(contents=st.tuples(*[CONTENTS] * len(ROLES)))
def test_what_is_put_together_is_what_is_read(name: str, contents: tuple[str, ...]) -> None:
    (short,), (read,) = WARM[name].render([chat(contents)]), renderer(TEMPLATES[name]).render([chat(contents)])
    assert said(short) == said(read)


def test_a_form_is_known_only_where_no_content_can_complete_a_control_token() -> None:
    assert {name: forms(made) for name, made in WARM.items()} == {
        "plain": [True],
        "trimmed": [True],
        "begun before": [False],
        "ended behind": [False],
    }


@pytest.mark.parametrize("supervise", ["last_turn", "completion", "all"])
def test_also_where_other_turns_are_taught(supervise: str) -> None:
    made = warm(tiny.TEMPLATE, supervise=supervise)
    assert forms(made) == [True]
    (short,), (read,) = (one.render([chat("abcde")]) for one in (made, renderer(tiny.TEMPLATE, supervise=supervise)))
    assert said(short) == said(read)


def test_a_form_that_is_wrong_once_is_not_believed_again(monkeypatch: pytest.MonkeyPatch) -> None:
    made = warm(tiny.TEMPLATE)
    ((outline, form),) = made._forms._known.items()
    assert form is not None
    monkeypatch.setitem(made._forms._known, outline, type(form)({2: form._spans[4], 4: form._spans[4]}, form._borders))
    outline.used = 32  # the next one is rendered to see whether it is the same
    (short,), (read,) = (one.render([chat("abcde")]) for one in (made, renderer(tiny.TEMPLATE)))
    assert said(short) == said(read)
    assert forms(made) == [False]
