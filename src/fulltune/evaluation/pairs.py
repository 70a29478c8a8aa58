"""The answers of two models to the same questions, read from what a suite wrote of each."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from fulltune.base.errors import CheckpointError


@dataclass(frozen=True, slots=True)
class Pair:
    """One question, what is right, and two answers."""

    id: str
    prompt: str
    right: tuple[str, ...]
    one: str
    other: str


def pairs(one: Path, other: Path) -> Iterator[Pair]:
    """The lines of two files of answers side by side; CheckpointError if they are not to the same questions."""
    with one.open(encoding="utf-8") as ours, other.open(encoding="utf-8") as theirs:
        try:
            for left, right in zip(map(json.loads, ours), map(json.loads, theirs), strict=True):
                if left["question"] != right["question"]:
                    raise ValueError(f"question {left['id']} is another one")
                yield Pair(left["id"], left["question"], tuple(left["right"]), left["answer"], right["answer"])
        except ValueError as fault:
            raise CheckpointError(
                f"the answers of both models do not fit together: {fault}",
                where=f"{one}, {other}",
                mend="ask both again",
            ) from fault
