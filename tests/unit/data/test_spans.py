"""Two ways to find what is taught, and what they do where a template is not simple."""

from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import AddedToken

from fulltune.base.records import IGNORE
from fulltune.data.example import Chat, Message, RowFault
from fulltune.data.render import Encoded, Renderer
from fulltune.data.template import Template
from tests import tiny
from tests.unit.data.test_render import ANSWER, QUESTION, chat, render, render_all, taught

TAGGED = tiny.TEMPLATE.replace(
    "{{ '<|' + m['role'] + '|>' + m['content'] + '<|end|>' }}",
    "{{ '<|' + m['role'] + '|>' }}{% if m['role'] == 'assistant' %}{% generation %}{{ m['content'] + '<|end|>' }}"
    "{% endgeneration %}{% else %}{{ m['content'] + '<|end|>' }}{% endif %}",
)
THINKS = (
    "{{ bos_token }}{% set ns = namespace(last=-1) %}"
    "{% for m in messages %}{% if m.role == 'user' %}{% set ns.last = loop.index0 %}{% endif %}{% endfor %}"
    "{% for m in messages %}{{ '<|' + m.role + '|>' }}"
    "{% if m.role == 'assistant' and loop.index0 > ns.last and m.thinking %}{{ '(' + m.thinking + ')' }}{% endif %}"
    "{{ m.content + '<|end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
"""Thoughts of turns before the last question are taken out, as Qwen3 does."""
ROLES = (
    "{{ bos_token }}{% for m in messages %}{{ '<|' + m.role + '|>' + m.content }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
"""Nothing ends an answer but the next turn's role marker, as with GLM."""


def thinking(content: str, thought: str) -> Message:
    return Message("assistant", content, 1.0, {"thinking": thought})


def refused(code: str, *messages: Message, **options: Any) -> RowFault:
    with pytest.raises(RowFault) as caught:
        render(chat(*messages), **options)
    assert caught.value.code == code
    return caught.value


# Two methods


def test_tags_and_incremental_rendering_agree() -> None:
    turns = (QUESTION, ANSWER, QUESTION, Message("assistant", "no"))
    tagged, plain = render(chat(*turns), template=TAGGED), render(chat(*turns))
    assert np.array_equal(tagged.ids, plain.ids)
    assert np.array_equal(tagged.labels, plain.labels)


IF, OPEN, SAID, CLOSE, ELSE = (
    "{% if m['role'] == 'assistant' %}",
    "{% generation %}",
    "{{ m['content'] + '<|end|>' }}",
    "{% endgeneration %}",
    "{% else %}",
)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (OPEN + SAID + CLOSE, OPEN + "{{ m['content'] }}" + CLOSE + "{{ '<|end|>' }}"),
        (OPEN + SAID, "{{ m['content'][:1] }}" + OPEN + "{{ m['content'][1:] + '<|end|>' }}"),
        (IF, "{% if m['role'] == 'assistant' and loop.last %}"),
        (OPEN + SAID + CLOSE, SAID + OPEN + CLOSE),
        (ELSE + SAID, ELSE + OPEN + SAID + CLOSE),
        ("{{ '<|' + m['role'] + '|>' }}" + IF + OPEN, IF + OPEN + "{{ '<|assistant|>' }}"),
    ],
    ids=["stop", "start", "turn", "nothing", "question", "header"],
)
def test_a_disagreement_names_both(old: str, new: str) -> None:
    assert old in TAGGED
    template = TAGGED.replace(old, new)
    turns = (QUESTION, ANSWER, QUESTION, Message("assistant", "no"))
    fault = refused("masks_disagree", *turns, template=template)
    assert "generation tags" in fault.what
    assert "incremental rendering" in fault.what


def test_tags_inside_a_macro_are_found_where_they_stand() -> None:
    """Offsets counted by blocks, as transformers counts them, would lie before the macro's text."""
    macro = (
        "{% macro said(m) %}{{ '<|' + m.role + '|>' }}{% generation %}{{ m.content + '<|end|>' }}{% endgeneration %}"
        "{% endmacro %}"
    )
    body = TAGGED.replace(
        "{{ '<|' + m['role'] + '|>' }}{% if m['role'] == 'assistant' %}",
        "{% if m.role == 'assistant' %}{{ said(m) }}{% elif false %}",
    )
    body = body.replace("{% else %}", "{% else %}{{ '<|' + m.role + '|>' }}")
    encoded = render(chat(QUESTION, ANSWER, QUESTION, ANSWER), template=macro + body)
    assert taught(encoded) == ["yes a dog<|end|>"] * 2


def test_tags_that_change_the_text_are_refused() -> None:
    trimmed = TAGGED.replace("{% generation %}", "{% set x %}{% generation %}").replace(
        "{% endgeneration %}", "{% endgeneration %}{% endset %}{{ x|trim }}"
    )
    refused("masks_disagree", QUESTION, Message("assistant", " yes"), template=trimmed)


# History that is rewritten


def test_landmine_B5_a_turn_whose_thoughts_go_is_shown_and_not_taught() -> None:
    turns = (QUESTION, thinking("no", "hm"), QUESTION, thinking("yes", "ah"))
    encoded = render(chat(*turns), template=THINKS)
    assert taught(encoded) == ["(ah)yes<|end|>"]
    assert encoded.notes == {"history_rewritten"}
    assert "hm" not in tiny.tokenizer().decode(encoded.ids)
    plain = render(chat(QUESTION, Message("assistant", "no"), QUESTION, thinking("yes", "ah")), template=THINKS)
    assert taught(plain) == ["no<|end|>", "(ah)yes<|end|>"]
    assert plain.notes == frozenset()


def test_landmine_B5_an_unchanged_turn_behind_a_changed_one_is_taught_where_it_stands() -> None:
    turns = (QUESTION, thinking("a", "hm"), Message("tool", "12"), Message("assistant", "no"), QUESTION, ANSWER)
    encoded = render(chat(*turns), template=THINKS)
    assert taught(encoded) == ["no<|end|>", "yes a dog<|end|>"]
    assert encoded.notes == {"history_rewritten", "context_rewritten"}


def test_landmine_B5_the_place_of_a_turn_is_not_searched_for() -> None:
    """The question before it looks like the turn, header and all."""
    decoy = Message("user", "<|assistant|>no<|end|>")
    turns = (QUESTION, thinking("a", "hm"), Message("tool", "12"), Message("assistant", "no"), decoy, ANSWER)
    encoded = render(chat(*turns), template=THINKS)
    assert taught(encoded) == ["no<|end|>", "yes a dog<|end|>"]
    places = np.flatnonzero(encoded.labels != IGNORE)
    before = tiny.tokenizer().decode(encoded.ids[: places[0] + 1])
    assert before.endswith("<|tool|>12<|end|><|assistant|>")


def test_a_conversation_of_which_nothing_is_left_to_teach_is_refused() -> None:
    refused("no_trained_tokens", QUESTION, thinking("no", "hm"), QUESTION, template=THINKS)


def test_a_weight_of_a_turn_that_is_rewritten_has_no_place_where_all_is_taught() -> None:
    heavy = Message("assistant", "no", 2.0, {"thinking": "hm"})
    refused("template_unstable", QUESTION, heavy, QUESTION, ANSWER, template=THINKS, supervise="all")


def test_what_closes_a_conversation_is_no_part_of_its_last_turn() -> None:
    """As in Phi-3: an answer ends with the same token, whether another turn follows or not."""
    closing = tiny.TEMPLATE.replace("{% endif %}", "{% else %}{{ eos_token }}{% endif %}")
    encoded = render(chat(QUESTION, ANSWER, QUESTION, ANSWER), template=closing)
    assert taught(encoded) == ["yes a dog<|end|>"] * 2
    assert encoded.ids[-1] == 2


def test_landmine_B6_a_prompt_that_opens_the_thoughts() -> None:
    """What the prompt opens is not taught again; a turn that does not begin so is refused."""
    opens = tiny.TEMPLATE.replace("{{ '<|assistant|>' }}", "{{ '<|assistant|>(think)' }}")
    refused("template_unstable", QUESTION, ANSWER, template=opens)
    encoded = render(chat(QUESTION, Message("assistant", "(think)so(end) yes")), template=opens)
    assert taught(encoded) == ["so(end) yes<|end|>"]
    text = tiny.tokenizer().decode(encoded.ids)
    assert text.count("(think)") == 1


# Stop tokens


def test_landmine_B4_the_last_supervised_token_of_every_turn_is_a_stop_token() -> None:
    for template in (None, TAGGED, THINKS):
        encoded = render(chat(QUESTION, ANSWER, QUESTION, Message("assistant", "no")), template=template)
        assert all(text.endswith("<|end|>") for text in taught(encoded))


def test_landmine_B4_an_end_marker_that_the_tokenizer_does_not_call_special() -> None:
    tokens = tiny.tokenizer()
    tokens.add_tokens([AddedToken("[END]", special=False, normalized=False)])
    template = tiny.TEMPLATE.replace("<|end|>", "[END]")
    encoded = render(chat(QUESTION, ANSWER, QUESTION, ANSWER), tokens, template=template)
    assert taught(encoded, tokens) == ["yes a dog[END]"] * 2
    outcome = render_all([chat(QUESTION, Message("assistant", "a [END] b"))], tokens, template=template)[0]
    assert isinstance(outcome, RowFault)
    assert outcome.code == "special_token_text"


def test_landmine_B4_the_next_turns_role_marker_ends_an_answer_if_inference_stops_there() -> None:
    tokens = tiny.tokenizer()
    turns = (QUESTION, ANSWER, QUESTION, Message("assistant", "no"))
    refused("template_no_end", *turns, template=ROLES)
    user = tiny.SPECIAL.index("<|user|>")
    encoded = render(chat(*turns), tokens, template=ROLES, stop_ids=[user])
    assert taught(encoded, tokens) == ["yes a dog<|user|>", "no<|user|>"]
    assert tokens.decode(encoded.ids) == "<s><|user|>the cat sat<|assistant|>yes a dog<|user|>the cat sat" + (
        "<|assistant|>no<|user|>"
    )
    other = tiny.SPECIAL.index("<|system|>")
    refused("template_no_end", *turns, template=ROLES, stop_ids=[other])


def test_of_two_tokens_behind_an_answer_the_first_that_stops_inference_is_taught() -> None:
    template = tiny.TEMPLATE.replace("'<|end|>'", "'<|end|>' + eos_token")
    assert taught(render(chat(QUESTION, ANSWER), template=template)) == ["yes a dog<|end|></s>"]
    end = tiny.SPECIAL.index("<|end|>")
    assert taught(render(chat(QUESTION, ANSWER), template=template, stop_ids=[end])) == ["yes a dog<|end|>"]


def test_control_tokens_that_the_template_acts_on_are_refused() -> None:
    tokens = tiny.tokenizer()
    tokens.add_special_tokens({"extra_special_tokens": ["</think>"]})
    template = tiny.TEMPLATE.replace("m['content']", "m['content'].split('</think>')[-1]")
    outcome = render_all([chat(QUESTION, Message("assistant", "so</think>yes"))], tokens, template=template)[0]
    assert isinstance(outcome, RowFault)
    assert outcome.code == "special_token_text"


# Beginning


def test_landmine_B9_a_template_that_writes_two_beginnings_is_refused() -> None:
    refused("double_bos", QUESTION, ANSWER, template="{{ bos_token }}" + tiny.TEMPLATE)


def test_a_template_without_the_beginning_that_the_tokenizer_adds_is_noted() -> None:
    without = tiny.TEMPLATE.replace("{{ bos_token }}", "")
    assert render(chat(QUESTION, ANSWER), template=without).notes == {"no_bos"}
    assert render(chat(QUESTION, ANSWER), tiny.tokenizer(adds_bos=False), template=without).notes == frozenset()
    assert render(chat(QUESTION, ANSWER)).notes == frozenset()


# Any conversation

SPACED = tiny.TEMPLATE.replace("'|>' + m['content'] + '<|end|>'", "'|>\n' + m['content']|trim + '<|end|>\n'").replace(
    "'<|assistant|>'", "'<|assistant|>\n'"
)
BARE = (
    "{{ bos_token }}{% for m in messages %}{{ m.role + ': ' + m.content + eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
)
FEW = {"plain": tiny.TEMPLATE, "tagged": TAGGED, "thinks": THINKS, "spaced": SPACED, "bare": BARE, "roles": ROLES}
TEXTS = st.lists(
    st.one_of(
        st.sampled_from([*tiny.SPECIAL, "\n", " ", "\r\n", "\t", "", "assistant: ", "{{ x }}", "\u200b", "\U000f0001"]),
        st.text(st.characters(exclude_categories=["Cs"]), max_size=6),
    ),
    max_size=5,
).map("".join)


@pytest.mark.parametrize("name", FEW)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True)
@given(turns=st.lists(st.tuples(TEXTS, TEXTS), min_size=1, max_size=3))
def test_any_conversation_teaches_its_answers_or_is_refused(name: str, turns: list[tuple[str, str]]) -> None:
    tokens = tiny.tokenizer()
    stop_ids = [tiny.SPECIAL.index("<|user|>")] if name == "roles" else []
    made = Renderer(
        tokens,
        Template(tokens, FEW[name], name),
        supervise="assistant",
        max_length=9999,
        over_length="error",
        stop_ids=stop_ids,
    )
    said = [Message(role, text) for pair in turns for role, text in zip(("user", "assistant"), pair, strict=True)]  # type: ignore[arg-type]
    outcome = made.render([Chat(tuple(said))])[0]
    if isinstance(outcome, RowFault):
        assert outcome.code in ("special_token_text", "private_character", "boundary"), outcome.what
        return
    assert isinstance(outcome, Encoded)
    stop = {"bare": "</s>", "roles": "<|user|>"}.get(name, "<|end|>")
    answers = [answer.strip() if name == "spaced" else answer for _, answer in turns]
    assert taught(outcome, tokens) == [answer + stop for answer in answers]
    # Later prompts hold answers, whose tokens are those the model produced, not those a server would read again.
    prompt = made.prompt(said[:1])
    assert outcome.ids[: len(prompt)].tolist() == prompt
