"""The data of a run in its report: sources, what was left out and why, lengths, and a row as it is taught."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fulltune.reporting.figures import counted, percent
from fulltune.reporting.markup import Html, el, join, missing, table
from fulltune.reporting.results import section
from fulltune.reporting.story import Story

_PLACES = 3
_BARS = 13
"""Bars of a histogram, at most."""


@dataclass(frozen=True, slots=True)
class Taught:
    """One training row as the model sees it, cut where teaching begins and ends."""

    origin: str
    tokens: int
    taught: int
    pieces: Sequence[tuple[str, bool, bool]]
    """(text, whether it is taught, whether it is a control token)."""
    left_out: int = 0
    """Tokens at its end that are not shown."""


@dataclass(frozen=True, slots=True)
class Beside:
    """What the prepared data tells besides its card: a row as it is taught, and every row's length."""

    example: Taught | None = None
    lengths: Sequence[int] = ()
    why: str = ""
    """Why there is no example."""


def data(story: Story, beside: Beside) -> Html:
    """Where rows came from, what was left out and why, how long they are, and what of one is taught."""
    card = story.data
    if not card:
        return section("Data", "what was learned from", missing("data.json is not there: no data was prepared."))
    sources = [
        (source["path"], split, source.get("format", ""), f"{source['rows']:,}", f"{count:,}")
        for split, several in card.get("sources", {}).items()
        for source, count in zip(several, _given(card, split), strict=False)
        if count
    ]
    parts: list[Html | None] = [
        table(sources, ("source", "for", "format", "rows", "examples taken"), cls="texts"),
        _splits(card),
    ]
    parts += [_dropped(card), _lengths(card, beside.lengths), _example(beside), _findings(card)]
    return section("Data", "what was learned from", *parts)


def _given(card: Mapping[str, Any], split: str) -> Sequence[int]:
    """How many examples of a split each of its sources gave."""
    given: Sequence[int] = (card.get("splits", {}).get(split) or {}).get("by_source") or ()
    return given


def _splits(card: Mapping[str, Any]) -> Html:
    rows = [
        (
            name,
            f"{split['examples']:,}",
            f"{split['tokens']:,}",
            percent(split["supervised_tokens"] / split["tokens"]) if split["tokens"] else "",
            *(f"{split['lengths'][key]:,}" for key in ("min", "p50", "p99", "max")),
        )
        for name, split in card.get("splits", {}).items()
        if split["examples"]
    ]
    heads = ("split", "examples", "tokens", "taught", "shortest", "median", "99%", "longest")
    return join([el("h3", "Splits, lengths in tokens"), table(rows, heads)])


def _dropped(card: Mapping[str, Any]) -> Html:
    title = el("h3", "Left out")
    dropped = card.get("dropped", {})
    notes = [el("li", f"{name.replace('_', ' ')}: {where}") for name, where in card.get("notes", {}).items()]
    said = el(
        "p",
        f"Of {counted(card['rows'], 'row')} {card['kept']:,} were kept; {card.get('truncated', 0):,} were cut short.",
    )
    rows = [
        (reason.replace("_", " "), f"{count:,}", percent(count / max(card["rows"], 1)))
        for reason, count in dropped.items()
    ]
    why = table(rows, ("reason", "rows", "share")) if rows else el("p", "No row was left out.", cls="faint")
    return join([title, said, why, el("ul", *notes, cls="cautions") if notes else None])


def _lengths(card: Mapping[str, Any], lengths: Sequence[int]) -> Html:
    title = el("h3", "Lengths of training examples, in tokens")
    if len(lengths):
        return join([title, bars(histogram(lengths))])
    known = ((card.get("doctor") or {}).get("lengths") or {}).get("histogram") or {}
    if not known:
        return join([title, missing("Lengths were not kept.")])
    return join([title, bars([(f"up to {int(bound):,}", count) for bound, count in known.items()])])


def histogram(lengths: Sequence[int]) -> list[tuple[str, int]]:
    """Counts of lengths in bins of one round width, from the shortest to the longest."""
    low, high = int(min(lengths)), int(max(lengths))
    width = next(
        step * 10**power for power in range(12) for step in (1, 2, 5) if (high - low) // (step * 10**power) < _BARS
    )
    first = low // width
    counts = [0] * (high // width - first + 1)
    for length in lengths:
        counts[int(length) // width - first] += 1
    if width == 1:
        return [(f"{first + n:,}", count) for n, count in enumerate(counts)]
    return [(f"{(first + n) * width:,}–{(first + n + 1) * width - 1:,}", count) for n, count in enumerate(counts)]


def bars(rows: Sequence[tuple[str, float]], told: Sequence[str] = ()) -> Html:
    """A horizontal bar for each row; the longest fills the width."""
    most = max((value for _, value in rows), default=0) or 1
    shown = told or [f"{value:,}" for _, value in rows]
    cells = [
        cell
        for (name, value), said in zip(rows, shown, strict=True)
        for cell in (el("span", name), _bar(value / most), el("span", said, cls="faint"))
    ]
    return el("div", *cells, cls="bars")


def _bar(share: float) -> Html:
    return el("i", style=f"width:{100 * share:.1f}%") if share > 0 else el("span")


def _example(beside: Beside) -> Html:
    title = el("h3", "A row as the model is taught it")
    row = beside.example
    if row is None:
        return join([title, missing(f"Not shown: {beside.why or 'the prepared data is not there'}.")])
    pieces = [
        _stretch("".join(text for text, *_ in group), taught, special)
        for (taught, special), group in itertools.groupby(row.pieces, key=lambda piece: piece[1:])
    ]
    rest = el("span", f" … and {counted(row.left_out, 'more token')}", cls="faint") if row.left_out else None
    said = f"{row.origin} · {counted(row.tokens, 'token')}, {row.taught:,} of them taught"
    key = el("p", el("mark", "marked"), " is what the model learns to write; all else it only reads.", cls="faint")
    return join([title, el("p", said, cls="faint"), el("pre", *pieces, rest, cls="taught-text", dir="auto"), key])


def _stretch(text: str, taught: bool, special: bool) -> object:
    if not taught and not special:
        return text
    return el("mark" if taught else "span", text, cls="special" if special else None)


def _findings(card: Mapping[str, Any]) -> Html | None:
    found = (card.get("doctor") or {}).get("findings") or []
    if not found:
        return None
    rows = [
        (each["what"], f"{each['count']:,}", each["policy"], ", ".join(map(str, each["places"][:_PLACES])))
        for each in found
    ]
    return join(
        [el("h3", "What is odd about the rows"), table(rows, ("", "rows", "policy", "first places"), cls="texts")]
    )
