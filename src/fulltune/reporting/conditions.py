"""Under which conditions a run was made: the plan beside what came of it, what happened, and how to do it again."""

import shlex
from collections.abc import Mapping
from typing import Any

from fulltune.reporting.figures import counted, duration, number, percent, size
from fulltune.reporting.markup import Html, el, fold, join, missing, table
from fulltune.reporting.results import section
from fulltune.reporting.story import Story

_ODD = 40
"""Warnings that are listed."""
_PLACES = 3
"""Rows that a warning names."""


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
        ("checkpointing", planned.get("checkpointing") or "", ""),
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
