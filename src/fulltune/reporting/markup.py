"""HTML and SVG in which nothing that a user wrote can become markup: every text goes through `text`."""

import html
import json
from collections.abc import Iterable
from typing import Any

from fulltune.base.secrets import masked
from fulltune.base.visible import visible

_VOID = {"br", "col", "line", "circle", "rect", "path", "polyline", "polygon", "meta"}
"""Elements that hold nothing; in SVG they close themselves, and HTML allows it."""


class Html(str):
    """Markup that may stand in a page as it is. Only this module makes it."""

    __slots__ = ()


def text(value: object) -> Html:
    """Any text as it may stand in a page: escaped, secrets masked, what turns or hides characters by its name."""
    return Html(html.escape(visible(masked(str(value))), quote=True))


def el(tag: str, *children: object, **attributes: object) -> Html:
    """An element. Children that are no markup are text; an attribute that is None is left out, `cls` is `class`."""
    given = "".join(
        f' {name.removesuffix("_").replace("_", "-") if name != "cls" else "class"}="{text(value)}"'
        for name, value in attributes.items()
        if value is not None
    )
    inner = join(children)
    return Html(f"<{tag}{given}/>" if tag in _VOID and not inner else f"<{tag}{given}>{inner}</{tag}>")


def join(parts: Iterable[object]) -> Html:
    """Parts one behind the other; those that are no markup are text, None is nothing."""
    return Html("".join(part if isinstance(part, Html) else text(part) for part in parts if part is not None))


def shell(page: str, style: str, script: str, **slots: Html) -> Html:
    """A page of ours, with its style and script, and slots (`@NAME@`) for markup.

    All are put in at once: what a slot holds is never looked through for others.
    """
    parts = {"STYLE": style, "SCRIPT": script, **slots}
    made, rest = [], page
    while True:
        before, at, after = rest.partition("@")
        made.append(before)
        name, end, behind = after.partition("@")
        if not at:
            return Html("".join(made))
        if end and name in parts:
            made.append(parts[name])
            rest = behind
        else:
            made.append(at)
            rest = after


def data(values: Any) -> str:
    """JSON for an attribute; it is escaped there as any other text."""
    return json.dumps(values, separators=(",", ":"), allow_nan=False)


def table(rows: Iterable[Iterable[object]], heads: Iterable[object] = (), *, cls: str = "") -> Html:
    """Rows of cells under heads; the first column is the name of its row."""
    head = [el("thead", el("tr", *(el("th", cell, scope="col") for cell in heads)))] if heads else []
    body = el("tbody", *(_row(tuple(cells)) for cells in rows))
    return el("div", el("table", *head, body, cls=cls or None), cls="wide")


def _row(cells: tuple[object, ...]) -> Html:
    return el("tr", el("th", cells[0], scope="row"), *(el("td", cell) for cell in cells[1:]))


def fold(summary: str, *inside: object) -> Html:
    """Something that is shown when asked for."""
    return el("details", el("summary", summary), *inside)


def missing(what: str) -> Html:
    """A line that says what is not here, and why."""
    return el("p", what, cls="missing")
