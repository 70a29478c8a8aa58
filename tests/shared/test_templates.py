"""Every real template with every real tokenizer: what is taught is the assistant's text and its stop token."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import PreTrainedTokenizerFast

from fulltune.base.records import IGNORE
from fulltune.data.example import Chat, Message, RowFault
from fulltune.data.render import Encoded, Renderer, TooLong
from fulltune.data.template import Template

CONTROL = re.compile(
    r"<[|｜][A-Za-z_▁0-9]+[|｜]>|</?(?:start|end)_of_turn>|\[/?[A-Z_]{4,}\]|\[\|[a-z]+\|\]"  # as in their vocabularies
)
TOKENIZERS = ("gpt2", "guppylm-chatml", "llama2-32k", "torchtitan-test-2k")

EXCEPTIONS = {
    "trl__deepseekv3.jinja": ("template_unstable", "its prompt opens <think>, which its turns never begin with"),
    "trl__deepseekv3_training.jinja": ("template_unstable", "as trl__deepseekv3.jinja"),
    "trl__qwen2_5_training.jinja": ("masks_disagree", "it marks a line break that the prompt writes already"),
}
"""Templates that are refused, by which code, and why; every other one teaches each conversation that it renders."""
ENDLESS = {"chujiezheng__falcon-instruct.jinja"}
"""Templates that write nothing behind an answer that could end it."""
LAST_ONLY = {"axolotl__metharme.jinja", "trl__qwen3.jinja"}
"""Templates that write an earlier answer otherwise than they ask for it: without its stop token, without its empty
thoughts. Of several turns the last is taught, and a note says so."""
ALLOWED = {"template_refused", "template_lossy", "special_token_text"}
"""Why one conversation may be refused."""

PLAIN = ("qa", "multi")
REWRITTEN = {("thinking_multi", "trl__lfm2_2_5.jinja")}
"""Conversations of which a template takes the thoughts out of earlier turns."""
SYSTEM_LAST = {("system_multi", "axolotl__mistral_v2v3.jinja"), ("system_multi", "axolotl__mistral_v3_tekken.jinja")}
"""Templates that write the system's text only while a question stands last, so it is lost once it is answered."""

THINKING = {
    "thinking": [("user", "Name a prime.", ""), ("assistant", "7", "Odd and small.")],
    "thinking_multi": [
        ("user", "Name a prime.", ""),
        ("assistant", "7", "Odd and small."),
        ("user", "Another, larger.", ""),
        ("assistant", "11", "Not nine."),
    ],
    "think_tags": [("user", "Name a prime.", ""), ("assistant", "<think>\nOdd.\n</think>\n\n7", "")],
}


def source(shared: Path, file: str) -> str:
    """The template's text. Those of chujiezheng are stored with indents that their loader takes out, as we do."""
    text = (shared / "templates" / file).read_text()
    return text.replace("    ", "").replace("\n", "") if file.startswith("chujiezheng") else text


def tokenizer(shared: Path, name: str, template: str) -> Any:
    """With BOS, EOS and the control tokens that the template writes, as the template's own tokenizer has them."""
    made = PreTrainedTokenizerFast.from_pretrained(shared / "tokenizers" / name, clean_up_tokenization_spaces=False)
    missing = {"bos_token": "<s>", "eos_token": "</s>"}
    made.add_special_tokens({key: text for key, text in missing.items() if key not in made.special_tokens_map})
    made.add_special_tokens({"extra_special_tokens": sorted(set(CONTROL.findall(template)))})
    return made


def conversations(shared: Path) -> dict[str, Chat]:
    asked = json.loads((shared / "templates" / "_conversations.json").read_text())
    made = {}
    for name, conversation in asked.items():
        turns = [
            Message(turn["role"], turn["content"], 1.0, {k: v for k, v in turn.items() if k not in ("role", "content")})
            for turn in conversation["messages"]
        ]
        if turns[-1].role == "assistant":
            made[name] = Chat(tuple(turns), tuple(conversation.get("tools", ())))
    for name, said in THINKING.items():
        turns = [Message(r, c, 1.0, {"reasoning_content": t} if t else {}) for r, c, t in said]  # type: ignore[arg-type]
        made[name] = Chat(tuple(turns))
    return made


def renderer_of(tokens: Any, template: str, file: str) -> Renderer:
    """Made once for all conversations: it learns a whole vocabulary first, which takes 0.1 s."""
    return Renderer(
        tokens, Template(tokens, template, file), supervise="assistant", max_length=8192, over_length="error"
    )


def outcome(renderer: Renderer, chat: Chat) -> Encoded | RowFault | TooLong:
    return renderer.render([chat])[0]


def stretches(encoded: Encoded) -> list[list[int]]:
    """Ids of each taught stretch."""
    places = np.flatnonzero(encoded.labels != IGNORE)
    return [
        encoded.labels[part].tolist() for part in np.split(places, np.flatnonzero(np.diff(places) > 1) + 1) if len(part)
    ]


def expected(turn: Message) -> re.Pattern[str]:
    """What an assistant's turn may look like: its thoughts, its text, its calls; white space and think tags aside."""
    parts = [re.escape(turn.extra["reasoning_content"])] if "reasoning_content" in turn.extra else []
    parts += [re.escape(turn.content.strip())] if turn.content.strip() else []
    for call in turn.extra.get("tool_calls", ()):
        parts += [re.escape(call["function"]["name"]) + ".*" + ".*".join(call["function"]["arguments"].values()) + ".*"]
    tags = r"(?:\s|</?think>)*"
    opening = (
        r"(?:\[TOOL_CALLS\]|<\|tool_call_start\|>|</?tool_calls?>|[\s\[{]|\"name\": \")*"
        if "tool_calls" in turn.extra
        else ""
    )
    return re.compile(tags + opening + tags.join(parts) + r"\s*", re.DOTALL)


def spelled(tokens: Any, text: str) -> str:
    """A text as this tokenizer gives it back: some know no sign outside of their alphabet."""
    return str(tokens.decode(tokens(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]))


def squeezed(text: str) -> str:
    return "".join(text.split())


def stops(texts: dict[str, dict[str, str]], tokens: Any) -> str:
    """The control token behind the answer in the text that transformers writes, with the tokenizer's own eos."""
    behind = texts["qa"]["text"].partition("2+2 = 4.")[2]
    found = re.search(f"</s>|{CONTROL.pattern}", behind)
    assert found is not None
    return str(tokens.eos_token) if found[0] == "</s>" else found[0]


def refusals(file: str, said: str, wanted: dict[str, str]) -> set[str]:
    """Codes that a conversation may be refused with: plain ones are only where the template itself is at fault."""
    if "error" in wanted:
        return {"template_refused"}
    if file in EXCEPTIONS:
        # A role that the template drops is found before its masks are.
        dropped = set() if said in PLAIN else {"template_lossy"}
        return {EXCEPTIONS[file][0], "template_refused", "special_token_text", "masks_disagree"} | dropped
    if file in ENDLESS:
        return {"template_no_end", "template_lossy"}
    return set() if said in PLAIN else ALLOWED | ({"template_unstable"} if (said, file) in SYSTEM_LAST else set())


@pytest.mark.slow
@pytest.mark.parametrize("name", TOKENIZERS)
def test_what_is_taught_is_the_answer_and_its_stop_token(shared: Path, name: str) -> None:
    golden = json.loads((shared / "templates" / "_golden.json").read_text())
    chats = conversations(shared)
    taught = 0
    for file, texts in golden.items():
        template = source(shared, file)
        tokens = tokenizer(shared, name, template)
        renderer = renderer_of(tokens, template, file)
        for said, chat in chats.items():
            where = (file, name, said)
            encoded = outcome(renderer, chat)
            if isinstance(encoded, RowFault):
                assert encoded.code in refusals(file, said, texts.get(said, {})), (*where, encoded.code, encoded.what)
                continue
            assert isinstance(encoded, Encoded)
            assert file not in EXCEPTIONS, where
            turns = [turn for turn in chat.messages if turn.role == "assistant"]
            rewritten = "history_rewritten" in encoded.notes
            assert rewritten == (len(turns) > 1 and (file in LAST_ONLY or (said, file) in REWRITTEN)), where
            found = stretches(encoded)
            assert len(found) == (1 if rewritten else len(turns)), where
            for ids, turn in zip(found, turns[-1:] if rewritten else turns, strict=True):
                stop, body = ids[-1], tokens.decode(ids[:-1])
                assert stop in renderer.stop_ids and stop in tokens.all_special_ids, where
                assert tokens.decode([stop]) == stops(texts, tokens), where
                if name in ("gpt2", "llama2-32k"):
                    assert expected(turn).fullmatch(body), (*where, body)
                elif "tool_calls" not in turn.extra and "reasoning_content" not in turn.extra:
                    assert squeezed(body).endswith(squeezed(spelled(tokens, turn.content.strip()))), (*where, body)
                taught += 1
    assert taught > 150


@pytest.mark.parametrize("name", ["gpt2", "llama2-32k"])
def test_generation_tags_mark_what_incremental_rendering_finds(shared: Path, name: str) -> None:
    """Asked of transformers itself: its mask has the same tokens, white space and eos behind the stop token aside."""
    index = json.loads((shared / "templates" / "_index.json").read_text())
    files = [entry["file"] for entry in index if entry["generation_tags"] and entry["file"] not in EXCEPTIONS]
    chats = conversations(shared)
    compared = 0
    for file in files:
        template = source(shared, file)
        tokens = tokenizer(shared, name, template)
        renderer = renderer_of(tokens, template, file)
        for said, chat in chats.items():
            encoded = outcome(renderer, chat)
            if said == "injection" or not isinstance(encoded, Encoded) or "history_rewritten" in encoded.notes:
                continue  # transformers parses what a row spells
            served = tokens.apply_chat_template(
                [turn.turn() for turn in chat.messages],
                tools=list(chat.tools) or None,
                chat_template=template,
                return_dict=True,
                return_assistant_tokens_mask=True,
            )
            marked = [token for token, mark in zip(served["input_ids"], served["assistant_masks"], strict=True) if mark]
            mine = tokens.decode([token for ids in stretches(encoded) for token in ids])
            theirs = tokens.decode(marked).removesuffix(tokens.eos_token if "phi3" in file else "")
            assert squeezed(theirs) == squeezed(mine), (file, said)
            compared += 1
    assert len(files) == 7
    assert compared > 35


def test_the_exceptions_are_few_and_those_without_an_end_are_refused(shared: Path) -> None:
    assert len(EXCEPTIONS) <= 4
    chats = conversations(shared)
    for file, code in [(file, "template_no_end") for file in ENDLESS] + [(f, c) for f, (c, _) in EXCEPTIONS.items()]:
        template = source(shared, file)
        for name in TOKENIZERS:
            encoded = outcome(renderer_of(tokenizer(shared, name, template), template, file), chats["qa"])
            assert isinstance(encoded, RowFault), file
            assert encoded.code == code, (file, encoded.what)
