"""CSV and TSV -> rows of texts. A cell may hold line breaks; a row is named by its first line."""

import csv
import io
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field

from fulltune.data.example import Row, RowFault
from fulltune.data.findings import Findings
from fulltune.data.reading import lines
from fulltune.data.strict import CONTROL

_PATIENCE = 64 << 20
"""Bytes that may be read again behind wrong quotes. Each may take rows of 4 MiB with it, line after line."""
_MEND_QUOTES = 'double the quotes inside a cell ("") and close the cell, or say `quoted: false` beside the path'


@dataclass(frozen=True, slots=True)
class Shape:
    """How the cells of a file are written."""

    delimiter: str
    quoted: bool
    header: tuple[str, ...] | None


def shape(stream: io.BufferedReader, suffix: str, header: tuple[str, ...] | None, quoted: bool | None) -> Shape:
    """Tabs and plain quotes in TSV; commas and quoted cells in CSV, or semicolons if the first line has no comma."""
    if suffix == ".tsv":
        return Shape("\t", bool(quoted), header)
    first = stream.peek(1)[:4096].split(b"\n")[0]
    return Shape(";" if b"," not in first and b";" in first else ",", quoted is not False, header)


def rows(stream: io.BufferedReader, path: str, findings: Findings, written: Shape) -> Iterator[tuple[int, Row]]:
    """A row for each record behind the header."""
    header, unread = written.header, True
    if written.delimiter == ";":
        findings.note("semicolons", path)
    for number, record in _Records(stream, path, findings, written):
        unread = False
        where = f"{path}:{number}"
        if header is None:
            header = _header(record, where, findings)
            unread = True
            if header is None:
                return
            continue
        if isinstance(record, list) and len(record) != len(header):
            what = f"{len(record)} cells, the header has {len(header)}"
            record = RowFault("csv_columns", what, "mend the row; a cell with a delimiter in it stands in quotes")
        if isinstance(record, RowFault):
            findings.bad_row(where, record)
            continue
        if not written.quoted and any(len(cell) > 1 and cell[0] == cell[-1] == '"' for cell in record):
            findings.note("quotes_kept", where)
        yield number, dict(zip(header, record, strict=True))
    if unread:
        findings.bad_file(
            path, "empty_file", "there are no rows (0 records behind the header)", "check how it was made"
        )


def _header(record: list[str] | RowFault, where: str, findings: Findings) -> tuple[str, ...] | None:
    if isinstance(record, RowFault):
        findings.bad_file(where, record.code, f"the header cannot be read: {record.what}", record.mend)
        return None
    twice = sorted({name for name in record if record.count(name) > 1})
    if twice:
        what = f"the header has {', '.join(map(repr, twice))} more than once"
        mend = "name each column once; for a file without a header line say `header: [names]` beside the path"
        findings.bad_file(where, "csv_header", what, mend)
        return None
    return tuple(record)


@dataclass(slots=True)
class _Taken:
    """The lines of the record that is being read, and what is wrong with their bytes."""

    lines: list[tuple[int, bytes]] = field(default_factory=list)
    size: int = 0
    fault: RowFault | None = None
    control: bool = False

    def line(self, number: int, line: bytes) -> str:
        self.lines.append((number, line))
        self.size += len(line)
        try:
            text = line.decode("utf-8")
        except UnicodeDecodeError as fault:
            self.fault = self.fault or lines.not_utf8(line, fault)
            text = line.decode("utf-8", "replace")  # never taught: the record is a fault
        if CONTROL.search(text):
            self.control = True
            if "\0" in text:
                self.fault = self.fault or RowFault("encoding", "a NUL byte: binary data", "mend the file")
        return text


class _Records:
    """Iterates over records, each with the number of its first line; behind a wrong quote, from the next line on."""

    def __init__(self, stream: io.BufferedReader, path: str, findings: Findings, written: Shape) -> None:
        self._lines = lines.numbered(stream, path, findings)
        self._path, self._findings, self._written = path, findings, written
        self._again: deque[tuple[int, bytes]] = deque()
        self._taken = _Taken()
        self._wasted = 0

    def __iter__(self) -> Iterator[tuple[int, list[str] | RowFault]]:
        reader = self._reader()
        while True:
            self._taken = _Taken()
            try:
                record: list[str] | RowFault = _next(reader)
            except StopIteration:
                return
            except (csv.Error, _TooLong) as fault:
                record = self._step_back(fault)
                reader = self._reader()
            number = self._taken.lines[0][0]
            if not record:
                self._findings.note("blank_line", f"{self._path}:{number}")
                continue
            if self._taken.control:
                self._findings.note("control_char", f"{self._path}:{number}")
            yield number, self._taken.fault or record
            if self._wasted > _PATIENCE:
                what = "the quotes are wrong in so many rows that the rest is not read"
                self._findings.bad_file(f"{self._path}:{number}", "csv_quote", what, _MEND_QUOTES)
                return

    def _reader(self) -> Iterator[list[str]]:
        delimiter = self._written.delimiter
        if self._written.quoted:
            return csv.reader(self._feed(), delimiter=delimiter, strict=True)
        return csv.reader(self._feed(), delimiter=delimiter, quoting=csv.QUOTE_NONE, strict=True)

    def _feed(self) -> Iterator[str]:
        while True:
            if self._again:
                number, line = self._again.popleft()
                size = len(line)
            elif (found := next(self._lines, None)) is not None:
                number, line, size = found
            else:
                return
            text = self._taken.line(number, line)
            if self._taken.size > lines.LONGEST_ROW:
                raise _TooLong(size if len(self._taken.lines) == 1 else self._taken.size)
            yield text

    def _step_back(self, fault: "csv.Error | _TooLong") -> RowFault:
        """All lines behind the first are read again, as records of their own."""
        taken = self._taken
        self._again.extendleft(reversed(taken.lines[1:]))
        self._wasted += taken.size
        if isinstance(fault, _TooLong) and len(taken.lines) == 1:
            return lines.too_long(fault.size)
        if taken.fault is None and "new-line" in str(fault):
            return RowFault(
                "csv_parse", "a carriage return inside a cell without quotes", "save it with plain line ends"
            )
        what = f"a quote that opens a cell here is not closed as it should be ({fault})"
        return RowFault("csv_quote", what, _MEND_QUOTES)


class _TooLong(Exception):
    """A record, or a line, of so many bytes."""

    def __init__(self, size: int) -> None:
        super().__init__(f"no end within {lines.LONGEST_ROW:,} bytes")
        self.size = size


def _next(reader: Iterator[list[str]]) -> list[str]:
    """The next record; the limit on a cell belongs to the whole process, so it is set for this moment only."""
    before = csv.field_size_limit(lines.LONGEST_ROW)
    try:
        return next(reader)
    finally:
        csv.field_size_limit(before)
