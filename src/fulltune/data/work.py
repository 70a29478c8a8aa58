"""Rows -> a part: what one process does with some thousand rows, alone and the same wherever it runs."""

import itertools
import shutil
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fulltune.base import stop
from fulltune.base.files import fingerprint
from fulltune.base.records import IGNORE
from fulltune.data import parts
from fulltune.data.augment import Augmenting, augmented
from fulltune.data.cut import joined, pieces
from fulltune.data.doctor.lengths import counted
from fulltune.data.doctor.near_parts import NearWriter
from fulltune.data.doctor.shingles import plain_text
from fulltune.data.doctor.survey import Survey
from fulltune.data.example import Content, Labelled, Preference, Row, RowFault, Text
from fulltune.data.intake import Placed, RowReader, Taken
from fulltune.data.parts import EXAMPLE, FAULT, FINE, LEFT_OUT, OTHER, ROW, Said
from fulltune.data.render import Encoded, Renderer, TooLong
from fulltune.data.screen import content_id, loose_id
from fulltune.data.store import ShardWriter
from fulltune.data.template import Template, Tokenizer
from fulltune.recipe.data import DataSection, Source, portion

Outcome = Encoded | RowFault | TooLong

_TOGETHER = 512
"""Examples tokenised in one call."""


@dataclass(frozen=True, slots=True)
class Task:
    """Rows that follow each other in one source, and the folder that they become."""

    source: Source
    form: str
    files: tuple[str, ...]
    rows: Sequence[Placed]
    folder: Path
    looked_for: bool
    """Whether texts are kept to find near-duplicates and benchmarks in them."""
    sided: bool
    """Whether a part of the rows is kept back, so that columns decide their sides."""
    augments: Sequence[Augmenting] = ()
    """What makes further examples of each row; they are taught only if the row itself is."""


@dataclass(slots=True)
class _Item:
    """A row on its way: its content, and what its examples became."""

    file: int
    line: int
    row: Row
    taken: Taken | None = None
    fault: RowFault | None = None
    made: Sequence[Encoded] = ()
    texts: Sequence[Content] = ()
    """Its content; of joined documents each."""
    copies: Sequence[Content] = ()
    """Contents that augmentation made of it."""
    further: Sequence[Encoded] = ()
    """What became of those."""
    copies_left_out: int = 0
    """How many of them have too many tokens."""
    state: int = FINE


class Worker:
    """Turns tasks into parts. Holds the tokenizer, so it is made once in each process."""

    def __init__(
        self, data: DataSection, tokenizer: Tokenizer, template: Template, stop_ids: Collection[int] = ()
    ) -> None:
        self._data = data
        self._renderer = Renderer(
            tokenizer,
            template,
            supervise=data.supervise,
            max_length=data.max_length,
            over_length=data.over_length,
            stop_ids=stop_ids,
            control_tokens=data.control_tokens,
        )
        part = portion(data.heldout) or portion(data.test)
        self._stratify_by = part.stratify_by if part is not None else None

    def __call__(self, task: Task) -> None:
        """Write the part; done already if its folder stands."""
        if task.folder.exists():
            return
        draft = task.folder.with_name(f"{task.folder.name}.draft")
        if draft.exists():
            shutil.rmtree(draft)
        with ExitStack() as stack:
            shard = stack.enter_context(ShardWriter(draft))
            near = stack.enter_context(NearWriter(draft / "near")) if task.looked_for else None
            table = _Table(task, shard, near)
            columns = {"group_by": self._data.group_by, "stratify_by": self._stratify_by} if task.sided else {}
            reader = RowReader(task.source, task.form, self._data, **columns)
            items = self._rendered(self._read(task, reader))
            for item in self._joined(items) if task.source.join else items:
                table.add(item, self._renderer)
        table.said.unread = sorted(reader.unread)
        table.said.stop_ids = sorted(self._renderer.stop_ids)
        table.write(draft)
        parts.finish(draft, task.folder)

    def _read(self, task: Task, reader: RowReader) -> Iterator[_Item]:
        for file, line, row in task.rows:
            item = _Item(file, line, row)
            try:
                item.taken = reader.read(row)
                item.texts = (item.taken.content,)
                item.copies = _copies(item.taken, task.augments, reader) if task.augments else ()
            except RowFault as fault:
                item.fault, item.state = fault, FAULT
            if item.fault is None and isinstance(item.texts[0], Labelled | Preference):
                item.state = OTHER
            yield item

    def _rendered(self, items: Iterator[_Item]) -> Iterator[_Item]:
        for together in batched(items, _TOGETHER):
            stop.check()
            fine = [item for item in together if item.state == FINE]
            wanted = [content for item in fine for content in (*item.texts, *item.copies)]
            outcomes = iter(self._renderer.render(wanted))
            for item in fine:
                self._outcome(item, next(outcomes), [next(outcomes) for _ in item.copies])
            yield from together

    def _outcome(self, item: _Item, outcome: Outcome, copies: Sequence[Outcome]) -> None:
        if isinstance(outcome, TooLong):
            item.state = LEFT_OUT
            return
        fault = next((one for one in (outcome, *copies) if isinstance(one, RowFault)), None)
        if fault is not None or isinstance(outcome, RowFault):
            item.fault, item.state = fault, FAULT
            return
        limit = self._data.max_length
        fitting = [one for one in copies if isinstance(one, Encoded)]
        item.made = list(pieces(outcome, limit))
        item.further = [piece for one in fitting for piece in pieces(one, limit)]
        item.copies_left_out = len(copies) - len(fitting)

    def _joined(self, items: Iterator[_Item]) -> Iterator[_Item]:
        """Documents of a file that follow each other, as one item up to the limit."""
        together: list[_Item] = []
        for item in items:
            joins = item.state == FINE and len(item.made) == 1 and not item.further and _is_document(item.texts[0])
            if together and not (joins and together[0].file == item.file and self._fits(together, item)):
                yield _merged(together)
                together = []
            if joins:
                together.append(item)
            else:
                yield item
        if together:
            yield _merged(together)

    def _fits(self, together: Sequence[_Item], item: _Item) -> bool:
        return sum(len(made.ids) for one in (*together, item) for made in one.made) <= self._data.max_length


class _Table:
    """The tables of a part while it is made."""

    def __init__(self, task: Task, shard: ShardWriter, near: NearWriter | None) -> None:
        self._task, self._shard, self._near = task, shard, near
        self._rows: list[tuple[Any, ...]] = []
        self._examples: list[NDArray[Any]] = []
        self._waiting: list[tuple[int, int, bool, Encoded]] = []
        self._survey = Survey()
        self.said = Said()

    def add(self, item: _Item, renderer: Renderer) -> None:
        """One row, or documents that were joined."""
        number = len(self._rows)
        if item.fault is not None:
            self.said.faults.append((number, item.fault.code, item.fault.what, item.fault.mend))
        elif item.state == LEFT_OUT:
            self.said.left.append((number, "too_long"))
        else:
            self._remark(number, item, renderer)
        if self._near is not None:
            self._near.add("\n".join(map(plain_text, item.texts)) if item.state in (FINE, OTHER) else "")
        for made in item.made:
            self._append(number, made, augmented=False)
        for made in item.further:
            self._append(number, made, augmented=True)
        self._rows.append(self._row(item))

    def write(self, folder: Path) -> None:
        """All of it, beside the tokens."""
        self.said.survey, self.said.tokens = self._survey.state(), self._shard.tokens
        self._measure()
        parts.write(folder, np.array(self._rows, ROW), np.concatenate(self._examples), self.said)

    def _remark(self, number: int, item: _Item, renderer: Renderer) -> None:
        """What is worth knowing of a row that can be taught, or read."""
        taken = item.taken
        assert taken is not None
        where = f"{self._task.files[item.file]}:{item.line}"
        for content in item.texts:
            if codes := self._survey.add(content, where):
                self.said.codes.append((number, codes))
        if taken.form != self._task.form:
            self.said.notes.append((number, "mixed_schema", taken.form))
        if item.copies_left_out:
            self.said.notes.append((number, "further_rows_too_long", str(item.copies_left_out)))
        for made in item.made:
            self.said.notes += [(number, code, "") for code in sorted(made.notes)]
        if spelled := {name for content in item.texts for name in renderer.spelled(content)}:
            self.said.notes.append((number, renderer.spelled_note, ", ".join(sorted(spelled))))
        if isinstance(taken.content, Labelled):
            self.said.labels.append((number, taken.content.labels))
        elif taken.stratum is not None:
            self.said.labels.append((number, (taken.stratum,)))

    def _append(self, number: int, made: Encoded, *, augmented: bool) -> None:
        self._waiting.append((number, self._shard.append(made), augmented, made))
        if len(self._waiting) == _TOGETHER:
            self._measure()

    def _measure(self) -> None:
        """The lines of examples that came since the last call."""
        made = [example for *_, example in self._waiting]
        lines = np.empty(len(made), EXAMPLE)
        for number, name in enumerate(("row", "start", "augmented")):
            lines[name] = [told[number] for told in self._waiting]
        lines["cut"] = [example.cut for example in made]
        lines["length"] = lengths = np.array([len(example.ids) for example in made], np.int64)
        labels = np.concatenate([np.empty(0, np.int32), *(example.labels for example in made)])
        lines["taught"], lines["kept"] = counted(lengths, labels != IGNORE)
        self._examples.append(lines)
        self._waiting = []

    def _row(self, item: _Item) -> tuple[Any, ...]:
        ids = keys = (0, 0)
        group = stratum = 0
        if item.taken is not None and item.state in (FINE, OTHER):
            ids, keys = (_numbers(_over(item.texts, hashed)) for hashed in (content_id, loose_id))
            group = _numbers(item.taken.group)[0] if item.taken.group is not None else keys[0]
            stratum = _numbers(fingerprint(item.taken.stratum))[0] if item.taken.stratum is not None else 0
        own = item.row.get("id")
        kind = 0 if not isinstance(own, str | int) else 1 if isinstance(own, str) else 2
        given = _numbers(fingerprint(own))[0] if kind else 0
        rows = max(len(item.texts), 1)
        return (ids, keys, group, stratum, given, item.line, item.file, rows, len(item.made), item.state, kind)


def batched(items: Iterable[_Item], size: int) -> Iterator[list[_Item]]:
    """Lists of up to `size` items (itertools.batched is newer than the oldest Python we support)."""
    iterator = iter(items)
    while together := list(itertools.islice(iterator, size)):
        yield together


def _copies(taken: Taken, augments: Sequence[Augmenting], reader: RowReader) -> list[Content]:
    """Contents made of a row by augmentation, each another than those before it."""
    own = content_id(taken.content)
    made = {own: taken.content}
    for row in augmented(taken.named, augments, own):
        content = reader.content(row, taken.form)
        made.setdefault(content_id(content), content)
    del made[own]
    return list(made.values())


def _is_document(content: Content) -> bool:
    return isinstance(content, Text) and content.taught is None


def _merged(together: Sequence[_Item]) -> _Item:
    """Documents as one example: each ends with its end token, and none is taught to begin another."""
    first = together[0]
    made = joined([item.made[0] for item in together])
    return replace(first, made=(made,), texts=[text for item in together for text in item.texts])


def _over(texts: Sequence[Content], hashed: Any) -> str:
    """The hash of a row's content; of joined documents, one over those of each."""
    hashes = [hashed(text) for text in texts]
    return str(hashes[0]) if len(hashes) == 1 else fingerprint(hashes)


def _numbers(digest: str) -> tuple[int, int]:
    return int(digest[:16], 16), int(digest[16:32], 16)
