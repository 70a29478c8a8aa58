"""Two models judged by a person who does not know which is which: a page of answers, and what the choices come to."""

import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fulltune.base.errors import DataError, RecipeError
from fulltune.base.log import LOGGER
from fulltune.base.results import Wins
from fulltune.base.stop import listening
from fulltune.candidates import answering, candidates
from fulltune.data.example import Chat
from fulltune.data.findings import Findings
from fulltune.data.intake import RowReader
from fulltune.data.reading.kept import held
from fulltune.data.reading.places import Place
from fulltune.data.sources import read_rows, whole_digest
from fulltune.engine.launch import machine
from fulltune.evaluation.blind import key_of, require_place, verdicts, write_blind
from fulltune.evaluation.pairs import pairs
from fulltune.evaluation.suites import writing_lines
from fulltune.evaluation.wins import counted
from fulltune.examining import ask, suites_of
from fulltune.planning.make import MICRO_TOKENS
from fulltune.recipe.ask import load_suites
from fulltune.recipe.data import Source
from fulltune.recipe.suites import SuiteSection
from fulltune.runs import RunFolder

PROMPTS = 50
"""Most prompts of each suite on a page unless more are asked for: what a person reads in an hour."""
_CONFIDENCE = 0.95


@dataclass(frozen=True, slots=True)
class BlindPage:
    """Where a page and its key lie, and how many prompts it has; `same` more were answered alike."""

    page: str
    key: str
    prompts: int
    same: int


def blind(
    model: str | os.PathLike[str],
    suites: Sequence[str | os.PathLike[str] | Mapping[str, Any]] = (),
    *,
    against: str | os.PathLike[str] | None,
    page: str | os.PathLike[str],
    prompts: int = PROMPTS,
    batch_tokens: int | None = None,
) -> BlindPage:
    """Ask two models the first prompts of suites, and write a page with their answers that does not say whose they are.

    Suites as for `examine`; without any those of the run's recipe, and where it has none the run's held-out prompts.

    >>> fulltune.blind("runs/recipe", against="base", page="blind.html").key
    """
    if against is None:
        raise RecipeError("a blind page compares two models", where="--blind", mend="name the other with --against")
    place = Path(page)
    require_place(place)
    chosen = candidates(model, against)
    with listening(), tempfile.TemporaryDirectory() as scratch:
        sections = _sections(suites, chosen.run, prompts, Path(scratch), os.fspath(model))
        asked = answering(suites_of(sections))
        if not asked:
            raise RecipeError("no suite is of kind answer", where="--blind", mend="name one in which a model answers")
        tokens = MICRO_TOKENS[machine().kind] if batch_tokens is None else batch_tokens
        folders = [Path(scratch) / str(number) for number in (1, 2)]
        for named, folder in zip(chosen.models, folders, strict=True):
            ask(named, asked, batch_tokens=tokens, folder=folder)
        files = [folder / named.name for named, folder in zip(chosen.models, folders, strict=True)]
        found = [pair for suite in asked for pair in pairs(*(file / f"{suite.name}.jsonl" for file in files))]
        one, other = (named.name for named in chosen.models)
        key = write_blind(place, found, one=one, other=other)
    return BlindPage(str(place), str(key_of(place)), len(key.left), key.same)


def count_choices(key: str | os.PathLike[str], choices: str | os.PathLike[str]) -> Wins:
    """What choices that were saved on a blind page come to, by the page's key; DataError if they are of another page.

    >>> fulltune.count_choices("blind.key.json", "choices.json").shares
    """
    known, found = verdicts(Path(key), Path(choices))
    open_ones = len(known.left) + known.same - len(found)
    if open_ones:
        LOGGER.warning(f"{open_ones:,} of {len(known.left):,} items of the page have no choice")
    return counted(found, suite="", one=known.one, other=known.other, confidence=_CONFIDENCE)


def _sections(
    suites: Sequence[Any], run: RunFolder | None, prompts: int, scratch: Path, model: str
) -> Sequence[SuiteSection]:
    """The suites that are asked, no more than so many prompts of each."""
    if suites:
        named: Sequence[SuiteSection] = load_suites(suites, "--suite")
    elif run is None:
        raise RecipeError("no suite is named", where=model, mend="name one with --suite")
    else:
        own = [suite for suite in run.recipe.evaluate.suites if suite.kind == "answer"]
        named = own or [_held_out(run, prompts, scratch)]
    return [suite.model_copy(update={"limit": min(suite.limit or prompts, prompts)}) for suite in named]


def _held_out(run: RunFolder, prompts: int, scratch: Path) -> SuiteSection:
    """The first held-out prompts of a run as a suite; DataError if its rows have no prompts."""
    path, count = scratch / "heldout.jsonl", 0
    with writing_lines(path) as write:
        for chat in _chats(run):
            last = max(number for number, turn in enumerate(chat.messages) if turn.role == "assistant")
            plain = not chat.tools and not any(turn.extra for turn in chat.messages)
            if plain and last and count < prompts:
                turns = [turn.turn() for turn in chat.messages[:last]]
                write({"prompt": turns, "answer": chat.messages[last].content})
                count += 1
    if not count:
        raise DataError(
            "the held-out rows of this run have no prompts that a model could answer alone",
            where=str(run.path),
            mend="name a suite with --suite",
        )
    tokens = run.recipe.evaluate.sample_tokens
    return SuiteSection(data=str(path), name="prompts", prompt="prompt", answer="answer", max_new_tokens=tokens)


def _chats(run: RunFolder) -> Iterator[Chat]:
    findings = Findings()
    for one in held(run.path, "heldout", None, whole_digest):
        source = Source(path=str(run.path), split="heldout", name=one.name, format=one.format)
        reader = RowReader(source, one.format, run.recipe.data)
        for _, row in read_rows(Place("run", str(run.path)), findings, source):
            content = reader.read(row).content
            if isinstance(content, Chat):
                yield content
    findings.settle(on_bad_row="error", fine=1)
