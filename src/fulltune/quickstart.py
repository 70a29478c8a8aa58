"""The quickstart: the embedded base model, taught customer support in a minute, offline, with proof of what changed."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

from fulltune.base.records import RunRecord
from fulltune.base.visible import visible
from fulltune.data.example import Message
from fulltune.data.render import Renderer
from fulltune.data.template import Template
from fulltune.evaluation.generate import greedy
from fulltune.model.folder import load_tokenizer, section_of, stop_ids
from fulltune.model.load import load_model
from fulltune.stages import train
from fulltune.training.journal import Sink

_TOKENS = 64
"""Longer than any right answer."""


@dataclass(frozen=True, slots=True)
class Question:
    """A customer's words and the one right answer, with the customer's name, numbers and product in it."""

    prompt: str
    completion: str


@dataclass(frozen=True, slots=True)
class Answered:
    """One model's answers to both groups of held-out questions."""

    known: Sequence[str]
    """To phrasings that training had, with names, numbers and products that it never had."""
    unknown: Sequence[str]
    """To phrasings that training never had."""


def quickstart(out: Path, sink: Sink, **overrides: Any) -> str:
    """Train the embedded recipe into `out`, ask base and result the held-out questions, and tell the difference."""
    with as_file(files("fulltune") / "embedded") as embedded:
        record = train(embedded / "quickstart.yaml", out=out, sinks=[sink], **overrides)
        known, unknown = questions(embedded / "heldout.jsonl"), questions(embedded / "phrasings.jsonl")
        before, after = (
            Answered(answers(folder, known), answers(folder, unknown)) for folder in (embedded / "model", out / "model")
        )
    return _report(out, record, known, unknown, before, after)


def questions(path: Path) -> list[Question]:
    """The rows of an embedded file."""
    return [Question(**json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines()]


def answers(folder: Path, asked: Sequence[Question]) -> list[str]:
    """A model folder's greedy answers, through its own chat template."""
    section = section_of(folder)
    tokenizer, model = load_tokenizer(section), load_model(section)
    renderer = Renderer(
        tokenizer,
        Template(tokenizer, None, str(folder)),
        supervise="assistant",
        max_length=512,
        over_length="error",
        stop_ids=stop_ids(section),
    )
    prompts = [renderer.prompt([Message("user", question.prompt)]) for question in asked]
    made = greedy(model, prompts, stop_ids=[tokenizer.eos_token_id], tokens=_TOKENS)
    return [str(tokenizer.decode(answer)) for answer in made]


def right(asked: Sequence[Question], given: Sequence[str]) -> float:
    """Share of answers that are right to the letter, every name, number and product copied."""
    return sum(q.completion == answer for q, answer in zip(asked, given, strict=True)) / len(asked)


def _report(
    out: Path,
    record: RunRecord,
    known: Sequence[Question],
    unknown: Sequence[Question],
    before: Answered,
    after: Answered,
) -> str:
    """What a person reads at the end."""
    assert record.baseline is not None and record.verdict is not None
    last = next(report for report in record.evaluations if report.step == record.result_step)
    old, new = record.baseline.scores, last.scores
    lines = [
        f"{'':<44}{'before':>10}{'after':>10}",
        f"{'held-out loss':<44}{old['heldout.loss']:>10.3f}{new['heldout.loss']:>10.3f}",
        f"{'general-text loss (what was not forgotten)':<44}"
        f"{old['retention.loss']:>10.3f}{new['retention.loss']:>10.3f}",
        f"{'right answers, unseen names and numbers':<44}"
        f"{right(known, before.known):>10.0%}{right(known, after.known):>10.0%}",
        f"{'right answers, unseen phrasings too':<44}"
        f"{right(unknown, before.unknown):>10.0%}{right(unknown, after.unknown):>10.0%}",
        f"{'verdict (gained enough, forgot little enough)':<54}{record.verdict.word:>10}",
    ]
    for number in range(3):
        lines += [
            "",
            f"asked:  {known[number].prompt}",
            f"before: {before.known[number]}",
            f"after:  {after.known[number]}",
        ]
    lines += [
        "",
        f"the tuned model:   {out / 'model'}",
        f"the whole story:   {out / 'report.html'}",
        f"talk to it:        fulltune chat {out}",
        "your own data:     fulltune init",
    ]
    return visible("\n".join(lines))
