"""One source of rows -> examples that may be taught: its format told from its rows, its order and answers checked."""

import itertools
from collections.abc import Iterator, Sequence

from fulltune.base.errors import DataError
from fulltune.base.files import fingerprint
from fulltune.data.example import Content, Example, Row, RowFault
from fulltune.data.findings import Findings
from fulltune.data.formats import FORMATS, READ, detect, detect_source
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
        self.format = source.format

    def __iter__(self) -> Iterator[Example]:
        ids, unread = [Ids() for _ in self._places], set[str]()
        for file, line, row in self._rows():
            where = f"{self._places[file].path}:{line}"
            try:
                content = self._content(row, where)
                check(content)
                group = self._group(row)
            except RowFault as fault:
                self._findings.bad_row(where, fault)
                continue
            unread |= row.keys() - READ.get(self.format, row.keys()) - {"id", self._data.group_by}
            if problem := ids[file].problem(row, line):
                self._findings.note(problem[0], f"{where} ({problem[1]})")
            yield Example(content_id(content), self._number, line, content, group, file)
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
            self.format = detect_source([row for _, _, row in first], self._source.path)
        except DataError as fault:
            self._findings.unreadable += fault.faults
            return
        yield from itertools.chain(first, rows)

    def _content(self, row: Row, where: str) -> Content:
        form = self.format
        if self._detects and (own := detect(row)) not in (None, form):
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
