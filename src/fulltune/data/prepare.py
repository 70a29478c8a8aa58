"""The data stage: sources -> parts -> a choice among all rows -> a store on disk and its card."""

import shutil
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from fulltune.base import stop
from fulltune.base.errors import DataError
from fulltune.base.files import fingerprint
from fulltune.base.log import LOGGER
from fulltune.base.records import DataFacts, SplitFacts
from fulltune.base.secrets import masked
from fulltune.base.table import code
from fulltune.data.choose import GONE, SPLITS, Rows, choose
from fulltune.data.doctor.report import record, text
from fulltune.data.examine import Examination, looked_for, refusals
from fulltune.data.findings import Findings
from fulltune.data.gather import Gathering
from fulltune.data.parts import OTHER, Tables
from fulltune.data.publish import kept_examples, parts_of, publish, source_facts, write_rejected
from fulltune.data.sources import digest, places
from fulltune.data.template import Template, Tokenizer
from fulltune.data.work import Worker
from fulltune.recipe.data import DataSection, sources

__all__ = ["SPLITS", "Kit", "depends", "identity", "prepare", "tell"]

_VERSION = 5
"""Raised when the same rows would give another store."""
_MIXED = {"__all__": {"share"}}
_WITHOUT: Any = {"processes": True, "share_by": True, "train": _MIXED, "replay": {"share": True, "sources": _MIXED}}
"""Settings that change no token."""


@dataclass(frozen=True, slots=True)
class Kit:
    """What makes tokens of rows: the tokenizer, its template, and what ends generation besides its end token."""

    tokenizer: Tokenizer
    template: Template
    stop_ids: Collection[int] = ()

    def worker(self, data: DataSection) -> Worker:
        """What turns rows into parts with it."""
        return Worker(data, self.tokenizer, self.template, self.stop_ids)

    def itself(self) -> "Kit":
        """For other processes, to which it is sent; so they need not import what it takes to load a tokenizer."""
        return self


def depends(
    data: DataSection, tokenizer: str, template: Template, stop_ids: Collection[int] = ()
) -> dict[str, dict[str, str]]:
    """Everything that a store depends on, each with its fingerprint, under `data`, `tokenizer` or `template`.

    Options, every byte of the sources, tokenizer, template, and the code of formats and augmentations from outside.
    """
    options = data.model_dump(mode="json", exclude=_WITHOUT)
    found: dict[str, str] = {}
    for source in (source for split in (*SPLITS, "benchmarks") for source in sources(data, split)):
        stop.check()
        named = source.model_dump(include={"path", "split", "name", "revision"}, exclude_none=True)
        asked = masked(" ".join(named.values()))
        if asked not in found:  # what cannot be found is told when its turn to be read comes
            found[asked] = fingerprint([(place.path, digest(place, source)) for place in places(source, Findings())])
        found |= {name: code(name) for name in (source.format, *(augment.use for augment in source.augment))}
    return {
        "data": {"options": fingerprint([_VERSION, options]), **found},
        "tokenizer": {"tokens": tokenizer, "stops": fingerprint(sorted(stop_ids))},
        "template": {"text": template.digest},
    }


def identity(data: DataSection, tokenizer: str, template: Template, stop_ids: Collection[int] = ()) -> str:
    """Fingerprint of everything a store depends on."""
    return fingerprint(depends(data, tokenizer, template, stop_ids))


Load = Callable[[], Kit] | None


class Preparation:
    """The three steps of the data stage: `examine`, `settle`, `publish`, in this order."""

    def __init__(self, data: DataSection, kit: Kit, parts: Path, *, load: Load = None) -> None:
        """Reads everything.

        `parts`: a folder for what is done already, so that a killed preparation goes on. `load` makes the kit anew in
        other processes; without it all is done in this one.
        """
        self._data, self.findings = data, Findings(keeps=data.on_bad_row == "error")
        gathering = Gathering(data, parts, self.findings, looked_for=looked_for(data))
        parts.mkdir(parents=True, exist_ok=True)
        elsewhere = None if load is None else partial(_loaded, data, load)
        gathering.run({split: sources(data, split) for split in SPLITS}, partial(kit.worker, data), elsewhere)
        self._gathered, self._parts, self._template = gathering.sources, gathering.parts, kit.template
        self._rows = Rows(Tables(self._parts), {(one.split, one.number): one.files for one in self._gathered})

    def examine(self) -> str:
        """Look at all rows together; the doctor's report."""
        self._choice = choose(self._rows, self._data, self.findings)
        checkup, self._found = Examination(self._rows, self._choice, self._data, self.findings).run()
        self._record = record(checkup, self._found)
        self._sources = source_facts(self._rows, self._choice, self._gathered)
        self._note()
        return text(checkup, self._found)

    def settle(self, *, trains: bool = True) -> None:
        """DataError with everything that forbids to go on. Not `trains`: rows of tasks that are only read are fine."""
        if trains:
            self._require_examples()
        self.findings.settle(on_bad_row=self._data.on_bad_row, fine=self.kept, checked=refusals(self._found))

    def publish(self, folder: Path, identity: str) -> DataFacts:
        """Write the prepared splits into `folder`, and the rows that were left out; the card."""
        splits = publish(self._rows, self._choice, folder)
        self._require_sides(splits)
        if self.findings.dropped:
            write_rejected(self._rows, self._choice, self._gathered, folder / "rejected.jsonl")
        return DataFacts(
            fingerprint=identity,
            truncated=self._truncated(),
            splits=splits,
            sources=self._sources,
            template=self._template.digest,
            stop_ids=tuple(sorted({number for part in self._parts for number in part.said.stop_ids})),
            **self.card,
        )

    @property
    def card(self) -> dict[str, Any]:
        """What was found, as plain JSON values: what of `DataFacts` is known before anything is written."""
        return {
            "rows": self.kept + self.findings.dropped.total(),
            "kept": self.kept,
            "dropped": dict(sorted(self.findings.dropped.items())),
            "notes": dict(self.findings.notes),
            "doctor": self._record,
        }

    @property
    def kept(self) -> int:
        """Rows that are kept. Every row read is either that, or left out for one reason."""
        rows = self._rows.tables.column("rows")
        return int(rows[self._choice.side != GONE].sum())

    def _truncated(self) -> int:
        found = (
            kept_examples(part, self._choice.side[here], split)["cut"].sum()
            for part, here in self._rows.tables.slices()
            for split in SPLITS
        )
        return int(sum(found))

    def _note(self) -> None:
        """What was noticed about rows that are kept, and about whole sources."""
        for part, here in self._rows.tables.slices():
            for number, note, more in part.said.notes:
                if self._choice.side[here.start + number] != GONE:
                    place = self._rows.place(here.start + number)
                    self.findings.note(note, f"{place} ({more})" if more else place)
        for one, together in zip(self._gathered, parts_of(self._rows, self._gathered), strict=True):
            if unread := {name for part, _ in together for name in part.said.unread}:
                self.findings.note("unused_column", f"{one.source.path} ({', '.join(sorted(unread))})")

    def _require_examples(self) -> None:
        """A fault for every source of which nothing can be trained on."""
        for one, together in zip(self._gathered, parts_of(self._rows, self._gathered), strict=True):
            kept = [(part.rows["state"] == OTHER) & (self._choice.side[here] != GONE) for part, here in together]
            other = sum(int(rows.sum()) for rows in kept)
            if other:
                what = f"{other} rows of {one.format!r} are fine, but this version only reads and checks such rows"
                mend = "name another format or other columns beside the path, or leave the file out"
                self.findings.bad_file(one.source.path, "other_task", what, mend)
            facts = self._sources[one.split][one.number]
            if one.files and not facts.examples and not self._blamed({one.source.path, *one.files}):
                dropped = dict(self.findings.dropped)
                what = f"none of its {facts.rows} rows is left for data.{one.split}; left out: {dropped}"
                self.findings.bad_file(one.source.path, "nothing_left", what, "mend the rows, or leave the file out")

    def _blamed(self, files: set[str]) -> bool:
        """Whether a fault of these files forbids to go on already."""
        faults = self.findings.faults if self._data.on_bad_row == "error" else []
        told = (*self.findings.unreadable, *faults)
        return any({fault.where, fault.where.rpartition(":")[0]} & files for fault in told)

    def _require_sides(self, splits: Mapping[str, SplitFacts]) -> None:
        if not any(splits["train"].by_source[: len(self._data.train)]):
            raise DataError(
                f"no training example is left of {self.kept} rows; left out: {dict(self.findings.dropped)}",
                where=", ".join(source.path for source in self._data.train),
                mend="mend the rows, or the options of the data section that leave them out",
            )
        for split, asked in (("heldout", self._data.heldout), ("test", self._data.test)):
            if asked and splits[split].examples == 0:
                raise DataError(
                    f"none of {self.kept} examples is held out",
                    where=f"data.{split}",
                    mend=f"raise the share, name files, or say data.{split}=0 to do without",
                )


def prepare(
    data: DataSection, kit: Kit, folder: Path, identity: str, *, parts: Path | None = None, load: Load = None
) -> DataFacts:
    """Write one store for each split into `folder` and return the card. DataError names every faulty row.

    `parts` and `load` as for `Preparation`; without them nothing is kept of what was begun.
    """
    kept = parts or folder / "parts"
    work = Preparation(data, kit, kept, load=load)
    work.examine()
    work.settle()
    facts = work.publish(folder, identity)
    if parts is None:
        shutil.rmtree(kept)
    return facts


def tell(facts: DataFacts) -> None:
    """Say what became of the rows."""
    train, kept = facts.splits["train"], f"{facts.kept:,} of {facts.rows:,} rows"
    LOGGER.info(
        f"prepared {kept}: {train.examples:,} to train on, {train.tokens:,} tokens, {train.supervised_tokens:,} of "
        f"them ({train.supervised_tokens / train.tokens:.0%}) taught; {facts.splits['heldout'].examples:,} held out"
    )
    for reason, count in facts.dropped.items():
        LOGGER.warning(f"left out, {reason}: {count:,}")
    for note, where in facts.notes.items():
        LOGGER.warning(f"note, {note}: {where}")


def _loaded(data: DataSection, load: Callable[[], Kit]) -> Worker:
    return load().worker(data)
