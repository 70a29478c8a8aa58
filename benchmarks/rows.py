"""Chat rows in any number: a corpus, repeated with changes, so that no two rows are alike. Always the same ones.

Row i is a function of the corpus, the seed and i alone. Every row bears its number, and from the second pass over the
corpus on a third of its words are changed, so that neither a cache of words nor a screen for repeated rows has it easy.
"""

import itertools
import json
import random
from collections.abc import Iterator, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

Turn = dict[str, str]
Conversation = list[Turn]

_ROLES = ("system", "user", "assistant")
_PAIRS = (("prompt", "completion"), ("question", "answer"), ("instruction", "output"))
_MOST_EXCHANGES = 8
"""A conversation of the embedded corpus has one to so many questions with their answers: 40 to 400 tokens."""


class BadCorpus(Exception):
    """A file that rows cannot be made from; the message says which line."""


def write(target: Path, corpus: Sequence[Conversation], count: int, seed: int = 0) -> None:
    """So many rows as JSONL."""
    with target.open("w", encoding="utf-8") as file:
        for turns in rows(corpus, count, seed):
            file.write(json.dumps({"messages": turns}, ensure_ascii=False) + "\n")


def rows(corpus: Sequence[Conversation], count: int, seed: int = 0) -> Iterator[Conversation]:
    """The first so many rows."""
    for number in range(count):
        rng = random.Random(f"{seed}:{number}")
        turns = corpus[number % len(corpus)]
        if number >= len(corpus):
            turns = [_changed(turn, rng) for turn in turns]
        yield list(_numbered(turns, number))


def embedded(seed: int = 0) -> list[Conversation]:
    """The customers' questions that fulltune comes with, several of them to a conversation."""
    text = (files("fulltune") / "embedded" / "train.jsonl").read_text(encoding="utf-8")
    single = [_conversation(json.loads(line)) for line in text.splitlines()]
    rng = random.Random(seed)
    return [list(itertools.chain(first, *rng.choices(single, k=rng.randrange(_MOST_EXCHANGES)))) for first in single]


def corpus_of(path: Path) -> list[Conversation]:
    """The rows of a JSONL file, whole conversations or questions with answers. BadCorpus if there are others."""
    made = []
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            try:
                made.append(_conversation(json.loads(line)))
            except ValueError as fault:
                raise BadCorpus(f"{path.name}:{number}: {fault}") from fault
    if not made:
        raise BadCorpus(f"{path.name}: no row in it")
    return made


def _conversation(row: Any) -> Conversation:
    """The turns of a row. ValueError if it is none of ours."""
    pair = next((pair for pair in _PAIRS if isinstance(row, dict) and row.keys() >= set(pair)), None)
    if isinstance(row, dict) and isinstance(row.get("messages"), list):
        turns = [dict(turn) for turn in row["messages"] if isinstance(turn, dict)]
    elif pair is not None:
        turns = [{"role": role, "content": row[key]} for role, key in zip(_ROLES[1:], pair, strict=True)]
    else:
        raise ValueError(f"neither `messages` nor one of {', '.join('/'.join(pair) for pair in _PAIRS)}")
    for turn in turns:
        if turn.keys() != {"role", "content"} or turn["role"] not in _ROLES or not isinstance(turn["content"], str):
            raise ValueError(f"a turn that is more or less than a text of {', '.join(_ROLES)}")
    if not any(turn["role"] == "user" for turn in turns):
        raise ValueError("no turn of a user")
    return turns


def _changed(turn: Turn, rng: random.Random) -> Turn:
    """A third of the words are replaced by others of the same turn with a number behind them."""
    words = turn["content"].split(" ")
    for _ in range(max(1, len(words) // 3)):
        words[rng.randrange(len(words))] = rng.choice(words).rstrip("0123456789") + str(rng.randrange(1000))
    return turn | {"content": " ".join(words)}


def _numbered(turns: Conversation, number: int) -> Iterator[Turn]:
    """The turns with the row's number behind the first question."""
    first = next(place for place, turn in enumerate(turns) if turn["role"] == "user")
    for place, turn in enumerate(turns):
        yield turn | {"content": f"{turn['content']} [{number}]"} if place == first else turn
