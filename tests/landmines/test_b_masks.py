"""Landmines B: chat templates, masks, tokenisation."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import fulltune
from fulltune.base.errors import DataError
from fulltune.base.records import IGNORE
from fulltune.data.example import Message, RowFault, Text
from fulltune.data.render import Encoded, Renderer, TooLong
from fulltune.data.store import Store
from fulltune.data.template import Template
from fulltune.evaluation.generate import greedy
from tests import tiny
from tests.unit.data.test_render import ANSWER, QUESTION, chat, render, render_all, taught
from tests.unit.data.test_spans import ROLES

PACKED = {"layout": "packed", "micro_tokens": 512}


def test_landmine_B1_labels_are_shifted_exactly_once(tmp_path: Path, llama: Path) -> None:
    """A model overfitted to `a b c d` goes on with b c d after a, and its loss is near 0 in training and evaluation."""
    rows = tiny.jsonl(tmp_path / "rows.jsonl", [{"text": "the cat sat on the mat"}])
    # The text that was taught, as ids: written as text it would be a leak.
    same = tiny.jsonl(tmp_path / "same.jsonl", [{"input_ids": tiny.tokenizer()("the cat sat on the mat").input_ids}])
    asked = tiny.recipe(
        llama,
        rows,
        data={"heldout": 0, "retention": str(same)},
        train={"steps": 60, "batch_examples": 1},
        optim={"lr": 1e-2, "schedule": "constant", "warmup": 0},
    )
    record = fulltune.train(asked, out=tmp_path / "run")
    assert record.evaluations[-1].scores["retention.loss"] < 0.05
    from transformers import AutoModelForCausalLM

    ids = tiny.tokenizer()("the cat sat on the mat").input_ids
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "run/model")
    assert greedy(model, [ids[:1]], stop_ids=[2], tokens=20) == [ids[1:]]


@pytest.mark.parametrize("answer", ["a", "no", "yes a dog", "12 345"])
def test_landmine_B2_the_first_and_the_last_token_of_an_answer_are_taught(answer: str) -> None:
    assert taught(render(chat(QUESTION, Message("assistant", answer)))) == [answer + "<|end|>"]


def test_landmine_B3_a_template_without_generation_tags_gives_a_mask_and_no_row_has_none() -> None:
    assert "generation" not in tiny.TEMPLATE.replace("add_generation_prompt", "")
    assert render(chat(QUESTION, ANSWER)).supervised > 0
    outcome = render_all([chat(Message("user", "a " * 99), ANSWER)], max_length=30, over_length="truncate")[0]
    assert isinstance(outcome, RowFault)
    assert outcome.code == "no_trained_tokens"


def test_landmine_B7_supervision_starts_where_the_generation_prompt_ends() -> None:
    """Also where the prompt opens the answer, as with an empty think block."""
    tokens = tiny.tokenizer()
    opening = tiny.TEMPLATE.replace("'<|assistant|>'", "'<|assistant|>then '").replace(
        "'<|' + m['role'] + '|>' + m['content']",
        "'<|' + m['role'] + '|>' + ('then ' if m['role'] == 'assistant' else '') + m['content']",
    )
    for template in (None, opening):
        encoded = render(chat(QUESTION, ANSWER), tokens, template=template)
        asked = tokens.apply_chat_template(
            [QUESTION.turn()], chat_template=template, add_generation_prompt=True, return_dict=False
        )
        first = int(np.flatnonzero(encoded.labels != IGNORE)[0])
        assert first + 1 == len(asked)
        assert encoded.ids[: len(asked)].tolist() == asked
        assert taught(encoded, tokens) == ["yes a dog<|end|>"]


def test_landmine_B8_no_token_spans_prompt_and_answer() -> None:
    tokens = tiny.tokenizer()
    for prompt, answer in (("x ", "the cat"), ("x\n", "\nthe"), ("then", " a"), ("12", "345")):
        template = (
            "{{ bos_token }}{{ messages[0].content }}{% for m in messages[1:] %}{{ m.content + eos_token }}{% endfor %}"
        )
        encoded = render(chat(Message("user", prompt), Message("assistant", answer)), tokens, template=template)
        assert taught(encoded, tokens) == [answer + "</s>"]
        untaught = encoded.ids[np.concatenate([[True], encoded.labels[:-1] == IGNORE])]
        assert tokens.decode(untaught) == "<s>" + prompt
        assert untaught.tolist() == tokens("<s>" + prompt, add_special_tokens=False).input_ids


def test_landmine_B9_and_B10_one_beginning_of_sequence_never_two_never_none() -> None:
    """From a template that writes it, from raw text; a template without it gives what inference gives: none."""
    for adds_bos in (True, False):
        tokens = tiny.tokenizer(adds_bos=adds_bos)
        assert render(chat(QUESTION, ANSWER), tokens).ids.tolist().count(1) == 1
        renderer = Renderer(
            tokens, Template(tokens, None, "t"), supervise="assistant", max_length=99, over_length="error"
        )
        assert renderer.prompt([QUESTION]).count(1) == 1
        assert render(Text("the cat"), tokens).ids.tolist().count(1) == int(adds_bos)
    without = tiny.TEMPLATE.replace("{{ bos_token }}", "")
    tokens = tiny.tokenizer()
    served = tokens.apply_chat_template([QUESTION.turn(), ANSWER.turn()], chat_template=without, return_dict=False)
    assert render(chat(QUESTION, ANSWER), tokens, template=without).ids.tolist() == served
    assert served.count(1) == 0


@pytest.mark.slow
def test_landmine_B11_one_end_token_and_the_same_ids_under_any_hash_seed(tmp_path: Path) -> None:
    tokens = tiny.tokenizer(template=tiny.TEMPLATE.replace("'<|end|>'", "eos_token"))
    assert render(chat(QUESTION, ANSWER), tokens).ids.tolist().count(2) == 2, "one for each turn"
    assert render(Text("the cat</s>"), tokens).ids.tolist().count(2) == 1
    script = (
        "from tests.unit.data.test_render import *\n"
        "print(render(chat(QUESTION, Message('assistant', 'yes </s> <|end|> no'))).ids.tolist())"
    )
    root = Path(__file__).parent.parent.parent
    printed = {
        subprocess.run(
            [sys.executable, "-c", script],
            env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": str(root)},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(printed) == 1


def test_landmine_B12_an_end_token_that_is_also_the_padding_is_taught(tmp_path: Path) -> None:
    tokens = tiny.tokenizer(template=tiny.TEMPLATE.replace("'<|end|>'", "eos_token"), pad="</s>")
    assert tokens.pad_token_id == tokens.eos_token_id == 2
    model = tiny.folder(tmp_path / "model", tokens=tokens)
    facts = fulltune.prepare(
        tiny.recipe(model, tiny.jsonl(tmp_path / "r.jsonl", tiny.rows(5)), data={"heldout": 0}), out=tmp_path / "run"
    )
    store = Store(tmp_path / "run/data/train", [source.files for source in facts.sources["train"]])
    for index in range(len(store)):
        assert store[index].labels[store[index].labels != IGNORE][-1] == 2


def test_landmine_B13_padding_is_never_told_from_ids(tmp_path: Path) -> None:
    """Token 0 pads and is content too: it keeps its label, and what comes before it does not change."""
    from fulltune.data.feed import collate
    from tests.contract.ground import Ground
    from tests.stored import StoreWriter

    ids = np.array([5, 0, 7, 0, 9], np.int32)
    labels = np.array([IGNORE, 7, 0, 9, IGNORE], np.int32)
    with StoreWriter(tmp_path / "s") as writer:
        writer.append(Encoded(ids, labels, (labels != IGNORE).astype(np.float32)), source=0, line=1)
    store = Store(tmp_path / "s", [("r",)])
    ground = Ground(tmp_path / "g", tiny.model("llama"), count=1)
    batch = collate(store, [0], ground.budget)
    assert batch.labels.flatten()[batch.taught].tolist() == [7, 0, 9]
    logits = ground.model(input_ids=torch.tensor([ids.tolist()]), use_cache=False).logits[0]
    wanted = torch.nn.functional.cross_entropy(logits, torch.tensor(labels.tolist()), reduction="sum")
    assert torch.allclose(ground.engine.forward(batch)["next_token"], wanted, atol=1e-5)


@pytest.mark.parametrize("train", [{}, PACKED], ids=["padded", "packed"])
def test_landmine_B14_rows_cut_down_to_their_prompt_are_named_or_counted(
    tmp_path: Path, llama: Path, train: dict[str, Any]
) -> None:
    """By default an error that names the row, the same in both layouts."""
    rows = [*tiny.rows(8, longest=4), {"prompt": "the cat " * 40, "completion": "yes"}]
    path = tiny.jsonl(tmp_path / "rows.jsonl", rows)
    options = {"max_length": 40, "over_length": "truncate", "heldout": 0}
    asked = tiny.recipe(llama, path, data=options, train=train)
    with pytest.raises(DataError, match="rows.jsonl:9"):
        fulltune.train(asked, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()
    asked["data"]["on_bad_row"] = "drop"
    record = fulltune.train(asked, out=tmp_path / "run")
    assert record.data.dropped == {"no_trained_tokens": 1}
    assert record.data.splits["train"].examples == 8


def test_landmine_B15_a_cut_answer_has_no_end_token_and_a_whole_one_has() -> None:
    content = chat(QUESTION, Message("assistant", "yes " * 30))
    whole = render(content)
    length = len(whole.ids)
    assert whole.ids[-1] == tiny.SPECIAL.index("<|end|>")
    assert render(content, max_length=length).ids[-1] == tiny.SPECIAL.index("<|end|>")
    cut = render(content, max_length=length - 1, over_length="truncate")
    assert cut.ids.tolist() == whole.ids[:-1].tolist()
    assert tiny.SPECIAL.index("<|end|>") not in cut.labels
    assert isinstance(render_all([content], max_length=length - 1, over_length="drop")[0], TooLong)


def test_landmine_B16_the_mask_is_pinned_to_the_token() -> None:
    """What is taught stands in brackets; see golden_masks.json."""
    golden = json.loads(Path(__file__).with_name("golden_masks.json").read_text())
    for case in golden:
        turns = [Message(role, content) for role, content in case["turns"]]
        assert bracketed(render(chat(*turns), supervise=case["supervise"])) == case["rendered"]


def bracketed(encoded: Encoded) -> str:
    """The text with its taught stretches in brackets."""
    tokens = tiny.tokenizer()
    learn = np.concatenate([[False], encoded.labels[:-1] != IGNORE, [False]])
    text = ""
    for index, token in enumerate(encoded.ids):
        text += "[" * int(learn[index] and not learn[index - 1]) + tokens.decode([token])
        text += "]" * int(learn[index] and not learn[index + 1])
    return text


def test_landmine_B17_by_default_only_the_assistant_is_taught(tmp_path: Path, llama: Path) -> None:
    turns = [{"role": "user", "content": "the cat"}, {"role": "assistant", "content": "sat"}]
    path = tiny.jsonl(tmp_path / "rows.jsonl", [{"messages": turns}])
    facts = fulltune.prepare(tiny.recipe(llama, path, data={"heldout": 0}), out=tmp_path / "run")
    store = Store(tmp_path / "run/data/train", [(str(path),)])
    assert taught(store[0]) == ["sat<|end|>"]
    assert facts.splits["train"].supervised_tokens < facts.splits["train"].tokens / 2


CALLS = (
    "{{ bos_token }}{% for t in tools or [] %}{{ t|tojson }}{% endfor %}{% for m in messages %}"
    "{{ '<|' + ('user' if m.role == 'tool' else m.role) + '|>' + m.content }}"
    "{% for c in m.tool_calls or [] %}{{ c.function.name ~ c.function.arguments|tojson }}{% endfor %}"
    "{{ '<|end|>' }}{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


def prepared(folder: Path, template: str, *rows: dict[str, Any]) -> list[Encoded]:
    """The rows as they stand in a store, all the way from a file."""
    model = tiny.folder(folder / "model", tokens=tiny.tokenizer(template=template))
    asked = tiny.recipe(model, tiny.jsonl(folder / "rows.jsonl", rows), data={"heldout": 0, "max_length": 2000})
    facts = fulltune.prepare(asked, out=folder / "run")
    store = Store(folder / "run/data/train", [source.path for source in facts.sources["train"]])
    return [store[index] for index in range(len(store))]


def test_landmine_B18_no_null_enters_a_tool_call_whose_row_has_fewer_keys(tmp_path: Path) -> None:
    def row(arguments: dict[str, Any], properties: dict[str, Any]) -> dict[str, Any]:
        call = {"type": "function", "function": {"name": "f", "arguments": arguments}}
        schema = {"type": "object", "properties": properties}
        tool = {"type": "function", "function": {"name": "f", "description": "d", "parameters": schema}}
        turns = [{"role": "user", "content": "go"}, {"role": "assistant", "content": "", "tool_calls": [call]}]
        return {"messages": turns, "tools": [tool]}

    rows = (row({"city": "a"}, {"city": {"type": "string"}}), row({"x": 1, "y": {"z": [2]}}, {"x": {}, "y": {}}))
    made = prepared(tmp_path, CALLS, *rows)
    assert [taught(encoded) for encoded in made] == [['f{"city": "a"}<|end|>'], ['f{"x": 1, "y": {"z": [2]}}<|end|>']]
    for encoded in made:
        text = tiny.tokenizer().decode(encoded.ids)
        assert "null" not in text
        assert "None" not in text


def test_landmine_B19_control_tokens_of_a_row_never_become_control_tokens(tmp_path: Path) -> None:
    """As many control ids as the template writes, whatever the row says."""
    said = "a <|end|> </s><|assistant|> b <s><pad>"
    turns = [{"role": "user", "content": said}, {"role": "assistant", "content": said}]
    (encoded,) = prepared(tmp_path, tiny.TEMPLATE, {"messages": turns})
    controls = [token for token in encoded.ids.tolist() if token < len(tiny.SPECIAL)]
    assert [tiny.SPECIAL[token] for token in controls] == ["<s>", "<|user|>", "<|end|>", "<|assistant|>", "<|end|>"]
    assert taught(encoded) == [said + "<|end|>"]
    assert tiny.tokenizer().decode(encoded.ids) == f"<s><|user|>{said}<|end|><|assistant|>{said}<|end|>"


@pytest.mark.parametrize(
    ("old", "new", "named"),
    [
        ("m.content }}", "(m.content if m.role != 'system' else '') }}", "system"),
        ("m.content }}", "(m.content if m.role != 'tool' else '') }}", "tool"),
        ("m.content }}", "(m.content if loop.index0 != 2 else 'x') }}", "assistant"),
        ("c.function.name ~", "'f' ~", "tool f"),
        ("c.function.arguments|tojson", "''", "argument city"),
        ("{{ t|tojson }}", "", "tool f"),
    ],
)
def test_landmine_B20_whatever_a_template_drops_is_named(old: str, new: str, named: str) -> None:
    call = {"type": "function", "function": {"name": "f", "arguments": {"city": "a"}}}
    content = chat(
        Message("system", "be kind"),
        QUESTION,
        Message("assistant", "so", 1.0, {"tool_calls": [call]}),
        Message("tool", "12"),
        ANSWER,
        tools=({"type": "function", "function": {"name": "f"}},),
    )
    assert render(content, template=CALLS).supervised
    assert old in CALLS
    with pytest.raises(RowFault, match=named) as caught:
        render(content, template=CALLS.replace(old, new))
    assert caught.value.code == "template_lossy"


def test_landmine_B21_texts_survive_from_the_file_to_the_ids_to_the_byte(tmp_path: Path) -> None:
    said = (
        "{KEY} {0} %s %(x)s UPPER \N{GRINNING FACE} e\u0301 \r\n\t {{ x }}{% endfor %}{# no #} \\n ${HOME}\0 \ufeff end"
    )
    (encoded,) = prepared(tmp_path, tiny.TEMPLATE, {"prompt": said, "completion": said})
    assert taught(encoded) == [said + "<|end|>"]
    assert tiny.tokenizer().decode(encoded.ids) == f"<s><|user|>{said}<|end|><|assistant|>{said}<|end|>"


def test_landmine_B23_the_padding_side_of_a_tokenizer_moves_no_label(tmp_path: Path) -> None:
    from fulltune.data.feed import collate
    from fulltune.data.lay import Budget
    from tests.stored import StoreWriter

    both = []
    for side in ("left", "right"):
        tokens = tiny.tokenizer()
        tokens.padding_side = tokens.truncation_side = side
        contents = [chat(QUESTION, ANSWER), chat(Message("user", "a"), Message("assistant", "then yes " * 9))]
        made = render_all(contents, tokens)
        with StoreWriter(tmp_path / side) as writer:
            for line, encoded in enumerate(made, 1):
                assert isinstance(encoded, Encoded)
                writer.append(encoded, source=0, line=line)
        batch = collate(Store(tmp_path / side, ["r"]), [0, 1], Budget(2, 999, "padded"))
        assert batch.ids[0, 0] == 1, "padding stands behind the text"
        places = torch.nonzero(batch.labels != IGNORE)
        assert all(batch.labels[r, c] == batch.ids[r, c + 1] for r, c in places.tolist())
        both.append((batch.ids, batch.labels))
    assert torch.equal(both[0][0], both[1][0])
    assert torch.equal(both[0][1], both[1][1])


def test_landmine_B22_templates_give_text_and_lists_of_ids_never_a_batch_encoding() -> None:
    tokens = tiny.tokenizer()
    renderer = Renderer(tokens, Template(tokens, None, "t"), supervise="assistant", max_length=99, over_length="error")
    ids = renderer.prompt([QUESTION])
    assert type(ids) is list
    assert len(ids) > 2
    assert {type(token) for token in ids} == {int}
    assert type(Template(tokens, None, "t").render([QUESTION.turn()], prompt=True)) is str


def test_landmine_B4_a_role_marker_ends_an_answer_where_the_models_generation_config_says_so(tmp_path: Path) -> None:
    """As with GLM: the template writes nothing behind an answer but the next turn's marker."""
    tokens, user = tiny.tokenizer(template=ROLES), tiny.SPECIAL.index("<|user|>")
    model = tiny.folder(tmp_path / "model", tokens=tokens)
    asked = tiny.recipe(model, tiny.jsonl(tmp_path / "r.jsonl", tiny.rows(5)), data={"heldout": 0})
    with pytest.raises(DataError) as caught:
        fulltune.prepare(asked, out=tmp_path / "without")
    assert {fault.code for fault in caught.value.faults} == {"template_no_end"}
    generation = model / "generation_config.json"
    generation.write_text(json.dumps({**json.loads(generation.read_text()), "eos_token_id": [2, user]}))
    facts = fulltune.prepare(asked, out=tmp_path / "run")
    assert facts.stop_ids == (user,)
    store = Store(tmp_path / "run/data/train", [source.files for source in facts.sources["train"]])
    for index in range(len(store)):
        assert store[index].labels[store[index].labels != IGNORE][-1] == user
    # Another list is other data: a prepared store is not taken for it.
    generation.write_text(json.dumps({**json.loads(generation.read_text()), "eos_token_id": [user]}))
    assert fulltune.prepare(asked, out=tmp_path / "run").fingerprint != facts.fingerprint
