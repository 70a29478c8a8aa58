"""Plain text files -> documents: the whole file, its paragraphs or its lines."""

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


def rows(opener: Opener, path: str, findings: Findings, cut: Cut) -> Iterator[tuple[int, Row]]:
    """`{"text": ...}` for each document, kept to the byte, with its first line. Binary data is a fault."""
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
        for number, text, size in _documents(stream, path, findings, cut):
            if size > lines.LONGEST_ROW:
                findings.bad_row(f"{path}:{number}", _too_long(size, cut))
            elif text.strip():
                yield number, {"text": text}
            else:
                continue
            seen = True
    if not seen:
        lines.blank_only(path, findings)


def _documents(stream: io.BufferedReader, path: str, findings: Findings, cut: Cut) -> Iterator[tuple[int, str, int]]:
    """First line, text and bytes of each document; the text of one that is too long is empty."""
    pieces: list[bytes] = []
    first = size = 0
    for number, line, length in lines.numbered(stream, path, findings):
        if cut != "file" and not line.strip():
            yield first, _joined(pieces, size, cut), size
            pieces, size = [], 0
            continue
        first = first if pieces else number
        size += length
        if size <= lines.LONGEST_ROW or not pieces:
            pieces.append(line)
        if cut == "line":
            yield number, _joined(pieces, size, cut), size
            pieces, size = [], 0
    yield first, _joined(pieces, size, cut), size


def _joined(pieces: list[bytes], size: int, cut: Cut) -> str:
    """The text; line ends behind a line or a paragraph do not belong to it."""
    if size > lines.LONGEST_ROW:
        return ""
    text = b"".join(pieces).decode("utf-8")
    return text if cut == "file" else text.rstrip("\r\n")


def _too_long(size: int, cut: Cut) -> RowFault:
    fault = lines.too_long(size)
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
