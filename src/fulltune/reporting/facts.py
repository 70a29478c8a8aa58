"""The second half of a report: the data, the plan beside what came of it, how far weights moved, how to do it again."""

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fulltune.reporting.figures import counted, duration, number, percent, size
from fulltune.reporting.markup import Html, el, fold, join, missing, table
from fulltune.reporting.results import section
from fulltune.reporting.story import Story

_ODD = 40
"""Warnings that are listed."""
_PLACES = 3
_BARS = 18
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
        el("mark" if taught else "span", text, cls="special" if special else None) if taught or special else text
        for text, taught, special in row.pieces
    ]
    rest = el("span", f" … and {counted(row.left_out, 'more token')}", cls="faint") if row.left_out else None
    said = f"{row.origin} · {counted(row.tokens, 'token')}, {row.taught:,} of them taught"
    key = el("p", el("mark", "marked"), " is what the model learns to write; all else it only reads.", cls="faint")
    return join([title, el("p", said, cls="faint"), el("pre", *pieces, rest, cls="taught-text", dir="auto"), key])


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


def plan(story: Story) -> Html:
    """Each derived number beside what was done."""
    planned, done = story.plan, story.record.get("progress") or {}
    if not planned:
        return section("Plan and actual", "what was to be done", missing("plan.json is not there."))
    tokens, seconds = (sum(value for value in story.columns[name] if value == value) for name in ("tokens", "seconds"))
    rows: list[tuple[str, str, str]] = [
        ("updates", f"{planned['updates']:,}, {planned['warmup_updates']:,} of them warm-up", f"{story.last:,}"),
        ("examples", _maybe(planned.get("examples")), _maybe(done.get("position"))),
        ("tokens", "", f"{done.get('tokens', int(tokens)):,}"),
        ("taught tokens", "", _maybe(done.get("supervised_tokens"))),
        ("time of training", "", duration(done.get("seconds", seconds))),
        ("speed", "", f"{tokens / seconds:,.0f} tokens/s" if seconds > 0 else ""),
        (
            "largest memory",
            _forecast(planned),
            size(story.record["peak_bytes"]) if "peak_bytes" in story.record else "",
        ),
        (
            "micro-batches",
            f"up to {planned['micro_examples']:,} examples, {planned['micro_tokens']:,} tokens",
            _halved(done),
        ),
        ("layout", str(planned["layout"]), ""),
        ("precision", str(planned["precision"]), ""),
        ("updates skipped", "0", _maybe(done.get("skipped"))),
        ("rollbacks", "0", _maybe(done.get("rollbacks"))),
        ("result", "", "" if story.result_step is None else f"update {story.result_step:,}"),
    ]
    rows = [row for row in rows if row[1] or row[2]]
    note = "blank where the plan names no figure"
    mixed = planned.get("mix") or []
    mix = None
    if len(mixed) > 1:
        told = [
            (m["path"], "replay" if m["replay"] else "train", percent(m["share"]), f"{m['passes']:.2f}") for m in mixed
        ]
        mix = join([el("h3", "Mix"), table(told, ("source", "", "share", "times seen"), cls="texts")])
    return section("Plan and actual", note, table(rows, ("", "planned", "actual"), cls="pairs"), mix, _odd(story))


def _maybe(value: int | None) -> str:
    return "" if value is None else f"{value:,}"


def _halved(done: Mapping[str, Any]) -> str:
    count = done.get("halvings")
    return "" if count is None else f"halved {counted(count, 'time')}" if count else "as planned"


def _forecast(planned: Mapping[str, Any]) -> str:
    """What memory was expected, where the plan says so."""
    parts = (planned.get("memory") or {}).get("parts") or []
    if not parts:
        return ""
    low, high = (sum(part[name] for part in parts) for name in ("low", "high"))
    return f"{size(low)} to {size(high)}"


def _odd(story: Story) -> Html | None:
    if not story.odd:
        return None
    rows = []
    for line in story.odd[:_ODD]:
        what = line.get("what") or f"{line.get('field')}: {line.get('before')!r} -> {line.get('now')!r}"
        places = list(map(str, line.get("rows") or ()))
        more = f" and {len(places) - _PLACES:,} more" if len(places) > _PLACES else ""
        rows.append((f"{line.get('step', 0):,}", line["kind"], what, ", ".join(places[:_PLACES]) + more))
    rest = len(story.odd) - _ODD
    note = el("p", f"and {rest:,} more in journal.jsonl", cls="faint") if rest > 0 else None
    return join([el("h3", "What happened"), table(rows, ("update", "", "what", "rows"), cls="texts"), note])


def environment(story: Story) -> Html:
    """By what it was made, and how to make it again."""
    record, start = story.record, story.start
    versions = record.get("versions") or {
        name: start[name] for name in ("fulltune", "python", "torch") if name in start
    }
    machine, model = record.get("machine") or {}, record.get("model") or {}
    hardware = ""
    if machine:
        each = f"{machine['devices']} × {machine['name']}" if machine["kind"] == "cuda" else f"CPU {machine['name']}"
        hardware = f"{each}, {machine['cores']} cores, {size(machine['bytes_per_device'])} of memory"
        hardware += " each" if machine["devices"] > 1 else ""
    made = ""
    if model:
        made = f"{model['architecture']}, {counted(model['parameters'], 'parameter')}, {model['layers']} layers"
        made += f", stored in {model['dtype']}"
    rows = [
        ("model", made),
        ("hardware", hardware),
        (
            "engine",
            f"{start['engine']}, {counted(start.get('processes', 1), 'process', 'processes')}"
            if "engine" in start
            else "",
        ),
        ("versions", ", ".join(f"{name} {version}" for name, version in versions.items())),
        ("recipe", str(record.get("recipe") or start.get("recipe", ""))),
        ("data", str(story.data.get("fingerprint", ""))),
        ("chat template", str(story.data.get("template", ""))[:32]),
        ("result", record.get("result", "")),
        ("checked after writing", _checked(record)),
    ]
    rows = [row for row in rows if row[1]]
    command = f"fulltune train {shlex.quote(str(story.path / 'recipe.yaml'))} --out NEW-FOLDER"
    text = el("pre", story.recipe_text) if story.recipe_text else missing("recipe.yaml is not there.")
    return section(
        "How to reproduce",
        "by what it was made, and how to make it again",
        el(
            "p",
            "The recipe below has every setting, the seed too, and no secrets. With these versions and this data:",
        ),
        el("pre", command),
        table(rows, cls="pairs"),
        fold("the recipe, as resolved", text),
    )


def _checked(record: Mapping[str, Any]) -> str:
    difference = record.get("largest_logit_difference")
    if difference is None:
        return ""
    return f"loaded anew; the largest difference of logits is {number(float(difference))}"
