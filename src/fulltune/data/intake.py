"""One source of rows -> examples that may be taught: its format told from its rows, its order and answers checked."""

import itertools
from collections.abc import Iterable, Iterator, Sequence

from fulltune.base.errors import DataError
from fulltune.base.files import fingerprint
from fulltune.data.columns import Columns
from fulltune.data.detect import detect, detect_source
from fulltune.data.example import Content, Example, Labelled, Preference, Row, RowFault
from fulltune.data.findings import Findings
from fulltune.data.formats import FORMATS, READ
from fulltune.data.labels import Labels
from fulltune.data.reading.places import Place
from fulltune.data.screen import Ids, check, content_id
from fulltune.data.sources import read_rows
from fulltune.recipe.schema import DataSection, Source

_LOOKED_AT = 200
"""Rows from which a format is told."""


class Intake:
    """Iterates over the examples of one source; `format` is known once iteration has begun."""

    def __init__(
        self, number: int, source: Source, places: Sequence[Place], data: DataSection, findings: Findings
    ) -> None:
        self._number, self._source, self._places = number, source, tuple(places)
        self._data, self._findings = data, findings
        self._detects = source.format == "auto"
        self._columns = Columns(source.columns, f"columns of {source.path}") if source.columns else None
        self.format = source.format

    def __iter__(self) -> Iterator[Example]:
        ids, unread, other, labels = [Ids() for _ in self._places], set[str](), 0, Labels()
        for file, line, row in self._rows():
            where = f"{self._places[file].path}:{line}"
            try:
                content = self._content(self._named(row), where)
                check(content)
                group = self._group(row)
            except RowFault as fault:
                self._findings.bad_row(where, fault)
                continue
            read = READ.get(self.format, row.keys()) if self._columns is None else self._columns.read
            unread |= row.keys() - read - {"id", self._data.group_by}
            if problem := ids[file].problem(row, line):
                self._findings.note(problem[0], f"{where} ({problem[1]})")
            if isinstance(content, Labelled):
                for label in content.labels:
                    labels.add(label, where)
            if isinstance(content, Labelled | Preference):
                other += 1
                continue
            yield Example(content_id(content), self._number, line, content, group, file)
        for where, slip in labels.faults():
            self._findings.bad_row(where, slip)
            other -= 1
        if other:
            what = f"{other} rows of {self.format!r} are fine, but this version only reads and checks such rows"
            mend = "name another format or other columns beside the path, or leave the file out"
            self._findings.bad_file(self._source.path, "other_task", what, mend)
        if unread:
            self._findings.note("unused_column", f"{self._source.path} ({', '.join(sorted(unread))})")

    def _rows(self) -> Iterator[tuple[int, int, Row]]:
        """All rows, with the number of their file, after the format was told from the first of them."""
        rows = (
            (file, line, row)
            for file, place in enumerate(self._places)
            for line, row in read_rows(place, self._findings, self._source)
        )
        if not self._detects:
            yield from rows
            return
        first = list(itertools.islice(rows, _LOOKED_AT))
        if not first:
            return
        try:
            self.format = detect_source(list(self._readable(row for _, _, row in first)), self._source.path)
        except DataError as fault:
            self._findings.unreadable += fault.faults
            return
        yield from itertools.chain(first, rows)

    def _named(self, row: Row) -> Row:
        return row if self._columns is None else self._columns(row)

    def _readable(self, rows: Iterable[Row]) -> Iterator[Row]:
        """Rows under the names of formats; those that lack a column are named when their turn comes."""
        for row in rows:
            if self._columns is None or self._columns.read <= row.keys():
                yield self._named(row)

    def _content(self, row: Row, where: str) -> Content:
        form = self.format
        # A row that merely lacks a column, such as a text without its label, is none of another format.
        if self._detects and (own := detect(row)) not in (None, form) and not READ[str(own)] & row.keys() <= READ[form]:
            if self._data.on_bad_row == "error":
                raise RowFault(
                    "mixed_schema",
                    f"this row has the keys of {own!r}, the rows before it those of {form!r}",
                    "put it into a file of its own; data.on_bad_row=drop reads every row by its own keys",
                )
            self._findings.note("mixed_schema", f"{where} ({own})")
            form = str(own)
        try:
            return FORMATS[form](row)
        except (
            KeyError,
            TypeError,
            ValueError,
        ) as fault:  # a format from outside the package may raise these
            raise RowFault("format", f"not a {form!r} row: {fault!r}", "mend the row, or the format") from fault

    def _group(self, row: Row) -> str | None:
        column = self._data.group_by
        if column is None:
            return None
        if column not in row:
            raise RowFault("missing_field", f"there is no `{column}`, by which data.group_by groups", "add the column")
        return fingerprint(["group", row[column]])
