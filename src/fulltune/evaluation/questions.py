"""Questions of a suite, read one by one from a JSONL file: what is asked, and what is right."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fulltune.base.errors import DataError, Fault
from fulltune.data.columns import Columns
from fulltune.data.example import Message, Row, RowFault
from fulltune.data.fields import require, said
from fulltune.data.findings import Findings
from fulltune.data.reading import lines
from fulltune.data.turns import message
from fulltune.evaluation.answers import Kind, Reference

_FEWEST = 2
"""Choices of a question."""


@dataclass(frozen=True, slots=True)
class Question:
    """One question. `turns` is what a chat template is given, `prompt` the same as plain text."""

    id: str
    where: str
    """`file:line`."""
    turns: tuple[Message, ...]
    prompt: str
    choices: tuple[str, ...]
    """Texts whose likelihood is asked: the choices, or the one text of a `text` suite."""
    reference: Reference


@dataclass(frozen=True, slots=True, kw_only=True)
class Questions:
    """A file of questions and how its rows are read. Never held in memory: each pass reads it anew."""

    path: Path
    kind: Kind
    prompt: str | None
    """A column or a template over the columns; likewise `answer`."""
    answer: str | None
    choices: str | tuple[str, ...] | None
    """A column with a list of texts, or the texts themselves."""
    limit: int | None

    def check(self) -> int:
        """How many questions there are; DataError that names every row that is none."""
        if not self.path.is_file():
            raise DataError("there is no such file of questions", where=str(self.path), mend="check the suite's `data`")
        findings = Findings()
        count = sum(1 for _ in self._read(findings))
        faults = [*findings.unreadable, *findings.faults]
        if not count and not faults:
            faults = [Fault("the file has no question", str(self.path), "write one JSON object a line")]
        if faults:
            raise DataError(faults=faults)
        return count

    def __iter__(self) -> Iterator[Question]:
        """Every question in order. The file was checked before."""
        return self._read(Findings(keeps=False))

    def _read(self, findings: Findings) -> Iterator[Question]:
        named = {"prompt": self.prompt, "answer": self.answer}
        named["choices"] = self.choices if isinstance(self.choices, str) else None
        columns = Columns({name: text for name, text in named.items() if text is not None}, f"suite {self.path.name}")
        given = 0
        with self.path.open("rb") as stream:
            for number, row in lines.rows(stream, str(self.path), findings):
                where = f"{self.path}:{number}"
                try:
                    question = self._question(columns(row), row, where, number)
                except RowFault as fault:
                    findings.bad_row(where, fault)
                    continue
                yield question
                given += 1
                if given == self.limit:
                    return

    def _question(self, values: Row, row: Row, where: str, number: int) -> Question:
        turns = _turns(values["prompt"]) if self.prompt is not None else ()
        choices, reference = self._right(values)
        own = row.get("id")
        name = str(own) if isinstance(own, str | int) and not isinstance(own, bool) else str(number)
        return Question(name, where, turns, "\n".join(turn.content for turn in turns), choices, reference)

    def _right(self, values: Row) -> tuple[tuple[str, ...], Reference]:
        """What likelihoods are asked of, and what is right."""
        if self.answer is None:
            return (), Reference()
        wanted = values["answer"]
        if self.kind == "answer":
            return (), Reference(_texts(wanted))
        if self.kind == "text":
            require(isinstance(wanted, str) and wanted != "", "type", f"the text is {said(wanted)}", "write a text")
            return (wanted,), Reference((wanted,))
        choices = _choices(values["choices"] if isinstance(self.choices, str) else self.choices)
        index = _index(wanted, choices)
        return choices, Reference((choices[index],), index)


def _turns(value: Any) -> tuple[Message, ...]:
    """A text as one question, or a conversation up to where the assistant is to speak."""
    if isinstance(value, str):
        require(value.strip() != "", "empty", "the prompt is empty", "write a question, or leave the row out")
        return (Message("user", value),)
    require(isinstance(value, list) and value != [], "type", f"the prompt is {said(value)}", "a text or messages")
    turns = [message(turn, number) for number, turn in enumerate(value, 1)]
    if turns[-1].role == "assistant":
        turns.pop()
    require(bool(turns) and turns[-1].role != "assistant", "order", "nobody asks anything", "end with a user's turn")
    return tuple(turns)


def _texts(value: Any) -> tuple[str, ...]:
    """Right answers: one text or number, or a list of them."""
    listed = value if isinstance(value, list) else [value]
    fine = bool(listed) and all(isinstance(one, str | int | float) for one in listed)
    require(fine, "type", f"the answer is {said(value)}", "write a text, a number, or a list of texts")
    return tuple(one if isinstance(one, str) else json.dumps(one) for one in listed)


def _choices(value: Any) -> tuple[str, ...]:
    listed = tuple(value) if isinstance(value, list | tuple) else ()
    fine = len(listed) >= _FEWEST and all(isinstance(one, str) and one for one in listed)
    require(fine, "type", f"the choices are {said(value)}", f"write a list of {_FEWEST} or more texts")
    return listed


def _index(wanted: Any, choices: tuple[str, ...]) -> int:
    """The number of the right choice: written so, or as its text."""
    if isinstance(wanted, str) and wanted.strip() in (stripped := [choice.strip() for choice in choices]):
        return stripped.index(wanted.strip())
    fine = isinstance(wanted, int) and not isinstance(wanted, bool) and 0 <= wanted < len(choices)
    mend = f"write one of the choices, or its number from 0 to {len(choices) - 1}"
    require(fine, "label", f"the right choice is {said(wanted)}, which is none of them", mend)
    return int(wanted)
