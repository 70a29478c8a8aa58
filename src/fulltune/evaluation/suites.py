"""A suite of questions put to a model: answers, scores with intervals, and a line on disk for every question."""

import json
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import numpy as np

from fulltune.base.errors import DivergedError, RecipeError
from fulltune.base.files import fingerprint, flush, sha256, write_record
from fulltune.base.log import LOGGER
from fulltune.base.results import Confusion, SuiteReport
from fulltune.evaluation.answers import Answer, Items, Likelihood, Metric, Reference
from fulltune.evaluation.asking import Examinee, Spelling
from fulltune.evaluation.intervals import Total, bootstrap
from fulltune.evaluation.labels import F1, Confusions
from fulltune.evaluation.likelihoods import preferred
from fulltune.evaluation.questions import Question, Questions
from fulltune.evaluation.scoring import Found, Scored, Scorer
from fulltune.evaluation.sharing import Answering, shared
from fulltune.evaluation.speaking import Decoding, Speaker

_AT_ONCE = 256
"""Questions that are in memory together, among which batches of similar length are made."""
LONGEST = 8192
"""Tokens of a piece of a long text where the model has no limit of its own."""
_SPEAK_EVERY = 30.0
"""Seconds."""
SEED = 0
"""Of bootstrap and permutation: the same numbers each time."""

Way = Literal["chat", "plain"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Suite:
    """Questions, how they are put, and what answers are scored by."""

    name: str
    questions: Questions
    metrics: Mapping[str, Metric]
    through: Literal["auto", "chat", "plain"]
    separator: str
    decoding: Decoding
    resamples: int
    confidence: float

    def check(self) -> int:
        """How many questions there are, after each metric was tried on the first; DataError or RecipeError if not."""
        count = self.questions.check()
        first = next(iter(self.questions))
        silent = Likelihood(-1.0, 1, 0, 1, 1)
        answer = Answer("", tuple(silent for _ in first.choices))
        for name, metric in self.metrics.items():
            rows = np.asarray(metric.items([answer], [first.reference]), np.float64)
            if rows.ndim != 2 or rows.shape[0] != 1 or not rows.shape[1]:
                raise RecipeError(
                    f"{name} gave {rows.shape} numbers for one question",
                    where=f"suite {self.name}",
                    mend="its `items` gives a row of numbers for each question",
                )
            metric.total(rows)
        return count

    def fingerprint(self) -> str:
        """Of the questions and how they are put: equal ones can be compared."""
        asked, how = self.questions, self.decoding
        put = [asked.kind, asked.prompt, asked.answer, asked.choices, asked.limit, self.through, self.separator]
        said = [how.tokens, how.stop_texts, how.temperature, how.seed]
        return fingerprint([sha256(asked.path), *put, *said])

    def examine(self, asked: Examinee, *, model: str, step: int | None, folder: Path | None) -> "Examined":
        """Put every question to the model. `folder`: where `NAME.json` (the record) and `NAME.jsonl` (answers) go.

        Interrupted between two batches where a signal came; half a file of answers does not stay.
        """
        begun = time.monotonic()
        way = asked.asks(self.through, answers=self.questions.kind == "answer")
        answering = answerer(self, asked, way)
        if asked.crew is not None:
            answering = shared(answering, asked.crew)
        columns: dict[str, list[Items]] = {name: [] for name in self.metrics}
        counts: Counter[str] = Counter()
        classes = next((name for name, metric in self.metrics.items() if isinstance(metric, F1)), None)
        confusions = Confusions()
        with writing_lines(None if folder is None else folder / f"{self.name}.jsonl") as write:
            for done, window in _windows(self):
                answers = answering(window, range(done, done + len(window)), counts)
                references = [question.reference for question in window]
                made = {name: _rows(self, name, answers, references) for name in self.metrics}
                for name, rows in made.items():
                    columns[name].append(rows)
                if classes is not None:
                    confusions.see(references)
                for number, (question, answer) in enumerate(zip(window, answers, strict=True)):
                    write(_line(question, answer, {name: rows[number].tolist() for name, rows in made.items()}))
        items = {name: np.concatenate(parts) for name, parts in columns.items()}
        table = None if classes is None else confusions.table(items[classes])
        facts: dict[str, Any] = {"model": model, "step": step, "asked": way, "seconds": time.monotonic() - begun}
        report = _report(
            self, items, counts, table, {**facts, "items": None if folder is None else f"{self.name}.jsonl"}
        )
        if folder is not None:
            write_record(folder / f"{self.name}.json", report)
        return Examined(report, items, {name: metric.total for name, metric in self.metrics.items()})


@dataclass(frozen=True, slots=True)
class Examined:
    """What came of it: the record, and each metric's numbers for every question, in order."""

    report: SuiteReport
    items: Mapping[str, Items]
    totals: Mapping[str, Total]
    """What makes a score of such numbers."""


def _report(
    suite: Suite, items: Mapping[str, Items], counts: Counter[str], table: Confusion | None, facts: dict[str, Any]
) -> SuiteReport:
    drawn: dict[str, Any] = {"resamples": suite.resamples, "confidence": suite.confidence}
    totals = {name: metric.total for name, metric in suite.metrics.items()}
    return SuiteReport(
        suite=suite.name,
        form=suite.questions.kind,
        questions=len(next(iter(items.values()))),
        scores={name: float(total(items[name])) for name, total in totals.items()},
        intervals={name: bootstrap(items[name], total, seed=SEED, **drawn) for name, total in totals.items()},
        better={name: metric.better for name, metric in suite.metrics.items()},
        counts=dict(sorted(counts.items())),
        confusion=table,
        fingerprint=suite.fingerprint(),
        **drawn,
        **facts,
    )


def _windows(suite: Suite) -> Iterator[tuple[int, list[Question]]]:
    """The questions, some at a time, with how many came before; says now and then how far it is."""
    source, done, spoken = iter(suite.questions), 0, time.monotonic()
    while window := list(islice(source, _AT_ONCE)):
        yield done, window
        done += len(window)
        if time.monotonic() - spoken > _SPEAK_EVERY:
            spoken = time.monotonic()
            LOGGER.info(f"suite {suite.name}: {done:,} questions are answered")


def _rows(suite: Suite, name: str, answers: Sequence[Answer], references: Sequence[Reference]) -> Items:
    rows = np.asarray(suite.metrics[name].items(answers, references), dtype=np.float64)
    if not np.isfinite(rows).all():
        raise DivergedError(
            f"{name} of suite {suite.name} is not finite",
            where="evaluation",
            mend="the model's logits are not finite: lower optim.lr, or train.precision=float32",
        )
    return rows


def answerer(suite: Suite, asked: Examinee, way: Way) -> Answering:
    """What gives the answers to some questions."""
    spelling = Spelling(asked, way)
    if suite.questions.kind == "answer":
        speaker = Speaker(asked, suite.decoding)

        def spoken(window: Sequence[Question], places: Sequence[int], counts: Counter[str]) -> list[Answer]:
            prompts = [spelling.prompt(question.turns, question.prompt, question.where) for question in window]
            # Draws hang on a question's place in the file: whatever lies in its batch, the same comes.
            said = speaker(prompts, [str(place) for place in places])
            limit = asked.context
            counts["tokens"] += sum(len(one.ids) for one in said)
            fits = [limit is None or len(prompt) < limit for prompt in prompts]
            counts["too_long"] += fits.count(False)
            counts["unfinished"] += sum(fit and not one.ended for fit, one in zip(fits, said, strict=True))
            return [Answer(one.text) for one in said]

        return spoken
    scorer = Scorer(asked)

    def scored(window: Sequence[Question], _: Sequence[int], counts: Counter[str]) -> list[Answer]:
        pieces: list[Scored] = []
        owners: list[tuple[int, int]] = []
        for number, question in enumerate(window):
            prompt = spelling.prompt(question.turns, question.prompt, question.where) if question.turns else []
            shortened = False
            for choice, text in enumerate(question.choices):
                ids, start = spelling.followed(prompt, question.prompt, suite.separator, text)
                parts, cut = pieces_of(ids, start, asked.context or LONGEST)
                shortened |= cut
                pieces += parts
                owners += [(number, choice)] * len(parts)
            counts["cut"] += shortened
        sums: dict[tuple[int, int], list[Found]] = {}
        for owner, found in zip(owners, scorer(pieces), strict=True):
            sums.setdefault(owner, []).append(found)
        counts["tokens"] += sum(one.tokens for parts in sums.values() for one in parts)
        return [_chosen(question, number, sums, suite) for number, question in enumerate(window)]

    return scored


def _chosen(question: Question, number: int, sums: Mapping[tuple[int, int], Sequence[Found]], suite: Suite) -> Answer:
    """The likelihood of each text, and the most likely one as what was said."""
    separated = suite.separator if question.turns else ""
    found = []
    for choice, text in enumerate(question.choices):
        parts = sums[number, choice]
        found.append(
            Likelihood(
                logprob=sum(one.logprob for one in parts),
                tokens=sum(one.tokens for one in parts),
                hits=sum(one.hits for one in parts),
                size=len((separated + text).encode("utf-8", "surrogatepass")),
                characters=len(text),
            )
        )
    is_choice = question.reference.index is not None
    return Answer(question.choices[preferred(found)] if is_choice else "", tuple(found))


def pieces_of(ids: Sequence[int], start: int, limit: int) -> tuple[list[Scored], bool]:
    """Tokens cut so that each piece fits into the context, and whether the prompt's beginning had to go.

    Of a prompt at least the half of the context that lies nearest stays. Every asked token is in one piece; a piece
    begins with the last token of the one before.
    """
    drop = min(max(0, len(ids) - limit - 1), max(0, start - limit // 2))
    ids, start = ids[drop:], start - drop
    pieces = [Scored(ids[: limit + 1], start)]
    for at in range(limit, len(ids) - 1, limit):
        pieces.append(Scored(ids[at : at + limit + 1], 1))
    return pieces, drop > 0


def _line(question: Question, answer: Answer, numbers: Mapping[str, Sequence[float]]) -> dict[str, Any]:
    """What is kept of one question. `numbers`: by metric its own score, then what a total needs."""
    return {
        "id": question.id,
        "question": question.prompt,
        "choices": list(question.choices) if question.reference.index is not None else None,
        "right": list(question.reference.texts),
        "answer": answer.text,
        "logprobs": [one.logprob for one in answer.likelihoods] or None,
        "scores": {name: row[0] for name, row in numbers.items()},
        "numbers": {name: list(row) for name, row in numbers.items()},
    }


@contextmanager
def writing_lines(path: Path | None) -> Iterator[Callable[[Mapping[str, Any]], None]]:
    """Appends lines to a file that stands under its name when all are written; to nothing if there is no path."""
    if path is None:
        yield lambda _: None
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f"{path.name}.part")
    try:
        with draft.open("w", encoding="utf-8") as file:

            def write(line: Mapping[str, Any]) -> None:
                file.write(json.dumps(line, ensure_ascii=False, allow_nan=False) + "\n")

            yield write
        flush(draft)
        draft.replace(path)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise
