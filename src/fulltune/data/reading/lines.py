"""JSON lines -> rows with line numbers, and what every reader of lines shares."""

import codecs
import io
import json
from collections.abc import Iterator
from typing import Any

from fulltune.data.example import Row, RowFault
from fulltune.data.findings import Findings
from fulltune.data.strict import Parser, has_control

LONGEST_ROW = 4 << 20
"""Bytes of one row. More than that is a million tokens: never one example, and never worth the memory."""
_MARKS = (codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE, codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


def rows(stream: io.BufferedReader, path: str, findings: Findings) -> Iterator[tuple[int, Row]]:
    """Each line that is a JSON object."""
    seen, parser = False, Parser()
    for number, line in with_content(stream, path, findings):
        seen = True
        try:
            yield number, _parse(line, parser, f"{path}:{number}", findings)
        except RowFault as fault:
            findings.bad_row(f"{path}:{number}", fault)
    if not seen:
        blank_only(path, findings)


def blank_only(path: str, findings: Findings) -> None:
    """A file without content."""
    findings.bad_file(path, "empty_file", "the file has only blank lines (0 rows)", "check how it was made")


def is_foreign_text(head: bytes, path: str, findings: Findings) -> bool:
    """Whether a file begins like UTF-16 or UTF-32, which is a fault."""
    if not head.startswith(_MARKS) and b"\0" not in head[:4]:
        return False
    what = f"this file is UTF-{32 if head[:4] in _MARKS else 16}, expected UTF-8"
    findings.bad_file(f"{path}:1", "encoding", what, "save it as UTF-8, e.g. with iconv -f UTF-16 -t UTF-8")
    return True


def with_content(stream: io.BufferedReader, path: str, findings: Findings) -> Iterator[tuple[int, bytes]]:
    """Lines with content; blank ones are noted, too long ones are bad rows."""
    for number, line, size in numbered(stream, path, findings):
        if size > LONGEST_ROW and not line.endswith(b"\n"):
            findings.bad_row(f"{path}:{number}", too_long(size))
        elif line.strip():
            yield number, line
        else:
            findings.note("blank_line", f"{path}:{number}")


def numbered(stream: io.BufferedReader, path: str, findings: Findings) -> Iterator[tuple[int, bytes, int]]:
    """Number, bytes and size of every line; of one that is too long the beginning only.

    Only a line feed ends a line, since JSON strings may hold every other separator raw.
    """
    number, carriage = 0, False
    while line := stream.readline(LONGEST_ROW + 1):
        number += 1
        size = len(line)
        if size > LONGEST_ROW and not line.endswith(b"\n"):
            size += _skip(stream, line)
        if number == 1 and line.startswith(codecs.BOM_UTF8):
            findings.note("byte_order_mark", f"{path}:1")
            line = line.removeprefix(codecs.BOM_UTF8)
        if not carriage and line.endswith(b"\r\n"):
            carriage = True
            findings.note("crlf", path)
        yield number, line, size


def _skip(stream: io.BufferedReader, piece: bytes) -> int:
    """Read on to the end of the line in pieces, so that a line of 1 GB takes no memory; returns its bytes."""
    size = 0
    while piece and not piece.endswith(b"\n"):
        piece = stream.readline(LONGEST_ROW)
        size += len(piece)
    return size


def too_long(size: int) -> RowFault:
    """A row of so many bytes."""
    what = f"the row has {size:,} bytes, about {size // 4:,} tokens; a row may have {LONGEST_ROW:,} bytes"
    return RowFault("too_long", what, "split it into several rows")


def not_utf8(line: bytes, fault: UnicodeDecodeError) -> RowFault:
    """A line that is not UTF-8, with the byte and a guess at what it is."""
    bad = line[fault.start : fault.end]
    guess = "windows-1252" if all(0x80 <= byte < 0xA0 for byte in bad) else "latin-1 or windows-1252"
    what = f"not UTF-8: byte {bad.hex(' ')} at offset {fault.start} of the line (perhaps {guess})"
    return RowFault("encoding", what, "save the file as UTF-8")


def _parse(line: bytes, parser: Parser, where: str, findings: Findings) -> Row:
    try:
        text = line.decode("utf-8")
    except UnicodeDecodeError as fault:
        raise not_utf8(line, fault) from fault
    try:
        row = parser.whole(text)
    except json.JSONDecodeError as fault:
        raise _not_json(fault, line) from fault
    return as_object(row, text, parser, where, findings)


def as_object(row: Any, text: str, parser: Parser, where: str, findings: Findings) -> Row:
    """The row, if it is an object; what is odd about it is noted."""
    if not isinstance(row, dict):
        what = f"the row is {kind(row)}, not an object"
        raise RowFault("not_an_object", what, 'a row looks like {"prompt": "...", "completion": "..."}')
    if parser.twice:
        findings.note("duplicate_key", f"{where} ({', '.join(sorted(parser.twice))})")
    if has_control(row, text):
        findings.note("control_char", where)
    return row


def _not_json(fault: json.JSONDecodeError, line: bytes) -> RowFault:
    if not line.endswith(b"\n"):
        what = f"the last line is incomplete (column {fault.colno}): the file may have been cut off while copied"
        return RowFault("json_parse", what, "copy the file again")
    hint = {"'": "JSON wants double quotes", "}": "remove the comma before it", "]": "remove the comma before it"}
    mend = hint.get(fault.doc[fault.pos : fault.pos + 1], "write one complete JSON object a line")
    return RowFault("json_parse", f"not JSON: {fault.msg} (column {fault.colno})", mend)


def kind(value: Any) -> str:
    """What a JSON value is, in words."""
    names = {dict: "an object", list: "an array", str: "a string", bool: "true or false", int: "a number"}
    return "null" if value is None else names.get(type(value), "a number")
