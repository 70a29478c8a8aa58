"""Rows for a terminal: text with the taught tokens marked, and a table of tokens. Colour only if it is wanted."""

from collections.abc import Sequence
from itertools import groupby

from rich.console import Console
from rich.text import Text

from fulltune.base.records import IGNORE
from fulltune.base.visible import visible
from fulltune.inspection.pieces import Piece
from fulltune.inspection.rows import Inspected

_TAUGHT, _SPECIAL, _HEAD, _FAINT = "bold green underline", "magenta", "bold", "dim"
_OPEN, _CLOSE, _LEFT, _RIGHT = "⟦", "⟧", "‹", "›"
_HEX = 12
"""Bytes of a token that the table shows."""


def put(console: Console, rows: Sequence[Inspected], *, tokens: bool = False) -> None:
    """Print rows, in colour if the console has any and the user did not forbid it (NO_COLOR)."""
    if console.color_system is not None and not console.no_color:
        console.print(show(rows, colour=True, tokens=tokens), soft_wrap=True, end="")
    else:
        console.file.write(show(rows, colour=False, tokens=tokens).plain)


def show(rows: Sequence[Inspected], *, colour: bool, tokens: bool = False) -> Text:
    """All rows one below the other, a legend first; with `tokens` a table of each row's tokens behind it."""
    shown = _legend(colour)
    for row in rows:
        shown.append("\n")
        shown.append_text(_head(row))
        shown.append_text(_body(row, colour))
        if row.truncated:
            shown.append(f"✂ cut here: {row.uncut - row.length:,} more tokens are not taught\n", "bold red")
        if tokens:
            shown.append_text(_table(row))
    return shown


def _legend(colour: bool) -> Text:
    if colour:
        return Text.assemble(("taught", _TAUGHT), "  ", ("control token", _SPECIAL), "  only read\n")
    return Text(f"{_OPEN}taught{_CLOSE}  {_LEFT}control token{_RIGHT}  only read\n")


def _head(row: Inspected) -> Text:
    cut = f", cut from {row.uncut:,} at data.max_length" if row.truncated else ""
    return Text.assemble(
        (f"── {row.split} {row.row}  {visible(row.origin)}\n", _HEAD),
        (f"   {row.length:,} tokens{cut}; {row.taught:,} taught in {_counted(len(row.supervised))}\n", _FAINT),
    )


def _counted(stretches: int) -> str:
    return "1 stretch" if stretches == 1 else f"{stretches:,} stretches"


def _body(row: Inspected, colour: bool) -> Text:
    body = Text()
    for taught, group in groupby(row.pieces, key=lambda piece: piece.taught):
        if taught and not colour:
            body.append(_OPEN)
        for piece in group:
            body.append(_written(piece, colour), _style(piece))
        if taught and not colour:
            body.append(_CLOSE)
    if not body.plain.endswith("\n"):
        body.append("\n")
    return body


def _written(piece: Piece, colour: bool) -> str:
    text = visible(piece.text)
    return f"{_LEFT}{text}{_RIGHT}" if piece.special and not colour else text


def _style(piece: Piece) -> str:
    if piece.special:
        return f"{_SPECIAL} bold underline" if piece.taught else _SPECIAL
    return _TAUGHT if piece.taught else ""


def _table(row: Inspected) -> Text:
    """One line a token. `label` is what is to be predicted there, so it is the token of the next line."""
    names = dict(zip(row.ids, row.spelled, strict=True))
    lines = [("index", "id", "piece", "bytes", "label", "weight")]
    for index, number in enumerate(row.ids):
        raw, label = row.raw[index], row.labels[index]
        taught = label != IGNORE
        lines.append(
            (
                str(index),
                str(number),
                visible(repr(row.spelled[index])),
                raw[:_HEX].hex(" ") + (" ..." if len(raw) > _HEX else ""),
                f"{label} {visible(repr(names.get(label, '')))}" if taught else str(label),
                f"{row.weights[index]:g}",
            )
        )
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    table = Text()
    for index, line in enumerate(lines):
        style = _FAINT if index == 0 else "green" if row.labels[index - 1] != IGNORE else ""
        cells = (
            cell.rjust(width) if column in (0, 1, 5) else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        table.append("  ".join(cells).rstrip() + "\n", style)
    return table
