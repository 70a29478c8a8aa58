"""The data stage: sources -> rows -> examples -> screen -> render -> a store on disk and its card."""

import itertools
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from fulltune.base.errors import DataError
from fulltune.base.files import fingerprint
from fulltune.base.records import DataFacts, SourceFacts, SplitFacts
from fulltune.data.example import Example, RowFault
from fulltune.data.findings import Findings
from fulltune.data.intake import Intake
from fulltune.data.reading.places import Place
from fulltune.data.render import Renderer, TooLong
from fulltune.data.screen import is_held_out, loose_id
from fulltune.data.sources import digest, places
from fulltune.data.store import StoreWriter
from fulltune.data.template import Template, Tokenizer
from fulltune.recipe.schema import DataSection, Source

SPLITS = ("train", "heldout", "test", "retention")
_APART = {"train": ("heldout",), "heldout": ("train",), "test": ("train", "heldout"), "retention": ()}
"""Splits that must not share content: what is measured on, with what is taught; the test split with both."""
_VERSION = 3
"""Raised when the same rows would give another store."""
_TOGETHER = 512
"""Examples tokenised in one call."""


def identity(data: DataSection, tokenizer: str, template: Template, stop_ids: Collection[int] = ()) -> str:
    """Fingerprint of all a store depends on: options, every byte of the sources, tokenizer, template, stop tokens."""
    options = data.model_dump(mode="json", exclude={"train": {"__all__": {"share"}}})
    found: dict[str, list[tuple[str, str]]] = {}
    for source in (source for split in SPLITS for source in sources(data, split)):
        asked = source.model_dump_json(include={"path", "split", "name", "revision"})
        if asked not in found:  # what cannot be found is told when its turn to be read comes
            found[asked] = [(place.path, digest(place, source)) for place in places(source, Findings())]
    return fingerprint([_VERSION, options, found, tokenizer, template.digest, sorted(stop_ids)])


def sources(data: DataSection, split: str) -> tuple[Source, ...]:
    """The sources of one split; the held-out ones are those of training if a share of them is held out."""
    if split == "heldout":
        return data.heldout if isinstance(data.heldout, tuple) else ()
    named: dict[str, tuple[Source, ...]] = {
        "train": data.train,
        "test": data.test,
        "retention": data.retention,
    }
    return named[split]


def prepare(
    data: DataSection,
    tokenizer: Tokenizer,
    template: Template,
    folder: Path,
    identity: str,
    stop_ids: Collection[int] = (),
) -> DataFacts:
    """Write one store for each split into `folder` and return the card. DataError names every faulty row.

    `stop_ids`: what ends generation at inference.
    """
    renderer = Renderer(
        tokenizer,
        template,
        supervise=data.supervise,
        max_length=data.max_length,
        over_length=data.over_length,
        stop_ids=stop_ids,
        control_tokens=data.control_tokens,
    )
    work = _Preparation(data, renderer)
    splits, origins = work.run(folder)
    work.findings.settle(on_bad_row=data.on_bad_row, fine=work.kept)
    if splits["train"].examples == 0:
        raise DataError(
            f"no training example is left of {work.rows} rows; left out: {dict(work.findings.dropped)}",
            where=", ".join(source.path for source in data.train),
            mend="mend the rows, or the options of the data section that leave them out",
        )
    if data.heldout and splits["heldout"].examples == 0:
        raise DataError(
            f"none of {work.kept} examples is held out",
            where="data.heldout",
            mend="raise the share, name files, or say data.heldout=0 to train without being able to judge it",
        )
    return DataFacts(
        fingerprint=identity,
        rows=work.rows,
        kept=work.kept,
        dropped=dict(sorted(work.findings.dropped.items())),
        truncated=renderer.truncated,
        splits=splits,
        sources=origins,
        notes=dict(work.findings.notes),
        template=template.digest,
        stop_ids=tuple(sorted(renderer.stop_ids)),
    )


class _Preparation:
    """One pass over all sources of all splits; training first, so that leaks into the others can be seen."""

    def __init__(self, data: DataSection, renderer: Renderer) -> None:
        self._data, self._renderer = data, renderer
        self._held: dict[str, dict[str, str]] = {"train": {}, "heldout": {}}
        """Loose id of each content -> where it stands, of the splits that others are kept apart from."""
        self.findings = Findings()
        self.kept = 0

    @property
    def rows(self) -> int:
        """Every row read is either kept, or left out for one reason."""
        return self.kept + self.findings.dropped.total()

    def run(self, folder: Path) -> tuple[dict[str, SplitFacts], dict[str, tuple[SourceFacts, ...]]]:
        """Facts of the splits, and of the sources of each."""
        splits: dict[str, SplitFacts] = {}
        origins: dict[str, tuple[SourceFacts, ...]] = {}
        with StoreWriter(folder / "train") as train, StoreWriter(folder / "heldout") as heldout:
            writers = {"train": train, "heldout": heldout}
            origins["train"] = self._split("train", writers)
            # Held-out rows come from the training files or from files of their own, never both.
            origins["heldout"] = self._split("heldout", writers) or origins["train"]
            splits["train"], splits["heldout"] = train.facts, heldout.facts
        for split in ("test", "retention"):
            with StoreWriter(folder / split) as writer:
                origins[split] = self._split(split, {split: writer})
                splits[split] = writer.facts
        return splits, origins

    def _split(self, split: str, writers: Mapping[str, StoreWriter]) -> tuple[SourceFacts, ...]:
        seen: dict[str, str] = {}
        facts = []
        listed: set[tuple[Place, str | None, str | None]] = set()
        for number, source in enumerate(sources(self._data, split)):
            fresh = []
            for place in places(source, self.findings):
                if (key := (place, source.name, source.split)) in listed:
                    mend = "name it once; data.train.*.share says how often a source is seen"
                    self.findings.bad_file(place.path, "listed_twice", f"data.{split} names this file twice", mend)
                else:
                    fresh.append(place)
                listed.add(key)
            facts.append(self._source(split, number, source, fresh, (writers, seen)))
        return tuple(facts)

    def _source(
        self,
        split: str,
        number: int,
        source: Source,
        fresh: Sequence[Place],
        into: tuple[Mapping[str, StoreWriter], dict[str, str]],
    ) -> SourceFacts:
        rows, kept, unread = self.rows, self.kept, len(self.findings.unreadable)
        fatal = self.findings.fatal(self._data.on_bad_row)
        writers, seen = into
        intake = Intake(number, source, fresh, self._data, self.findings)
        files = tuple(place.path for place in fresh)
        for together in batched(self._unrepeated(files, intake, seen), _TOGETHER):
            self._render(split, together, files, writers)
        made = SourceFacts(
            path=source.path,
            files=files,
            format=intake.format,
            sha256=_digest(source, fresh) if len(self.findings.unreadable) == unread else "",
            rows=self.rows - rows,
            examples=self.kept - kept,
        )
        if fresh and made.examples == 0 and self.findings.fatal(self._data.on_bad_row) == fatal:
            what = f"none of its {made.rows} rows is left for data.{split}; left out: {dict(self.findings.dropped)}"
            self.findings.bad_file(source.path, "nothing_left", what, "mend the rows, or leave the file out")
        return made

    def _unrepeated(self, files: Sequence[str], examples: Iterable[Example], seen: dict[str, str]) -> Iterator[Example]:
        """Those that are not repeated as the recipe forbids."""
        for example in examples:
            where = f"{files[example.file]}:{example.line}"
            earlier = seen.get(example.id)
            seen.setdefault(example.id, where)
            if earlier is not None and self._data.duplicates == "error":
                mend = "remove it, or say data.duplicates=drop or keep"
                self.findings.bad_row(where, RowFault("duplicate", f"the same content as {earlier}", mend))
            elif earlier is not None and self._data.duplicates == "drop":
                self.findings.left_out("duplicate")
            else:
                if earlier is not None:
                    self.findings.note("duplicate", f"{where} (as {earlier})")
                yield example

    def _render(
        self, split: str, together: Sequence[Example], files: Sequence[str], writers: Mapping[str, StoreWriter]
    ) -> None:
        """Tokenise, and write to the side that the content's hash decides."""
        for example, outcome in zip(together, self._renderer.render(together), strict=True):
            where = f"{files[example.file]}:{example.line}"
            if isinstance(outcome, TooLong):
                self.findings.left_out("too_long")
                continue
            key = loose_id(example.content)
            side = self._side(split, example.group or key)
            verdict = self._leak(side, key) or outcome
            if isinstance(verdict, RowFault):
                self.findings.bad_row(where, verdict)
                continue
            self.kept += 1
            if spelled := self._renderer.spelled(example):
                self.findings.note(self._renderer.spelled_note, f"{where} ({', '.join(sorted(spelled))})")
            for code in sorted(verdict.notes):
                self.findings.note(code, where)
            if side in self._held:
                self._held[side].setdefault(key, where)
            writers[side].append(verdict, source=example.source, line=example.line, file=example.file)

    def _side(self, split: str, key: str) -> str:
        share = self._data.heldout if split == "train" and isinstance(self._data.heldout, float) else 0.0
        return "heldout" if is_held_out(key, share) else split

    def _leak(self, side: str, key: str) -> RowFault | None:
        """A fault if a split that this one must not share anything with holds the same content already."""
        for other in _APART[side]:
            if (place := self._held[other].get(key)) is not None:
                what = (
                    f"{other} holds the same content, but for case and spacing, at {place}: a score would mean nothing"
                )
                return RowFault("leak", what, f"remove it from the {side} or the {other} data, or group both rows")
        return None


def _digest(source: Source, read: Sequence[Place]) -> str:
    """sha256 of a file; of several, one over all of them."""
    digests = [digest(place, source) for place in read]
    return digests[0] if len(digests) == 1 else fingerprint(digests)


def batched(items: Iterable[Example], size: int) -> Iterator[list[Example]]:
    """Lists of up to `size` items (itertools.batched is newer than the oldest Python we support)."""
    iterator = iter(items)
    while together := list(itertools.islice(iterator, size)):
        yield together
