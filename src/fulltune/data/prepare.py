"""The data stage: sources -> rows -> examples -> screen -> render -> a store on disk and its card."""

import itertools
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from fulltune.base.errors import DataError
from fulltune.base.files import fingerprint, sha256
from fulltune.base.records import DataFacts, SourceFacts, SplitFacts
from fulltune.data.example import Example, RowFault
from fulltune.data.findings import Findings
from fulltune.data.intake import Intake
from fulltune.data.render import Renderer, TooLong
from fulltune.data.screen import Taught, is_held_out, loose_id
from fulltune.data.store import StoreWriter
from fulltune.data.template import Template, Tokenizer
from fulltune.recipe.schema import DataSection, Source

SPLITS = ("train", "heldout", "test", "retention")
_VERSION = 1
"""Raised when the same rows would give another store."""
_TOGETHER = 512
"""Examples tokenised in one call."""


def identity(data: DataSection, tokenizer: str, template: Template) -> str:
    """Fingerprint of everything a store depends on: options, every byte of the sources, tokenizer, template."""
    options = data.model_dump(mode="json", exclude={"train": {"__all__": {"share"}}})
    paths = sorted({source.path for split in SPLITS for source in sources(data, split)})
    digests = {path: sha256(Path(path)) if Path(path).is_file() else "" for path in paths}
    return fingerprint([_VERSION, options, digests, tokenizer, template.digest])


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


def prepare(data: DataSection, tokenizer: Tokenizer, template: Template, folder: Path, identity: str) -> DataFacts:
    """Write one store for each split into `folder` and return the card. DataError names every faulty row."""
    renderer = Renderer(
        tokenizer,
        template,
        supervise=data.supervise,
        max_length=data.max_length,
        over_length=data.over_length,
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
        self._taught = Taught()
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
            origins["train"] = self._split("train", train, heldout)
            # Held-out rows come from the training files or from files of their own, never both.
            origins["heldout"] = self._split("heldout", heldout) or origins["train"]
            splits["train"], splits["heldout"] = train.facts, heldout.facts
        for split in ("test", "retention"):
            with StoreWriter(folder / split) as writer:
                origins[split] = self._split(split, writer)
                splits[split] = writer.facts
        return splits, origins

    def _split(self, split: str, writer: StoreWriter, heldout: StoreWriter | None = None) -> tuple[SourceFacts, ...]:
        seen: dict[str, str] = {}
        facts = []
        for number, source in enumerate(sources(self._data, split)):
            rows, kept = self.rows, self.kept
            intake = Intake(number, source, self._data, self.findings)
            for together in batched(self._screened(split, source.path, intake, seen), _TOGETHER):
                self._render(together, source.path, writer, heldout)
            path = Path(source.path)
            facts.append(
                SourceFacts(
                    path=source.path,
                    format=intake.format,
                    sha256=sha256(path) if path.is_file() else "",
                    rows=self.rows - rows,
                    examples=self.kept - kept,
                )
            )
        return tuple(facts)

    def _screened(self, split: str, path: str, examples: Iterable[Example], seen: dict[str, str]) -> Iterator[Example]:
        """Those that are not repeated as the recipe forbids, and that no measurement shares with training."""
        for example in examples:
            where = f"{path}:{example.line}"
            earlier = seen.setdefault(example.id, where)
            leak = self._taught.holds(example.content) if split in ("heldout", "test") else None
            if earlier != where and self._data.duplicates == "error":
                mend = "remove it, or say data.duplicates=drop or keep"
                self.findings.bad_row(where, RowFault("duplicate", f"the same content as {earlier}", mend))
            elif earlier != where and self._data.duplicates == "drop":
                self.findings.left_out("duplicate")
            elif leak is not None:
                what = f"training holds the same content at {leak}: its score would mean nothing"
                self.findings.bad_row(where, RowFault("leak", what, f"remove it from the {split} or the training data"))
            else:
                if earlier != where:
                    self.findings.note("duplicate", f"{where} (as {earlier})")
                yield example

    def _render(self, together: Sequence[Example], path: str, writer: StoreWriter, heldout: StoreWriter | None) -> None:
        """Tokenise, and write to the side that the content's hash decides."""
        share = self._data.heldout if heldout is not None and isinstance(self._data.heldout, float) else 0.0
        for example, outcome in zip(together, self._renderer.render(together), strict=True):
            where = f"{path}:{example.line}"
            if isinstance(outcome, RowFault):
                self.findings.bad_row(where, outcome)
                continue
            if isinstance(outcome, TooLong):
                self.findings.left_out("too_long")
                continue
            self.kept += 1
            if spelled := self._renderer.spelled(example):
                self.findings.note("special_token_text", f"{where} ({', '.join(sorted(spelled))})")
            if heldout is not None and is_held_out(example.group or loose_id(example.content), share):
                heldout.append(outcome, source=example.source, line=example.line)
                continue
            if heldout is not None:
                self._taught.add(example.content, where)
            writer.append(outcome, source=example.source, line=example.line)


def batched(items: Iterable[Example], size: int) -> Iterator[list[Example]]:
    """Lists of up to `size` items (itertools.batched is newer than the oldest Python we support)."""
    iterator = iter(items)
    while together := list(itertools.islice(iterator, size)):
        yield together
