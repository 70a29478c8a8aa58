"""All that the doctor found: one list of findings with the policy of each, as text for people and JSON for programs."""

import itertools
import re
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pydantic import TypeAdapter

from fulltune.base.errors import DataError, Fault
from fulltune.base.files import to_json
from fulltune.data.doctor.found import NAMED, Found
from fulltune.data.doctor.labels import LabelFacts, LabelShift
from fulltune.data.doctor.lengths import LengthFacts
from fulltune.data.doctor.near import NearFacts
from fulltune.data.doctor.overlap import OverlapFacts
from fulltune.data.doctor.survey import SurveyFacts
from fulltune.recipe.checks import ANALYSES, PER_ROW, WHOLE, Policy, check_policies

_WIDTH = 100
"""Columns of a terminal that the text is made for."""
_SHOWN = 3
"""Places of a finding in the text."""
_SHOWN_PAIRS = 5
_AS = " (as "
"""Between a row and the one that it is nearly the same as; the text shows such pairs in a table of their own."""
_NO_ROWS = ("label_slip", "label_kinds")
"""Codes whose places are labels or types, and not rows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing that is odd: how many rows, where the first are, and what the caller wants done about it."""

    code: str
    count: int
    places: tuple[str, ...]
    policy: Policy
    what: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkup:
    """The facts of all analyses that were made; None for those that were not."""

    survey: SurveyFacts
    near: NearFacts | None = None
    leaks: NearFacts | None = None
    overlap: OverlapFacts | None = None
    lengths: LengthFacts | None = None
    labels: LabelFacts | None = None
    shifts: Mapping[str, LabelShift] = field(default_factory=dict)
    """How the labels of each side of the split differ from those of all."""


def findings(checkup: Checkup, policies: Mapping[str, Policy]) -> tuple[Finding, ...]:
    """What was found, by code, with the policy given for it (`keep` if none is). RecipeError for unknown ones.

    What is `off` is no finding, even if its analysis was made.
    """
    check_policies(policies)
    texts = {**PER_ROW, **WHOLE}
    return tuple(
        Finding(
            code=code,
            count=found.rows,
            places=found.places,
            policy=policies.get(code, "keep"),
            what=texts[code],
        )
        for code, found in sorted(_found(checkup))
        if policies.get(code) != "off"
    )


def refuse(found: Sequence[Finding]) -> None:
    """DataError with every finding whose policy is `error`."""
    faults = [
        Fault(
            f"{each.what} ({each.count} rows)", ", ".join(each.places), "mend the rows, or keep or drop them", each.code
        )
        for each in found
        if each.policy == "error"
    ]
    if faults:
        raise DataError(faults=faults)


def record(checkup: Checkup, found: Sequence[Finding]) -> dict[str, Any]:
    """Plain JSON values for a card; `off` names the analyses that were not made."""
    return {"findings": [to_json(finding) for finding in found], "off": _off(checkup), **to_json(checkup)}


def text(checkup: Checkup, found: Sequence[Finding]) -> str:
    """The report for a terminal of 100 columns or a file: plain lines, no colours."""
    parts = [_findings_text(found), _survey_text(checkup.survey)]
    parts += [_near_text("near-duplicates", "rows", checkup.near)] if checkup.near is not None else []
    parts += [_near_text("near leaks", "measured rows", checkup.leaks)] if checkup.leaks is not None else []
    parts += [_overlap_text(checkup.overlap)] if checkup.overlap is not None else []
    parts += [_lengths_text(checkup.lengths)] if checkup.lengths is not None else []
    parts += [_labels_text(checkup.labels, checkup.shifts)] if checkup.labels is not None else []
    parts += [f"off, so not looked for: {', '.join(off)}"] if (off := _off(checkup)) else []
    return "\n\n".join(parts)


def _off(checkup: Checkup) -> list[str]:
    """Codes of the analyses that were not made."""
    made = zip(ANALYSES, (checkup.near, checkup.leaks, checkup.overlap), strict=True)
    return [code for code, facts in made if facts is None]


def _found(checkup: Checkup) -> Iterator[tuple[str, Found]]:
    yield from checkup.survey.found.items()
    for code, near in (("near_duplicate", checkup.near), ("near_leak", checkup.leaks)):
        if near is not None and near.surplus:
            yield (
                code,
                Found(near.surplus, near.surplus, tuple(f"{p.second}{_AS}{p.first})" for p in near.pairs)),
            )
    if (overlap := checkup.overlap) is not None and overlap.rows_hit:
        yield "benchmark_overlap", Found(overlap.rows_hit, overlap.rows_hit, overlap.places)
    if (labels := checkup.labels) is not None:
        if labels.merges:
            rows = sum(merge.rows for merge in labels.merges)
            yield "label_slip", Found(rows, rows, tuple(f"{m.label!r} for {m.into!r}" for m in labels.merges))
        if labels.empty:
            yield "empty_label", Found(labels.empty, labels.empty, ())
        if len(labels.kinds) > 1:
            yield "label_kinds", Found(labels.rows, len(labels.kinds), labels.kinds)


def _table(title: str, rows: Sequence[Sequence[str]], heads: Sequence[str] = ()) -> str:
    """Lines under a title: columns of numbers to the right, the last one wrapped where the terminal ends."""
    lines = textwrap.wrap(title, _WIDTH, subsequent_indent="  ", break_on_hyphens=False)
    if not rows:
        return "\n".join(lines)
    table = [heads, *rows] if heads else rows
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    numeric = [all(cell[:1].isdigit() for cell in column) for column in zip(*rows, strict=True)]
    before = 2 + sum(widths[:-1]) + 2 * (len(widths) - 1)
    for row in table:
        cells = [c.rjust(w) if n else c.ljust(w) for c, w, n in zip(row, widths, numeric, strict=True)]
        last = textwrap.wrap(row[-1], max(_WIDTH - before, 40), break_long_words=False, break_on_hyphens=False)
        cells[-1] = cells[-1] if numeric[-1] or not last else last[0]
        lines.append(("  " + "  ".join(cells)).rstrip())
        lines += [" " * before + more for more in last[1:]]
    return "\n".join(lines)


def _findings_text(found: Sequence[Finding]) -> str:
    if not found:
        return "findings: nothing odd"
    rows = [(each.code, f"{each.count:,}", each.policy, _places(each)) for each in found]
    return _table("findings", rows, ("", "rows", "policy", "first places"))


def _places(finding: Finding) -> str:
    """The first places; those of one file are named by their lines after the first."""
    shown: list[str] = []
    file = ""
    for place in (place.partition(_AS)[0] for place in finding.places[:_SHOWN]):
        stem, _, line = place.rpartition(":")
        shown.append(line if line.isdigit() and stem == file else place)
        file = stem
    more = (len(finding.places) if finding.code in _NO_ROWS else finding.count) - len(shown)
    return ", ".join(shown) + (f" and {more:,} more" if more > 0 and shown else "")


def _survey_text(facts: SurveyFacts) -> str:
    rows = [
        ("examples", f"{facts.examples:,}, of which {facts.chats:,} conversations, with {facts.answers:,} answers"),
        ("turns", _counts(facts.turns, facts.chats)),
        ("characters of an answer", _listed(facts.characters)),
        ("languages (a guess)", _counts(facts.languages, facts.examples)),
    ]
    rules = dict(sorted(facts.repetition.items(), key=lambda item: int(re.sub(r"\D", "", item[0]) or 0)))
    rows += [("repetition (answers)", _listed(rules))] if rules else []
    return _table("survey", rows)


def _listed(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {count:,}" for name, count in counts.items())


def _counts(counts: Mapping[str, int], total: int, most: int = 6) -> str:
    ordered = sorted(counts.items(), key=lambda item: -item[1])
    shown = ", ".join(f"{name}: {count:,} ({count / max(total, 1):.1%})" for name, count in ordered[:most])
    return shown + (f" and {len(ordered) - most} others" if len(ordered) > most else "")


def _near_text(title: str, what: str, facts: NearFacts) -> str:
    notes = [f"{facts.surplus:,} of {facts.rows:,} {what} at similarity {facts.threshold:g} or more"]
    notes += [f"{facts.exact:,} exact repetitions besides"] if facts.exact else []
    notes += [f"{facts.uncompared:,} candidates not compared"] if facts.uncompared else []
    rows = [(f"{pair.similarity:.3f}", pair.first, pair.second) for pair in facts.pairs[:_SHOWN_PAIRS]]
    more = facts.surplus - len(rows)
    return _table(f"{title}: {', '.join(notes)}", rows) + (f"\n  and {more:,} more" if more else "")


def _overlap_text(facts: OverlapFacts) -> str:
    looked_for = facts.texts - facts.texts_too_short
    rows = [
        ("training rows", f"{facts.rows_hit:,}", f"{facts.rows:,}", f"{facts.share:.2%}"),
        ("benchmark texts", f"{facts.texts_hit:,}", f"{looked_for:,}", f"{facts.texts_share:.2%}"),
    ]
    short = f"\n  texts too short to be looked for: {facts.texts_too_short:,}" if facts.texts_too_short else ""
    title = f"overlap with benchmark texts by {facts.ngram} words in a row"
    return _table(title, rows, ("", "hit", "of", "share")) + short


def _lengths_text(facts: LengthFacts) -> str:
    epoch = f"{facts.tokens_per_epoch:,} tokens an epoch, {facts.supervised_per_epoch:,} of them taught"
    title = f"lengths in tokens: {_listed(facts.quantiles)}; {epoch}"
    rows = [
        (f"{cut.max_length:,}", f"{cut.rows_share:.2%}", f"{cut.supervised_share:.2%}", f"{cut.rows_untaught:,}")
        for cut in facts.cuts
    ]
    return _table(title, rows, ("at max_length", "rows cut", "taught tokens cut", "rows that teach nothing then"))


def _labels_text(facts: LabelFacts, shifts: Mapping[str, LabelShift]) -> str:
    rows = [(label, f"{count:,}") for label, count in itertools.islice(facts.counts.items(), NAMED)]
    more = len(facts.counts) - len(rows)
    lines = [_table(f"labels of {facts.rows:,} rows, rarest first; evenness {facts.evenness:.2f}", rows)]
    lines += [f"  and {more:,} more"] if more else []
    lines += [f"  {merge.label!r} -> {merge.into!r}? {merge.why}" for merge in facts.merges]
    lines += [
        f"  {side}: {shift.rows:,} rows, {shift.distance:.1%} of them would need another label for the same mix; most "
        f"off is {shift.label} by {shift.points:+.1f} points"
        for side, shift in shifts.items()
    ]
    return "\n".join(lines)


def retold(card: Mapping[str, Any]) -> str:
    """The report again, from what `record` made of it."""
    facts = TypeAdapter(Checkup).validate_python(
        {name: value for name, value in card.items() if name not in ("findings", "off")}
    )
    return text(facts, TypeAdapter(tuple[Finding, ...]).validate_python(card["findings"]))
