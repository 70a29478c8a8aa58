"""One JSON document in place of lines -> rows: an array, an object of columns, or an object with rows under `data`."""

import codecs
import io
import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from fulltune.data.example import Row, RowFault
from fulltune.data.findings import Findings
from fulltune.data.reading.lines import LONGEST_ROW, as_object
from fulltune.data.reading.opened import Opener
from fulltune.data.strict import Parser, has_control

_LARGEST_OBJECT = 256 << 20
"""Bytes of an object that holds all rows: it must be read whole, other than an array."""
_PIECE = 1 << 16
_SPACE = re.compile(r"[ \t\n\r]*")
_MEND = "copy the file again, or write one object a line"


def array(opener: Opener, path: str, findings: Findings) -> Iterator[tuple[int, Row]]:
    """The elements of one JSON array, each with the line on which it begins (its number if all is one line)."""
    with opener() as stream:
        counted = _is_one_line(stream)
    with opener() as stream:
        window = _Window(stream)
        count = 0
        try:
            for count, line, value, text, parser in _elements(window):
                where = count if counted else line
                try:
                    yield where, as_object(parser.checked(value, text), text, parser, f"{path}:{where}", findings)
                except RowFault as fault:
                    findings.bad_row(f"{path}:{where}", fault)
        except UnicodeDecodeError as fault:
            _not_utf8(f"{path}:{window.line}", fault, findings)
            return
        except (json.JSONDecodeError, RowFault) as fault:
            told = fault.msg if isinstance(fault, json.JSONDecodeError) else str(fault)
            what = f"not JSON, in or behind element {count + 1} of the array: {told}"
            findings.bad_file(f"{path}:{window.line}", "json_parse", what, _MEND)
            return
    if count == 0:
        findings.bad_file(path, "empty_file", "the array is empty (0 rows)", "check how it was made")


def _elements(window: "_Window") -> Iterator[tuple[int, int, Any, str, Parser]]:
    """Number, line, value and text of each element; JSONDecodeError if the array is not whole."""
    window.next()
    window.take()  # the bracket
    count = 0
    if window.next() != "]":
        while True:
            count, line, parser = count + 1, window.line, Parser()
            value, text = window.value(parser)
            yield count, line, value, text, parser
            match window.next():
                case "]":
                    break
                case ",":
                    window.take()
                case "":
                    raise json.JSONDecodeError("the array is cut off", "", 0)
                case _:
                    raise json.JSONDecodeError("no comma stands there", "", 0)
            if window.next() == "]":
                raise json.JSONDecodeError("a comma before the end", "", 0)
    window.take()
    if window.next():
        raise json.JSONDecodeError("more text behind the array", "", 0)


class _Window:
    """The part of a JSON text that is being read: as much as one element needs, never the whole file."""

    def __init__(self, stream: io.BufferedReader) -> None:
        self._stream = stream
        self._decoder = codecs.getincrementaldecoder("utf-8-sig")()
        self._text, self._at, self._whole = "", 0, False
        self.line = 1

    def next(self) -> str:
        """The next character that is no white space; nothing at the end."""
        while True:
            found = _SPACE.match(self._text, self._at)
            end = found.end() if found else self._at
            self._move(end)
            if end < len(self._text):
                return self._text[end]
            if self._whole:
                return ""
            self._more()

    def take(self) -> None:
        """Pass by one character."""
        self._move(self._at + 1)

    def value(self, parser: Parser) -> tuple[Any, str]:
        """The value that begins here, and its text."""
        while True:
            held = len(self._text) - self._at
            try:
                value, end = parser.part(self._text, self._at)
            except json.JSONDecodeError:
                if self._whole:
                    raise
            else:
                if end < len(self._text) or self._whole:
                    text = self._text[self._at : end]
                    self._move(end)
                    return value, text
            if held > LONGEST_ROW:
                raise RowFault("too_long", f"no end of the element within {LONGEST_ROW:,} characters", _MEND)
            self._more()

    def _move(self, end: int) -> None:
        self.line += self._text.count("\n", self._at, end)
        self._at = end

    def _more(self) -> None:
        """Read on, twice as much each time, so that what is parsed again and again stays a fixed part."""
        kept = self._text[self._at :]
        piece = self._stream.read(max(_PIECE, len(kept)))
        self._whole = not piece
        self._text, self._at = kept + self._decoder.decode(piece, final=self._whole), 0


def _is_one_line(stream: io.BufferedReader) -> bool:
    """Whether no line feed stands between the first and the last character: then there are no lines to name."""
    begun = ended = False
    while piece := stream.read(_PIECE):
        for part in piece.splitlines(keepends=True) if b"\n" in piece else (piece,):
            if part.strip():
                if ended:
                    return False
                begun = True
            ended = ended or (begun and part.endswith(b"\n"))
    return True


def is_document(opener: Opener) -> bool:
    """Whether a file that begins with a brace is one object with all rows in it, not one object a line."""
    with opener() as stream:
        line = b""
        while not line.strip() and (piece := stream.readline(LONGEST_ROW)):
            line = piece
        if line.rstrip().endswith((b"{", b"[", b",", b":")) or not line.endswith(b"\n"):
            more = b""
        else:
            more = stream.read(_PIECE).strip()
    if more:
        return False
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return line.rstrip().endswith((b"{", b"[", b",", b":")) or len(line) >= LONGEST_ROW
    return isinstance(value, dict) and (_under_data(value) is not None or _columns(value) is not None)


def whole(opener: Opener, path: str, findings: Findings) -> Iterator[tuple[int, Row]]:
    """The rows of one object, numbered from 1."""
    with opener() as stream:
        content = stream.read(_LARGEST_OBJECT + 1)
    if len(content) > _LARGEST_OBJECT:
        what = f"an object of more than {_LARGEST_OBJECT >> 20} MiB"
        findings.bad_file(path, "too_long", what, "write its rows as JSONL, one object a line")
        return
    parser = Parser()
    try:
        text = content.decode("utf-8-sig")
        value = parser.whole(text)
    except UnicodeDecodeError as fault:
        _not_utf8(f"{path}:1", fault, findings)
        return
    except json.JSONDecodeError as fault:
        findings.bad_file(f"{path}:{fault.lineno}", "json_parse", f"not JSON: {fault.msg}", _MEND)
        return
    except RowFault as fault:
        findings.bad_file(path, fault.code, fault.what, fault.mend)
        return
    if parser.twice:
        findings.note("duplicate_key", f"{path} ({', '.join(sorted(parser.twice))})")
    if has_control(value, text):
        findings.note("control_char", path)
    made = _under_data(value)
    columns = _columns(value) if made is None else None
    if made is None and columns is None:
        what = "one object that is neither columns (lists of one length) nor a list of rows under `data`"
        findings.bad_file(path, "json_shape", what, "write one object a line, or an array of them")
        return
    findings.note("json_columns" if columns is not None else "json_data", path)
    yield from _numbered(made if made is not None else _rows(columns or {}), path, findings)


def _numbered(made: Any, path: str, findings: Findings) -> Iterator[tuple[int, Row]]:
    number = 0
    for number, row in enumerate(made, 1):
        try:
            yield number, as_object(row, "", Parser(), f"{path}:{number}", findings)
        except RowFault as fault:
            findings.bad_row(f"{path}:{number}", fault)
    if number == 0:
        findings.bad_file(path, "empty_file", "there are no rows in this object", "check how it was made")


def _under_data(value: Any) -> list[Any] | None:
    """The rows of `{"data": [{...}, ...]}`, whatever else stands beside them."""
    rows = value.get("data") if isinstance(value, dict) else None
    return rows if isinstance(rows, list) and all(isinstance(row, dict) for row in rows) else None


def _columns(value: Any) -> Mapping[str, list[Any]] | None:
    """`{"a": [...], "b": [...]}` of one length. Lists of objects are no columns: `messages` of one row looks so."""
    if not isinstance(value, dict) or not value:
        return None
    lists = [column for column in value.values() if isinstance(column, list)]
    fine = len(lists) == len(value) and len({len(column) for column in lists}) == 1
    return value if fine and not any(isinstance(cell, dict) for column in lists for cell in column) else None


def _rows(columns: Mapping[str, list[Any]]) -> Iterator[dict[str, Any]]:
    for cells in zip(*columns.values(), strict=True):
        yield dict(zip(columns, cells, strict=True))


def _not_utf8(where: str, fault: UnicodeDecodeError, findings: Findings) -> None:
    findings.bad_file(where, "encoding", f"not UTF-8: {fault.reason}", "save the file as UTF-8")
