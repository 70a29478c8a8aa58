"""LESSONS: what a teller of tiny stories is taught, and the stories that show what it forgot, as files of rows."""

import hashlib
import json
import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

Row = Mapping[str, Any]
LENGTH = 256
"""Most tokens of an example; longer texts are cut into several."""
_TEMPLATE = 20
"""Tokens that a chat template adds, at most."""
_STORIES = "data/tinystories"


@dataclass(frozen=True, slots=True)
class Amounts:
    """How many rows of each."""

    rows: int
    """Examples that are taught, about."""
    heldout: int
    kept: int
    """Stories that show what was forgotten; nothing learns from them."""
    replayed: int
    """Stories that replay and Fisher information are taken from."""


@dataclass(frozen=True, slots=True)
class Lesson:
    """Something to be taught."""

    name: str
    train: str
    heldout: str
    whole: bool
    """Whether rows are left out that are longer than an example, since they cannot be cut."""
    each: int = 1
    """Examples that are cut from one row, about."""


LESSONS = (
    Lesson("gsm8k", "data/gsm8k/train_first2000.norm.jsonl", "data/gsm8k/test.norm.jsonl", whole=True),
    Lesson(
        "tinyshakespeare",
        "data/tinyshakespeare/train.norm.jsonl",
        "data/tinyshakespeare/val.norm.jsonl",
        whole=False,
        each=5,
    ),
)
"""The second is taught with the cures that are tried everywhere."""


@dataclass(frozen=True, slots=True)
class Material:
    """Files of rows for one lesson and seed."""

    train: Path
    heldout: Path
    kept: Path
    replayed: Path


def material(lesson: Lesson, seed: int, amounts: Amounts, shared: Path, work: Path) -> Material:
    """Write them; the seed draws the rows that are taught. Their names say what is in them.

    OSError if a set is missing, ValueError if stories of one file stand in the other too.
    """
    tokenizer = shared / "models/stories260K/tokenizer.json" if lesson.whole else None
    pool = _fitting(shared / lesson.train, tokenizer)
    taught = random.Random(seed).sample(pool, min(max(1, amounts.rows // lesson.each), len(pool)))
    judged = _fitting(shared / lesson.heldout, tokenizer)
    kept = _read(shared / _STORIES / "val.norm.jsonl")[: amounts.kept]
    replayed = _read(shared / _STORIES / "train.norm.jsonl")[: amounts.replayed]
    if {_text(row) for row in kept} & {_text(row) for row in replayed}:
        raise ValueError("stories that are kept back are replayed too")
    return Material(
        train=_write(work, f"{lesson.name}-train", taught),
        heldout=_write(work, f"{lesson.name}-heldout", judged[: max(1, amounts.heldout // lesson.each)]),
        kept=_write(work, "kept", kept),
        replayed=_write(work, "replayed", replayed),
    )


@cache
def _fitting(path: Path, tokenizer: Path | None) -> Sequence[Row]:
    """Rows that are no longer than an example; all of them if there is no tokenizer to tell."""
    if tokenizer is None:
        return _read(path)
    encode = Tokenizer.from_file(str(tokenizer)).encode
    return [row for row in _read(path) if len(encode(_text(row)).ids) + _TEMPLATE <= LENGTH]


def _text(row: Row) -> str:
    return "\n".join([row.get("text", ""), *(turn["content"] for turn in row.get("messages", ()))])


def _read(path: Path) -> list[Row]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def _write(work: Path, name: str, rows: Iterable[Row]) -> Path:
    kept = ("text", "messages")  # of other columns a note would be made
    text = "".join(json.dumps({key: row[key] for key in kept if key in row}) + "\n" for row in rows)
    path = work / f"{name}-{hashlib.sha256(text.encode()).hexdigest()[:10]}.jsonl"
    if not path.exists():
        work.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return path
