"""All that the doctor found: one list of findings with the policy of each, as text for people and JSON for programs."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from pydantic import TypeAdapter

from fulltune.base.errors import DataError, Fault, RecipeError
from fulltune.base.files import to_json
from fulltune.data.doctor.found import NAMED, Found
from fulltune.data.doctor.labels import LabelFacts
from fulltune.data.doctor.lengths import LengthFacts
from fulltune.data.doctor.near import NearFacts
from fulltune.data.doctor.overlap import OverlapFacts
from fulltune.data.doctor.survey import SurveyFacts

Policy = Literal["keep", "drop", "error"]

PER_ROW: Mapping[str, str] = {
    "empty_answer": "an answer without a visible character: the model would learn to say nothing",
    "repetition": "an answer repeats itself (rules of Gopher, Rae et al. 2021)",
    "control_char": "control characters other than tab and line breaks",
    "lost_character": "U+FFFD: characters were lost when the text was decoded",
    "mojibake": "UTF-8 that was read as Latin-1 or Windows-1252, such as Ã© for é",
    "unicode_surrogate": "half of a surrogate pair: it cannot be written as UTF-8",
    "pii_email": "e-mail addresses",
    "pii_phone": "phone numbers (heuristic)",
    "pii_card": "card numbers that pass the Luhn check",
    "pii_iban": "account numbers (IBAN) that pass their check",
    "api_key": "what looks like a key of a service",
    "private_key": "the header of a private key",
    "benchmark_overlap": "the row shares words in a row with a benchmark text",
    "near_duplicate": "the row is nearly the same as one before it",
    "near_leak": "the measured row is nearly the same as a taught one: its score means little",
}
"""Codes that are about single rows, which can be left out, and what they mean."""
WHOLE: Mapping[str, str] = {
    "very_short_answer": "answers far shorter than the others",
    "very_long_answer": "answers far longer than the others",
    "label_slip": "labels that look like slips of others",
    "empty_label": "rows whose label is empty",
    "label_kinds": "labels of more than one type",
}
"""Codes that are about the data as a whole: no row can be left out by them."""


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


def findings(checkup: Checkup, policies: Mapping[str, Policy]) -> tuple[Finding, ...]:
    """What was found, by code, with the policy given for it (`keep` if none is). RecipeError for unknown ones."""
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
    )


def check_policies(policies: Mapping[str, str]) -> None:
    """RecipeError with every code and policy that does not exist, or that cannot be had."""
    faults = []
    for code, policy in policies.items():
        if code not in PER_ROW and code not in WHOLE:
            faults.append(Fault(f"there is no finding {code!r}", code, f"one of {', '.join([*PER_ROW, *WHOLE])}"))
        elif policy not in get_args(Policy):
            faults.append(Fault(f"there is no policy {policy!r}", code, "keep, drop or error"))
        elif policy == "drop" and code in WHOLE:
            faults.append(Fault(f"{code!r} is about the data as a whole: no row can be dropped", code, "keep or error"))
    if faults:
        raise RecipeError(faults=faults)


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
    """Plain JSON values for a card."""
    return {"findings": [to_json(finding) for finding in found], **to_json(checkup)}


def text(checkup: Checkup, found: Sequence[Finding]) -> str:
    """The report for a terminal or a file: plain lines, no colours."""
    parts = [_findings_text(found), _survey_text(checkup.survey)]
    if checkup.near is not None:
        parts.append(_near_text("near-duplicates", checkup.near))
    if checkup.leaks is not None:
        parts.append(_near_text("near leaks into what is measured", checkup.leaks))
    parts += [_overlap_text(checkup.overlap)] if checkup.overlap is not None else []
    parts += [_lengths_text(checkup.lengths)] if checkup.lengths is not None else []
    parts += [_labels_text(checkup.labels)] if checkup.labels is not None else []
    return "\n\n".join(parts)


def _found(checkup: Checkup) -> Iterator[tuple[str, Found]]:
    yield from checkup.survey.found.items()
    for code, near in (("near_duplicate", checkup.near), ("near_leak", checkup.leaks)):
        if near is not None and near.surplus:
            yield (
                code,
                Found(near.surplus, near.surplus, tuple(f"{p.second} (as {p.first})" for p in near.pairs)),
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


def _table(title: str, rows: Sequence[Sequence[str]]) -> str:
    """Lines under a title; all columns but the last are as wide as their widest cell, numbers to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)] if rows else []
    lines = [title]
    for row in rows:
        numeric = (cell[:1].isdigit() for cell in row)
        padded = (
            cell.rjust(width) if number else cell.ljust(width)
            for cell, width, number in zip(row, widths, numeric, strict=True)
        )
        lines.append(("  " + "  ".join(padded)).rstrip())
    return "\n".join(lines)


def _findings_text(found: Sequence[Finding]) -> str:
    if not found:
        return "findings: nothing odd"
    rows = [(f.code, f"{f.count:,}", f.policy, _places(f)) for f in found]
    return _table("findings (code, rows, policy, first places)", rows)


def _places(finding: Finding) -> str:
    shown = ", ".join(finding.places[:3])
    more = finding.count - min(len(finding.places), 3)
    return f"{shown} and {more:,} more" if more > 0 and shown else shown


def _survey_text(facts: SurveyFacts) -> str:
    rows = [
        ("examples", f"{facts.examples:,}, of which {facts.chats:,} conversations, with {facts.answers:,} answers"),
        ("turns", _counts(facts.turns, facts.chats)),
        ("characters of an answer", ", ".join(f"{name} {value:,}" for name, value in facts.characters.items())),
        ("languages (a guess)", _counts(facts.languages, facts.examples)),
    ]
    rows += [("repetition", ", ".join(f"{r} {n:,}" for r, n in facts.repetition.items()))] if facts.repetition else []
    return _table("survey", rows)


def _counts(counts: Mapping[str, int], total: int, most: int = 6) -> str:
    ordered = sorted(counts.items(), key=lambda item: -item[1])
    shown = ", ".join(f"{name}: {count:,} ({count / max(total, 1):.1%})" for name, count in ordered[:most])
    return shown + (f" and {len(ordered) - most} others" if len(ordered) > most else "")


def _near_text(title: str, facts: NearFacts) -> str:
    rows = [(f"{pair.similarity:.3f}", pair.first, pair.second) for pair in facts.pairs]
    exact = f", {facts.exact:,} exact repetitions besides" if facts.exact else ""
    missed = f", {facts.uncompared:,} candidates not compared" if facts.uncompared else ""
    told = f"{title}: {facts.surplus:,} of {facts.rows:,} rows at similarity {facts.threshold:g} or more{exact}{missed}"
    return _table(told, rows)


def _overlap_text(facts: OverlapFacts) -> str:
    short = f"; {facts.texts_too_short:,} are shorter and were not looked for" if facts.texts_too_short else ""
    rows = [
        (f"{facts.rows_hit:,}", f"of {facts.rows:,} training rows ({facts.share:.2%})"),
        (f"{facts.texts_hit:,}", f"of {facts.texts - facts.texts_too_short:,} texts ({facts.texts_share:.2%}){short}"),
    ]
    return _table(f"overlap with benchmark texts by {facts.ngram} words in a row", rows)


def _lengths_text(facts: LengthFacts) -> str:
    shown = ", ".join(f"{name} {value:,}" for name, value in facts.quantiles.items())
    epoch = f"{facts.tokens_per_epoch:,} tokens an epoch, {facts.supervised_per_epoch:,} taught"
    title = f"lengths in tokens: {shown}\n  {epoch}"
    rows = [
        (
            f"{cut.max_length:,}",
            f"{cut.rows_share:.2%} of rows and {cut.supervised_share:.2%} of supervised tokens are cut, "
            f"{cut.rows_untaught:,} rows teach nothing",
        )
        for cut in facts.cuts
    ]
    return _table(f"{title}\n  at max_length", rows)


def _labels_text(facts: LabelFacts) -> str:
    rows = [(label, f"{count:,}") for label, count in list(facts.counts.items())[:NAMED]]
    merges = "".join(f"\n  {m.label!r} -> {m.into!r}? {m.why}" for m in facts.merges)
    return _table(f"labels of {facts.rows:,} rows, rarest first; evenness {facts.evenness:.2f}", rows) + merges


def retold(card: Mapping[str, Any]) -> str:
    """The report again, from what `record` made of it."""
    facts = TypeAdapter(Checkup).validate_python({name: value for name, value in card.items() if name != "findings"})
    return text(facts, TypeAdapter(tuple[Finding, ...]).validate_python(card["findings"]))
