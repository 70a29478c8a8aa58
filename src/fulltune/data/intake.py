"""One source of rows: its format told from its first rows, and each row read into content that may be taught."""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from fulltune.base.errors import DataError
from fulltune.base.files import fingerprint
from fulltune.data.columns import Columns
from fulltune.data.detect import detect, detect_source
from fulltune.data.example import Content, Row, RowFault
from fulltune.data.findings import Findings
from fulltune.data.formats import FORMATS, READ
from fulltune.data.reading.places import Place
from fulltune.data.screen import check
from fulltune.data.sources import read_rows
from fulltune.recipe.data import DataSection, Source

_LOOKED_AT = 200
"""Rows from which a format is told."""

Placed = tuple[int, int, Row]
"""Number of the file among the source's, line, row."""


class Intake:
    """Iterates over the raw rows of one source; `format` is known once iteration has begun."""

    def __init__(self, source: Source, places: Sequence[Place], findings: Findings) -> None:
        """RecipeError if a template of its columns does not parse."""
        self._source, self._places, self._findings = source, tuple(places), findings
        self._names = tuple(Columns(source.columns, f"columns of {source.path}").asked) if source.columns else ()
        self.format = source.format

    def __iter__(self) -> Iterator[Placed]:
        rows = (
            (file, line, row)
            for file, place in enumerate(self._places)
            for line, row in read_rows(place, self._findings, self._source)
        )
        if self._source.format != "auto":
            yield from rows
            return
        first = list(itertools.islice(rows, _LOOKED_AT))
        if not first:
            return
        try:
            # Every row has the keys that `columns` names, and one that cannot have them is told when its turn comes.
            named = [dict.fromkeys(self._names)] if self._names else [row for _, _, row in first]
            self.format = detect_source(named, self._source.path)
        except DataError as fault:
            self._findings.unreadable += fault.faults
            return
        yield from itertools.chain(first, rows)


@dataclass(frozen=True, slots=True)
class Taken:
    """A row that was read: its content, what decides its side and its stratum, and how it was read."""

    content: Content
    group: str | None
    stratum: str | int | None
    named: Row
    """The row under the names that formats know."""
    form: str


class RowReader:
    """Reads the rows of one source, in whichever process."""

    def __init__(
        self,
        source: Source,
        form: str,
        data: DataSection,
        *,
        group_by: str | None = None,
        stratify_by: str | None = None,
    ) -> None:
        """`form`: the format, as named or told from the first rows; the columns are those that decide a row's side."""
        self._form, self._data = form, data
        self._group_by, self._stratify_by = group_by, stratify_by
        self._detects = source.format == "auto"
        self._columns = Columns(source.columns, f"columns of {source.path}") if source.columns else None
        self.unread: set[str] = set()
        """Columns of the rows so far that nobody reads."""

    def read(self, row: Row) -> Taken:
        """RowFault if the row cannot be taught."""
        named = row if self._columns is None else self._columns(row)
        form = self._form_of(named)
        content = self.content(named, form)
        group, stratum = self._group(row), self._stratum(row)
        read = READ.get(self._form, row.keys()) if self._columns is None else self._columns.read
        self.unread |= row.keys() - read - {"id", self._data.group_by, self._stratify_by}
        return Taken(content, group, stratum, named, form)

    def content(self, named: Row, form: str) -> Content:
        """The content of a row under the names that formats know; RowFault if it cannot be taught."""
        try:
            content = FORMATS[form](named)
        except (
            KeyError,
            TypeError,
            ValueError,
        ) as fault:  # a format from outside the package may raise these
            raise RowFault("format", f"not a {form!r} row: {fault!r}", "mend the row, or the format") from fault
        check(content)
        return content

    def _form_of(self, row: Row) -> str:
        form = self._form
        # A row that merely lacks a column, such as a text without its label, is none of another format.
        if self._detects and (own := detect(row)) not in (None, form) and not READ[str(own)] & row.keys() <= READ[form]:
            if self._data.on_bad_row == "error":
                raise RowFault(
                    "mixed_schema",
                    f"this row has the keys of {own!r}, the rows before it those of {form!r}",
                    "put it into a file of its own; data.on_bad_row=drop reads every row by its own keys",
                )
            return str(own)
        return form

    def _group(self, row: Row) -> str | None:
        column = self._group_by
        if column is None:
            return None
        if column not in row:
            raise RowFault("missing_field", f"there is no `{column}`, by which data.group_by groups", "add the column")
        return fingerprint(["group", row[column]])

    def _stratum(self, row: Row) -> str | int | None:
        column = self._stratify_by
        if column is None:
            return None
        if column not in row:
            raise RowFault("missing_field", f"there is no `{column}`, by which the sides are stratified", "add it")
        value = row[column]
        return value if isinstance(value, str | int) else repr(value)
