"""JSONL files -> rows with line numbers. What cannot be read is named with line, column or byte."""

import codecs
import gzip
import io
import json
import os
import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

from fulltune.data.example import Row, RowFault
from fulltune.data.findings import Findings
from fulltune.data.strict import Parser, has_control

LONGEST_ROW = 4 << 20
"""Bytes of one row. More than that is a million tokens: never one example, and never worth the memory."""

_KINDS = {
    b"\x28\xb5\x2f\xfd": "zstd data",
    b"PAR1": "Parquet",
    b"PK\x03\x04": "a zip archive",
    b"ARROW1": "Arrow",
    b"%PDF": "PDF",
}
_GZIP = b"\x1f\x8b"
_MARKS = (codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE, codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
_OPEN = re.compile(r"\s*\[\s*(\]?)")
_BETWEEN = re.compile(r"\s*(\]|,(?!\s*\])\s*)")
"""Behind an element: the end, or one comma and another element. `[1, 2,` is cut off and `[1, 2,]` is not JSON."""


def read_rows(path: Path, findings: Findings) -> Iterator[tuple[int, Row]]:
    """Line number (from 1) and row of each line that is a JSON object; the rest goes to `findings`.

    A byte order mark, CRLF line ends, gzip data and one JSON array in place of lines are understood.
    """
    if not _readable(path, findings):
        return
    with path.open("rb") as raw:
        head = raw.read(8)
        raw.seek(0)
        try:
            if head.startswith(_GZIP):
                findings.note("gzip", str(path))
                with gzip.GzipFile(fileobj=raw) as unpacked:
                    yield from _rows(io.BufferedReader(cast(io.RawIOBase, unpacked)), path, findings)
            else:
                yield from _rows(raw, path, findings)
        except (EOFError, gzip.BadGzipFile, zlib.error) as fault:
            findings.bad_file(str(path), "compressed", f"damaged gzip data: {fault}", "copy the file again")


def _readable(path: Path, findings: Findings) -> bool:
    where = str(path)
    if not path.exists():
        findings.bad_file(where, "no_file", "there is no such file", "check `path` in the data section of the recipe")
    elif path.is_dir():
        findings.bad_file(where, "no_file", "this is a folder", "name the JSONL file in it")
    elif path.suffix in (".csv", ".tsv", ".txt", ".parquet", ".arrow"):
        findings.bad_file(
            where, "kind", f"{path.suffix} files are not read yet", "convert it to JSONL: one object a line"
        )
    elif not os.access(path, os.R_OK):
        findings.bad_file(where, "no_file", "this file may not be read by you", "change its permissions")
    elif path.stat().st_size == 0:
        findings.bad_file(where, "empty_file", "the file is empty (0 rows)", "check how it was made, or remove it")
    else:
        return True
    return False


def _rows(stream: io.BufferedReader, path: Path, findings: Findings) -> Iterator[tuple[int, Row]]:
    head = stream.peek(64)[:64]
    if head.startswith(_MARKS) or b"\0" in head[:4]:
        what = f"this file is UTF-{32 if head[:4] in _MARKS else 16}, expected UTF-8"
        findings.bad_file(f"{path}:1", "encoding", what, "save it as UTF-8, e.g. with iconv -f UTF-16 -t UTF-8")
        return
    for magic, kind in _KINDS.items():
        if head.startswith(magic):
            findings.bad_file(f"{path}:1", "kind", f"this file is {kind}, expected JSON lines", "convert it to JSONL")
            return
    if head.removeprefix(codecs.BOM_UTF8).lstrip().startswith(b"["):
        findings.note("json_array", str(path))
        yield from _array(stream, path, findings)
        return
    seen = False
    for number, line in _lines(stream, path, findings):
        seen = True
        try:
            yield number, _parse(line, f"{path}:{number}", findings)
        except RowFault as fault:
            findings.bad_row(f"{path}:{number}", fault)
    if not seen:
        findings.bad_file(str(path), "empty_file", "the file has only blank lines (0 rows)", "check how it was made")


def _lines(stream: io.BufferedReader, path: Path, findings: Findings) -> Iterator[tuple[int, bytes]]:
    """Lines with content. Only a line feed ends one, since JSON strings may hold every other separator raw."""
    number, carriage = 0, False
    while line := stream.readline(LONGEST_ROW + 1):
        number += 1
        if len(line) > LONGEST_ROW and not line.endswith(b"\n"):
            findings.bad_row(f"{path}:{number}", _too_long(len(line) + _skip(stream, line)))
            continue
        if number == 1 and line.startswith(codecs.BOM_UTF8):
            findings.note("byte_order_mark", f"{path}:1")
            line = line.removeprefix(codecs.BOM_UTF8)
        if line.endswith(b"\r\n") and not carriage:
            carriage = True
            findings.note("crlf", str(path))
        if line.strip():
            yield number, line
        else:
            findings.note("blank_line", f"{path}:{number}")


def _skip(stream: io.BufferedReader, piece: bytes) -> int:
    """Read on to the end of the line in pieces, so that a line of 1 GB takes no memory; returns its bytes."""
    size = 0
    while piece and not piece.endswith(b"\n"):
        piece = stream.readline(LONGEST_ROW)
        size += len(piece)
    return size


def _too_long(size: int) -> RowFault:
    what = f"the row has {size:,} bytes, about {size // 4:,} tokens; a row may have {LONGEST_ROW:,} bytes"
    return RowFault("too_long", what, "split it into several rows")


def _parse(line: bytes, where: str, findings: Findings) -> Row:
    try:
        text = line.decode("utf-8")
    except UnicodeDecodeError as fault:
        bad = line[fault.start : fault.end]
        guess = "windows-1252" if all(0x80 <= byte < 0xA0 for byte in bad) else "latin-1 or windows-1252"
        raise RowFault(
            "encoding",
            f"not UTF-8: byte {bad.hex(' ')} at offset {fault.start} of the line (perhaps {guess})",
            "save the file as UTF-8",
        ) from fault
    parser = Parser()
    try:
        row = parser.whole(text)
    except json.JSONDecodeError as fault:
        raise _not_json(fault, line) from fault
    return _object(row, text, parser, where, findings)


def _object(row: Any, text: str, parser: Parser, where: str, findings: Findings) -> Row:
    """The row, if it is an object; what is odd about it is noted."""
    if not isinstance(row, dict):
        what = f"the row is {_kind(row)}, not an object"
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


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "an array", str: "a string", bool: "true or false", int: "a number"}
    return "null" if value is None else names.get(type(value), "a number")


def _array(stream: io.BufferedReader, path: Path, findings: Findings) -> Iterator[tuple[int, Row]]:
    """The elements of one JSON array, each with the line on which it begins (its number if all is one line)."""
    try:
        text = stream.read().decode("utf-8-sig")
    except UnicodeDecodeError as fault:
        findings.bad_file(f"{path}:1", "encoding", f"not UTF-8 at byte {fault.start}", "save the file as UTF-8")
        return
    counted = "\n" not in text.strip()  # an array on one line has no lines to name, so its elements are counted
    mend = "copy the file again, or write one object a line"
    found, count, line, before = _OPEN.match(text), 0, 1, 0
    while found is not None and found[1] != "]":
        at = found.end()
        line, count, before = line + text.count("\n", before, at), count + 1, at
        number = count if counted else line
        parser = Parser()
        try:
            value, end = parser.part(text, at)
        except (json.JSONDecodeError, RowFault) as fault:
            what = f"not JSON, in element {count} of the array: {fault}"
            findings.bad_file(f"{path}:{line}", "json_parse", what, mend)
            return
        try:
            row = parser.checked(value, text[at:end])
            yield number, _object(row, text[at:end], parser, f"{path}:{number}", findings)
        except RowFault as fault:
            findings.bad_row(f"{path}:{number}", fault)
        found = _BETWEEN.match(text, end)
    if found is None:
        what = f"the array is cut off behind element {count}, or no comma stands there"
        findings.bad_file(f"{path}:{line}", "json_parse", what, mend)
    elif count == 0:
        findings.bad_file(str(path), "empty_file", "the array is empty (0 rows)", "check how it was made")
    elif text[found.end() :].strip():
        findings.bad_file(f"{path}:{line}", "json_parse", "more text behind the array", "write one object a line")
