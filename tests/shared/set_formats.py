"""Formats and augments for sets whose rows are none of the package's, as a user would write them."""

from collections.abc import Iterator
from itertools import pairwise
from random import Random
from typing import Any

from fulltune.data.example import Chat, Content, Message, Preference, Row, RowFault

_SAID = {"Human": "user", "Assistant": "assistant"}


def hh(row: Row) -> Content:
    """Two whole conversations as text; what they begin with in common is the prompt, their last turns the answers."""
    better, worse = (_turns(row[name]) for name in ("chosen", "rejected"))
    if better[:-1] != worse[:-1]:
        raise RowFault("preference", "the two conversations differ before their last answer", "leave the row out")
    return Preference(Chat(better[:-1]), better[-1:], worse[-1:])


def _turns(text: str) -> tuple[Message, ...]:
    marks: list[tuple[int, int, str]] = []
    for name in _SAID:
        begin = -1
        while (begin := text.find(f"\n\n{name}:", begin + 1)) >= 0:
            marks.append((begin, begin + len(name) + 3, name))
    ends = [*sorted(marks), (len(text), len(text), "")]
    return tuple(Message(_SAID[name], text[start:stop].strip()) for (_, start, name), (stop, _, _) in pairwise(ends))


def tree(row: Row) -> Content:
    """The path of the best replies through a tree of them."""
    turns, node = [], row["prompt"]
    while node is not None:
        turns.append(Message("user" if node["role"] == "prompter" else "assistant", node["text"]))
        node = min(node["replies"], key=_rank, default=None)
    return Chat(tuple(turns if turns[-1].role == "assistant" else turns[:-1]))


def _rank(reply: dict[str, Any]) -> int:
    return 10**9 if reply.get("rank") is None else int(reply["rank"])


def threads(row: Row, random: Random) -> Iterator[Row]:
    """An augment for `tree`: every path from the prompt to a last reply, as a tree without branches."""
    return ({**row, "prompt": path} for path in _paths(row["prompt"]))


def _paths(node: dict[str, Any]) -> Iterator[dict[str, Any]]:
    if not node["replies"]:
        yield node
    for reply in node["replies"]:
        yield from ({**node, "replies": [path]} for path in _paths(reply))


def meeting(row: Row) -> Content:
    """The first question about a part of a meeting, with that part."""
    asked = row["specific_query_list"][0]
    said = [
        f"{turn['speaker']}: {turn['content']}"
        for first, last in asked["relevant_text_span"]
        for turn in row["meeting_transcripts"][int(first) : int(last) + 1]
    ]
    return Chat((Message("user", "\n".join([*said, asked["query"]])), Message("assistant", asked["answer"])))


def questions(row: Row, random: Random) -> Iterator[Row]:
    """An augment for `meeting`: each question alone."""
    return ({**row, "specific_query_list": [asked]} for asked in row["specific_query_list"])


def judged(row: Row) -> Content:
    """Questions that follow each other, each with the answer of reference where there are any."""
    asked, answers = row["turns"], row.get("reference") or []
    turns = [Message("user", text) for text in asked]
    for number, text in reversed(list(enumerate(answers, 1))):
        turns.insert(number, Message("assistant", text))
    return Chat(tuple(turns))
