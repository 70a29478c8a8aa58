"""Plain text files -> documents: the whole file, its paragraphs, its lines, or what stands between separators."""

import codecs
import io
from collections.abc import Iterator
from typing import Literal

from fulltune.data.example import Row, RowFault
from fulltune.data.findings import Findings
from fulltune.data.reading import lines
from fulltune.data.reading.opened import Opener

_PIECE = 1 << 20

Cut = Literal["file", "paragraph", "line"]


def rows(
    opener: Opener, path: str, findings: Findings, cut: Cut, separator: str | None = None
) -> Iterator[tuple[int, Row]]:
    """`{"text": ...}` for each document, kept to the byte, with its first line. Binary data is a fault.

    `separator`: the line that stands between documents, in place of `cut`.
    """
    apart = None if separator is None else separator.encode()
    with opener() as stream:
        if lines.is_foreign_text(stream.peek(8)[:8], path, findings):
            return
        nul, bad = _flaws(stream)
    told = [f"first NUL at byte {nul}"] if nul is not None else []
    told += [f"first byte that is not UTF-8 at byte {bad}"] if bad is not None else []
    if told:
        findings.bad_file(path, "encoding", f"this is no plain text: {', '.join(told)}", "save it as UTF-8, or mend it")
        return
    seen = False
    with opener() as stream:
        for number, text, size in _documents(stream, path, findings, cut, apart):
            if size > lines.LONGEST_ROW:
                findings.bad_row(f"{path}:{number}", _too_long(size, cut, apart))
            elif text.strip():
                yield number, {"text": text}
            else:
                continue
            seen = True
    if not seen:
        lines.blank_only(path, findings)


def _documents(
    stream: io.BufferedReader, path: str, findings: Findings, cut: Cut, apart: bytes | None
) -> Iterator[tuple[int, str, int]]:
    """First line, text and bytes of each document; the text of one that is too long is empty."""
    pieces: list[bytes] = []
    first = size = 0
    whole = cut == "file" and apart is None
    for number, line, length in lines.numbered(stream, path, findings):
        ends = not (whole or line.strip()) if apart is None else line.strip() == apart
        if ends:
            yield first, _joined(pieces, size, whole), size
            pieces, size = [], 0
            continue
        first = first if pieces else number
        size += length
        if size <= lines.LONGEST_ROW or not pieces:
            pieces.append(line)
        if cut == "line":
            yield number, _joined(pieces, size, whole), size
            pieces, size = [], 0
    yield first, _joined(pieces, size, whole), size


def _joined(pieces: list[bytes], size: int, whole: bool) -> str:
    """The text; line ends behind what is not the whole file do not belong to it."""
    if size > lines.LONGEST_ROW:
        return ""
    text = b"".join(pieces).decode("utf-8")
    return text if whole else text.rstrip("\r\n")


def _too_long(size: int, cut: Cut, apart: bytes | None) -> RowFault:
    fault = lines.too_long(size)
    if apart is not None:
        return fault
    mend = {"file": "say `document: paragraph` or `line` beside the path", "paragraph": "say `document: line`"}
    return RowFault(fault.code, fault.what, mend.get(cut, fault.mend))


def _flaws(stream: io.BufferedReader) -> tuple[int | None, int | None]:
    """Where the first NUL and the first byte that is not UTF-8 stand."""
    nul: int | None = None
    decoder = codecs.getincrementaldecoder("utf-8")()
    at = 0
    while True:
        piece = stream.read(_PIECE)
        if nul is None and (found := piece.find(b"\0")) >= 0:
            nul = at + found
        kept = len(decoder.getstate()[0])
        try:
            decoder.decode(piece, final=not piece)
        except UnicodeDecodeError as fault:
            return nul, at - kept + fault.start
        at += len(piece)
        if not piece:
            return nul, None
