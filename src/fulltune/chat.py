"""A terminal loop over a tuned model, through its own chat template, word by word as it speaks."""

from pathlib import Path
from typing import Any, cast

import torch
from transformers import TextStreamer

from fulltune.base.errors import DataError
from fulltune.base.visible import visible
from fulltune.engine.launch import world
from fulltune.evaluation.generate import generating, plain_config, ways
from fulltune.model.facts import arithmetic, context
from fulltune.model.folder import load_tokenizer, section_of
from fulltune.model.load import load_model

_HELP = "an empty line or Ctrl-D ends, /new begins anew"


def chat(run: Path, *, tokens: int) -> None:
    """Read questions from standard input and stream the answers, keeping the conversation. Greedy, up to a stop token.

    `run` is a run folder with a result, or any model folder. DataError if the model has no chat template.
    """
    folder = run / "model" if (run / "model").is_dir() else run
    section = section_of(folder)
    tokenizer = load_tokenizer(section)
    if tokenizer.chat_template is None:
        raise DataError(
            "this model has no chat template", where=str(folder), mend="name model.chat_template when tuning"
        )
    model = cast(Any, load_model(section)).to(world().device)
    print(visible(f"{folder}: {_HELP}"))
    turns: list[dict[str, str]] = []
    while (said := _ask()) is not None:
        if said == "/new":
            turns = []
            continue
        turns.append({"role": "user", "content": said})
        turns.append({"role": "assistant", "content": _answer(model, tokenizer, turns, tokens)})


class _Visible(TextStreamer):  # type: ignore[misc]  # transformers has no types
    """A model may have learned, or be asked, to say what a terminal obeys."""

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        super().on_finalized_text(visible(text), stream_end)


def _ask() -> str | None:
    try:
        return input("> ").strip() or None
    except EOFError:
        return None


@torch.no_grad()
def _answer(model: Any, tokenizer: Any, turns: list[dict[str, str]], tokens: int) -> str:
    text = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    asked = tokenizer(text, add_special_tokens=False, return_tensors="pt").to(model.device)
    streamer = _Visible(tokenizer, skip_prompt=True, skip_special_tokens=True)
    named = model.generation_config.eos_token_id
    stops = named if isinstance(named, list) else [] if named is None else [named]
    limit = context(model.config.get_text_config())
    room = tokens if limit is None else min(tokens, limit - asked["input_ids"].shape[1])
    if room < 1:
        raise DataError(
            f"the conversation fills all {limit:,} tokens of this model", where="chat", mend="/new begins anew"
        )
    config = plain_config(stops, room, cache=ways(model).cache)
    with arithmetic(model), generating(model, config):
        made = model.generate(
            asked["input_ids"], attention_mask=asked["attention_mask"], generation_config=config, streamer=streamer
        )
    return str(tokenizer.decode(made[0, asked["input_ids"].shape[1] :], skip_special_tokens=True)).strip()
