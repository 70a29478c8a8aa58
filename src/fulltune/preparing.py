"""From raw rows to prepared data, and a look at them. Whoever only prepares loads nothing that trains."""

import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fulltune import lean
from fulltune.base.errors import DataError
from fulltune.base.files import begun_folder, fingerprint, sweep, whole_folder, write_record
from fulltune.base.lock import locked
from fulltune.base.records import DataFacts
from fulltune.base.stop import listening
from fulltune.data.prepare import Kit, Preparation, depends, tell
from fulltune.data.prepare import prepare as prepare_data
from fulltune.inspection.page import require_place, write_page
from fulltune.inspection.rows import Inspected, Reader, Wanted, pick, with_uncut
from fulltune.inspection.uncut import uncut_lengths
from fulltune.material import Prepared, for_others, kit_of, stores
from fulltune.model.folder import tokenizer_digest
from fulltune.planning.make import require_names
from fulltune.recipe.changes import DATA, covers, differences, require_accepted
from fulltune.recipe.load import Asked
from fulltune.recipe.schema import Recipe
from fulltune.runs import RunFolder, open_run

Out = str | os.PathLike[str] | None

_IN_A_TERMINAL, _ON_A_PAGE = 3, 100
"""Rows that are shown if none are named."""


@dataclass(frozen=True, slots=True)
class Checked:
    """What the data is like: the report for people, the same for programs, and what forbids to go on, if anything."""

    report: str
    card: dict[str, Any]
    refusal: DataError | None


def prepare(recipe: Asked, *, out: Out = None, fresh: bool = False, **overrides: Any) -> DataFacts:
    """Raw rows -> tokens on disk and their card (`data.json`). Done already if nothing that matters has changed.

    >>> fulltune.prepare("recipe.yaml").splits["train"].supervised_tokens
    """
    with working(open_run(recipe, overrides, out=out, fresh=fresh)) as run:
        return prepared(run).facts


def check(recipe: Asked, *, out: Out = None, **overrides: Any) -> Checked:
    """All that `prepare` looks at, without keeping anything: the doctor's report, and every fault.

    >>> print(fulltune.check("recipe.yaml").report)
    """
    run = open_run(recipe, overrides, out=out)
    kit = checked(run.recipe)
    with tempfile.TemporaryDirectory() as scratch:
        work = Preparation(run.recipe.data, kit, Path(scratch), load=for_others(kit, run.recipe.model))
        report = work.examine()
        try:
            work.settle(trains=False)
        except DataError as fault:
            return Checked(report, work.card, fault)
        return Checked(report, work.card, None)


def inspect(
    recipe: Asked,
    *,
    split: str = "train",
    row: int | None = None,
    origin: str | None = None,
    longest: bool = False,
    random: int | None = None,
    first: int | None = None,
    html: Out = None,
    out: Out = None,
    **overrides: Any,
) -> list[Inspected]:
    """Rows of a prepared split as training sees them. Prepares the data first if need be.

    One of `row` (a number from 0), `origin` (`file:line`), `longest`, `random` (so many, the same for the same
    `train.seed`) or `first` (so many); by default the first three, on a page the first hundred. `html`: write a page
    of them.

    >>> fulltune.inspect("recipe.yaml", row=7)[0].supervised
    """
    wanted = Wanted(split=split, row=row, origin=origin, longest=longest, random=random, first=first)
    run = open_run(recipe, overrides, out=out)
    if html is not None:
        require_place(Path(html))
    with working(run):
        ready = prepared(run)
        facts, data = ready.facts, ready.stores
        default = _ON_A_PAGE if html is not None else _IN_A_TERMINAL
        numbers = pick(data, wanted, first=default, seed=run.recipe.train.seed)
        kit = kit_of(run.recipe.model)
        reader = Reader(kit.tokenizer)
        rows = [reader.read(data[wanted.split], wanted.split, number) for number in numbers]
        full = [item.origin for item in rows if item.length == run.recipe.data.max_length]
        if facts.truncated and full:  # which of them were cut the store does not say
            rows = with_uncut(rows, uncut_lengths(run.recipe.data, split, full, kit))
        if html is not None:
            write_page(Path(html), rows, facts)
        return rows


def prepared(run: RunFolder) -> Prepared:
    """The data of a run, prepared now if it is not. CheckpointError if a run that has begun depended on other data."""
    recipe = run.recipe
    kit = checked(recipe)
    needed = depends(recipe.data, tokenizer_digest(kit.tokenizer), kit.template, kit.stop_ids)
    wanted = fingerprint(needed)
    if run.recorded is not None:
        changes = differences(run.recorded.identity["depends"], needed, settings=False)
        require_accepted(changes, run.accepted | _implied(run), folder=str(run.path))
    if run.data_card.exists() and run.data.exists():
        facts = run.data_facts()
        if facts.fingerprint == wanted:
            return opened(run, facts, needed)
    load = for_others(kit, recipe.model)
    with locked(run.path):
        sweep(run.path)
        with begun_folder(run.path, wanted) as parts, whole_folder(run.data) as draft:
            facts = prepare_data(recipe.data, kit, draft, wanted, parts=parts, load=load)
            # A kill from here on leaves data without a card: prepared again, never with the card of other data.
            run.begin()
            run.data_card.unlink(missing_ok=True)
        write_record(run.data_card, facts)
    tell(facts)
    # As every later command reads it: names of scores are made of paths, and secrets masked.
    return opened(run, run.data_facts(), needed)


def _implied(run: RunFolder) -> set[str]:
    """What changes with fields that were accepted: another max_length gives other data."""
    sections = {change.field.partition(".")[0] for change in run.changes if covers(run.accepted, change.field)}
    return ({"data"} if "data" in sections else set()) | (set(DATA) if "model" in sections else set())


def checked(recipe: Recipe) -> Kit:
    """What makes tokens of rows, after everything that the recipe names was found."""
    require_names(recipe)
    lean.require_others(recipe)
    return kit_of(recipe.model)


def opened(run: RunFolder, facts: DataFacts, needed: Mapping[str, Any]) -> Prepared:
    """The prepared splits of a run; `needed`: what they depend on."""
    return Prepared(facts, stores(run.data, facts), needed)


@contextmanager
def working(run: RunFolder) -> Iterator[RunFolder]:
    """In here a signal ends the stage in order, as the run's recipe says."""
    with listening(run.recipe.checkpoint.signals):
        yield run
