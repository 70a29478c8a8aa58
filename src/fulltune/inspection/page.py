"""Rows as one page that needs nothing else: no network, and nothing that a row says can become markup."""

from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from fulltune.base.errors import RecipeError
from fulltune.base.files import write_whole
from fulltune.base.records import DataFacts
from fulltune.base.version import __version__
from fulltune.base.visible import harmless
from fulltune.inspection.rows import Inspected

_MARK = "<!-- written by fulltune inspect -->"
"""In the first line of every page. A file without it is somebody's own."""
_SLOT = "@DATA@"


def require_place(path: Path) -> None:
    """RecipeError if a page may not be written there; asked before any work is done."""
    if not path.exists():
        return
    if path.is_dir():
        raise RecipeError("this is a folder", where=str(path), mend="name a file for the page, such as rows.html")
    with path.open("rb") as file:
        if _MARK.encode() not in file.read(200):
            raise RecipeError("the file exists and is no page of ours", where=str(path), mend="name another")


def write_page(path: Path, rows: Sequence[Inspected], facts: DataFacts) -> None:
    """Write the page of these rows; an older page in its place is replaced."""
    write_whole(path, page(rows, facts))


def page(rows: Sequence[Inspected], facts: DataFacts) -> str:
    """The page as text."""
    shell = (files("fulltune.inspection") / "page.html").read_text(encoding="utf-8")
    return shell.replace(_SLOT, harmless({"version": __version__, "facts": _summary(facts), **_table(rows)}))


def _summary(facts: DataFacts) -> dict[str, Any]:
    return {
        "rows": facts.rows,
        "kept": facts.kept,
        "truncated": facts.truncated,
        "dropped": facts.dropped,
        "notes": facts.notes,
        "splits": {
            name: {
                "examples": split.examples,
                "tokens": split.tokens,
                "taught": split.supervised_tokens,
                "lengths": split.lengths,
            }
            for name, split in facts.splits.items()
            if split.examples
        },
    }


def _table(rows: Sequence[Inspected]) -> dict[str, Any]:
    """The rows, and every token that occurs in them once."""
    tokens = {
        number: [spelled, raw.hex(" ")]
        for row in rows
        for number, spelled, raw in zip(row.ids, row.spelled, row.raw, strict=True)
    }
    return {"tokens": tokens, "rows": [_row(row) for row in rows]}


def _row(row: Inspected) -> dict[str, Any]:
    return {
        "split": row.split,
        "row": row.row,
        "origin": row.origin,
        "uncut": row.uncut,
        "taught": row.taught,
        "stretches": len(row.supervised),
        "ids": row.ids,
        "labels": row.labels,
        "weights": row.weights,
        "pieces": [[p.start, p.stop, p.text, int(p.taught), int(p.special)] for p in row.pieces],
    }
