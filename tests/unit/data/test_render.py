"""What is taught of a conversation: exactly what the assistant must produce at inference, stop token included."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from fulltune.base.errors import DataError
from fulltune.base.records import IGNORE
from fulltune.data.example import Chat, Content, Message, RowFault, Text
from fulltune.data.render import Encoded, Renderer, TooLong
from fulltune.data.template import Template
from tests import tiny

QUESTION, ANSWER = Message("user", "the cat sat"), Message("assistant", "yes a dog")


def chat(*messages: Message, **more: Any) -> Chat:
    return Chat(messages, **more)


def render(content: Content, tokens: Any = None, *, template: str | None = None, **options: Any) -> Encoded:
    outcome = render_all([content], tokens, template=template, **options)[0]
    if isinstance(outcome, Exception):
        raise outcome
    return outcome


def render_all(
    contents: Sequence[Content], tokens: Any = None, *, template: str | None = None, **options: Any
) -> list[Encoded | RowFault | TooLong]:
    tokens = tokens if tokens is not None else tiny.tokenizer()
    options = {"supervise": "assistant", "max_length": 256, "over_length": "error", **options}
    renderer = Renderer(tokens, Template(tokens, template, "t.jinja"), **options)
    return renderer.render(contents)


def taught(encoded: Encoded, tokens: Any = None) -> list[str]:
    """The taught stretches as text."""
    tokens = tokens if tokens is not None else tiny.tokenizer()
    places = np.flatnonzero(encoded.labels != IGNORE)
    stretches = np.split(places, np.flatnonzero(np.diff(places) > 1) + 1)
    return [tokens.decode(encoded.labels[stretch]) for stretch in stretches if len(stretch)]


def test_labels_are_shifted_and_only_the_answer_is_taught() -> None:
    encoded = render(chat(QUESTION, ANSWER))
    places = np.flatnonzero(encoded.labels != IGNORE)
    assert np.array_equal(encoded.labels[places], encoded.ids[places + 1])
    assert encoded.labels[-1] == IGNORE
    assert taught(encoded) == ["yes a dog<|end|>"]
    assert set(encoded.weights[places]) == {1.0}
    assert encoded.weights.sum() == encoded.supervised == len(places)


def test_every_assistant_turn_is_taught_and_no_header() -> None:
    encoded = render(chat(QUESTION, ANSWER, QUESTION, Message("assistant", "no")))
    assert taught(encoded) == ["yes a dog<|end|>", "no<|end|>"]


def test_supervise_says_which_turns() -> None:
    call = Message("assistant", "", 1.0, {"tool_calls": [{"function": {"name": "f", "arguments": {}}}]})
    template = "{% for t in tools or [] %}{{ t.function.name }} {% endfor %}" + tiny.TEMPLATE.replace(
        "m['content']", "m['content'] + (m.tool_calls[0].function.name if m.tool_calls else '')"
    )
    tokens = tiny.tokenizer()
    tools = ({"function": {"name": "f"}},)
    content = chat(QUESTION, ANSWER, QUESTION, call, Message("tool", "12"), Message("assistant", "12"), tools=tools)
    wanted = {
        "assistant": ["yes a dog<|end|>", "f<|end|>", "12<|end|>"],
        "last_turn": ["12<|end|>"],
        "completion": ["f<|end|>", "12<|end|>"],
    }
    for supervise, stretches in wanted.items():
        assert taught(render(content, template=template, supervise=supervise), tokens) == stretches
    everything = render(content, template=template, supervise="all")
    assert everything.supervised == len(everything.ids) - 1


def test_weights_scale_and_silence_turns() -> None:
    heavy, silent = Message("assistant", "yes", 2.5), Message("assistant", "no", 0.0)
    encoded = render(chat(QUESTION, silent, QUESTION, heavy))
    assert taught(encoded) == ["yes<|end|>"]
    assert set(encoded.weights[encoded.labels != IGNORE]) == {2.5}


def test_with_last_turn_a_silenced_last_turn_teaches_nothing_in_its_place() -> None:
    silent = Message("assistant", "no", 0.0)
    with pytest.raises(RowFault) as caught:
        render(chat(QUESTION, ANSWER, QUESTION, silent), supervise="last_turn")
    assert caught.value.code == "no_trained_tokens"


def test_weights_hold_where_all_is_taught() -> None:
    silent, half = Message("assistant", "no", 0.0), Message("assistant", "yes", 0.5)
    encoded = render(chat(QUESTION, silent, QUESTION, half), supervise="all")
    stretches = taught(encoded)
    assert len(stretches) == 2
    assert "no" not in "".join(stretches)
    assert sorted(set(encoded.weights[encoded.labels != IGNORE])) == [0.5, 1.0]
    with pytest.raises(RowFault, match="weight"):
        render(chat(Message("user", "a", 0.5), ANSWER), supervise="all")


def test_ids_are_those_of_the_chat_template() -> None:
    tokens = tiny.tokenizer()
    content = chat(Message("system", "be small"), QUESTION, ANSWER)
    wanted = tokens.apply_chat_template([m.turn() for m in content.messages], tokenize=True, return_dict=False)
    assert render(content).ids.tolist() == wanted
    asked = tokens.apply_chat_template([QUESTION.turn()], add_generation_prompt=True, return_dict=False)
    renderer = Renderer(tokens, Template(tokens, None, "t"), supervise="assistant", max_length=99, over_length="error")
    assert renderer.prompt([QUESTION]) == asked == render(chat(QUESTION, ANSWER)).ids[: len(asked)].tolist()


def test_white_space_behind_the_stop_token_is_not_taught() -> None:
    template = tiny.TEMPLATE.replace("'<|end|>'", "'<|end|>\n'")
    encoded = render(chat(QUESTION, ANSWER, QUESTION, ANSWER), template=template)
    assert taught(encoded) == ["yes a dog<|end|>"] * 2


def test_an_answer_must_end_with_a_stop_token() -> None:
    plain = "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\n' }}{% endfor %}"
    trailing = tiny.TEMPLATE.replace("'<|end|>'", "'<|end|> bye'")
    for template in (plain, trailing):
        with pytest.raises(RowFault) as caught:
            render(chat(QUESTION, ANSWER), template=template)
        assert caught.value.code == "template_no_end"


def test_a_template_that_rewrites_earlier_turns_teaches_only_those_that_stay() -> None:
    mark = "m['content'] + (' then' if m['role'] == 'assistant' and not loop.last else '')"
    rewriting = tiny.TEMPLATE.replace("m['content']", mark)
    content = chat(QUESTION, Message("assistant", "no"), QUESTION, ANSWER)
    encoded = render(content, template=rewriting)
    assert taught(encoded) == ["yes a dog<|end|>"]
    assert encoded.notes == {"history_rewritten"}
    last = render(content, template=rewriting, supervise="last_turn")
    assert taught(last) == ["yes a dog<|end|>"]
    assert last.notes == frozenset()


def test_a_template_that_loses_something_is_refused() -> None:
    no_system = tiny.TEMPLATE.replace("{% for m in messages %}", "{% for m in messages if m.role != 'system' %}")
    with pytest.raises(RowFault, match="system") as caught:
        render(chat(Message("system", "be kind"), QUESTION, ANSWER), template=no_system)
    assert caught.value.code == "template_lossy"
    with pytest.raises(RowFault, match="tool f"):
        render(chat(QUESTION, ANSWER, tools=({"function": {"name": "f"}},)))


def test_broken_templates_are_told_before_any_row() -> None:
    for template, said in (
        ("{% for m in messages %}{{ m['content'] }{% endfor %}", "does not parse"),
        ("{{ messages[0].content + suffix_token }}", "suffix_token"),
        ("{{ raise_exception('never') }}", "never"),
    ):
        with pytest.raises(DataError, match=said):
            render(chat(QUESTION, ANSWER), template=template)


def test_a_row_that_the_template_refuses_is_a_bad_row() -> None:
    picky = "{% if messages|length > 2 %}{{ raise_exception('too many') }}{% endif %}" + tiny.TEMPLATE
    fine, bad = render_all([chat(QUESTION, ANSWER), chat(QUESTION, ANSWER, QUESTION, ANSWER)], template=picky)
    assert isinstance(fine, Encoded)
    assert isinstance(bad, RowFault)
    assert "too many" in bad.what
    undefined = "{% if messages|length > 2 %}{{ nothing.x }}{% endif %}" + tiny.TEMPLATE
    bad = render_all([chat(QUESTION, ANSWER, QUESTION, ANSWER)], template=undefined)[0]
    assert isinstance(bad, RowFault)
    assert bad.code == "template_undefined"


def test_a_conversation_needs_a_template_and_a_document_does_not() -> None:
    tokens = tiny.tokenizer(template=None)
    with pytest.raises(DataError, match="no chat template"):
        render(chat(QUESTION, ANSWER), tokens)
    assert render(Text("the cat"), tokens).supervised > 0


def test_a_document_is_taught_whole_with_one_beginning_and_one_end() -> None:
    for adds_bos in (True, False):
        tokens = tiny.tokenizer(adds_bos=adds_bos)
        encoded = render(Text("the cat sat"), tokens)
        ids = encoded.ids.tolist()
        assert ids.count(1) == int(adds_bos)
        assert ids.count(2) == 1
        assert ids[-1] == 2
        assert encoded.supervised == len(ids) - 1


def test_over_length() -> None:
    content = chat(QUESTION, Message("assistant", "yes " * 50))
    with pytest.raises(RowFault) as caught:
        render(content, max_length=20)
    assert caught.value.code == "too_long"
    assert isinstance(render_all([content], max_length=20, over_length="drop")[0], TooLong)
    cut = render(content, max_length=20, over_length="truncate")
    assert len(cut.ids) == 20
    assert cut.labels[-1] == IGNORE
    assert tiny.SPECIAL.index("<|end|>") not in cut.labels
    with pytest.raises(RowFault) as caught:
        render(chat(Message("user", "yes " * 50), ANSWER), max_length=20, over_length="truncate")
    assert caught.value.code == "no_trained_tokens"


def test_exactly_the_maximum_fits() -> None:
    length = len(render(chat(QUESTION, ANSWER)).ids)
    assert len(render(chat(QUESTION, ANSWER), max_length=length).ids) == length
    with pytest.raises(RowFault):
        render(chat(QUESTION, ANSWER), max_length=length - 1)


@pytest.mark.parametrize("said", ["<|end|>", "</s>", "a<|user|>b", "<s><s>", "x <|assistant|> <|end|>"])
def test_control_tokens_spelled_in_a_row_stay_letters(said: str) -> None:
    tokens = tiny.tokenizer()
    spoken = chat(Message("user", said), Message("assistant", said + " yes"))
    ids = render(spoken, tokens).ids.tolist()
    plain = render(chat(QUESTION, ANSWER), tokens).ids.tolist()
    for special in range(len(tiny.SPECIAL)):
        assert ids.count(special) == plain.count(special)
    text = tokens.apply_chat_template([m.turn() for m in spoken.messages], tokenize=False)
    assert tokens.decode(ids) == text
    assert taught(render(spoken, tokens), tokens) == [said + " yes<|end|>"]


def test_control_tokens_spelled_in_a_document_stay_letters() -> None:
    tokens = tiny.tokenizer()
    ids = render(Text("a </s> b <pad>"), tokens).ids.tolist()
    assert ids.count(2) == 1
    assert 0 not in ids
    assert tokens.decode(ids) == "<s>a </s> b <pad></s>"


def test_a_border_inside_a_token_is_kept() -> None:
    """The tokenizer would merge the prompt's last space with the answer's first word."""
    template = "{{ bos_token }}{% for m in messages %}{{ m.role + ': ' + m.content + eos_token }}{% endfor %}"
    template += "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
    tokens = tiny.tokenizer()
    merged = tokens("assistant: the cat", add_special_tokens=False)["input_ids"]
    apart = tokens("assistant: ", add_special_tokens=False)["input_ids"]
    assert merged[: len(apart)] != apart, "this tokenizer does not merge here, so the test shows nothing"
    encoded = render(chat(QUESTION, Message("assistant", "the cat")), tokens, template=template)
    asked = tokens(f"<s>user: {QUESTION.content}</s>assistant: ", add_special_tokens=False)["input_ids"]
    assert encoded.ids[: len(asked)].tolist() == asked
    assert taught(encoded, tokens) == ["the cat</s>"]
    assert tokens.decode(encoded.ids) == f"<s>user: {QUESTION.content}</s>assistant: the cat</s>"


def test_stop_tokens_are_remembered() -> None:
    tokens = tiny.tokenizer()
    renderer = Renderer(tokens, Template(tokens, None, "t"), supervise="assistant", max_length=99, over_length="error")
    renderer.render([chat(QUESTION, ANSWER)])
    assert renderer.stop_ids == {tiny.SPECIAL.index("<|end|>")}


def test_the_exported_template_writes_the_same_without_generation_tags() -> None:
    tagged = tiny.TEMPLATE.replace("{{ '<|' + m", "{%- generation -%} {{ '<|' + m").replace(
        "{% endfor %}", " {% endgeneration -%}  {% endfor %}"
    )
    tokens = tiny.tokenizer()
    template = Template(tokens, tagged, "t")
    assert template.exported is not None
    assert "generation" not in template.exported.replace("add_generation_prompt", "")
    turns = [QUESTION.turn(), ANSWER.turn()]
    again = Template(tokens, template.exported, "t")
    assert again.render(turns, prompt=True) == template.render(turns, prompt=True)
