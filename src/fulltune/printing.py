"""How results are written to standard output: JSON for programs, a table for people. No secrets, nothing to obey."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fulltune.base.blend import Blend
from fulltune.base.files import to_json
from fulltune.base.gate import GateVerdict
from fulltune.base.records import EvalReport, Plan, RunRecord
from fulltune.base.results import Examination, SuiteReport, Wins
from fulltune.base.secrets import masked, masked_tree
from fulltune.base.sweeps import Sweep
from fulltune.base.visible import visible


def as_json(values: Any, *, rows: bool = False) -> str:
    """Indented, every character as it is. `rows`: they are the user's data, which is shown as it is."""
    return json.dumps(values if rows else masked_tree(values, keys=False), indent=2, ensure_ascii=False)


def as_table(values: Mapping[str, Any]) -> str:
    """A name and a value a line."""
    width = max(map(len, values))
    return "\n".join(f"{name.replace('_', ' '):<{width}}  {plain(str(value))}" for name, value in values.items())


def plain(text: str) -> str:
    """What a person may be shown of a message: secrets masked, control characters by their names."""
    return visible(masked(text))


def plan(made: Plan) -> Mapping[str, Any]:
    """Every number of a plan, those that come in lists one by one."""
    apart = ("notes", "mix", "dtypes", "memory", "groups", "chain")
    shown = {name: value for name, value in to_json(made).items() if name not in apart}
    sources = {f"mix {number}": source for number, source in enumerate(made.mix, 1)} if len(made.mix) > 1 else {}
    groups = {f"group {number}": group for number, group in enumerate(made.groups, 1)}
    memory = {} if made.memory is None else made.memory.rows()
    shown |= {f"earlier task {number}": task for number, task in enumerate(made.chain, 1)}
    return {**shown, **made.dtypes.rows(), **groups, **sources, **memory}


def blend(made: Blend) -> str:
    """A row for each mixture."""
    names = [name for name in made.points[0].scores if name.endswith(".loss")]
    lines = [f"{number}: {plain(model)}" for number, model in enumerate(made.models, 1)]
    heads = [f"part of {number}" for number in range(1, len(made.models) + 1)]
    lines.append("".join(f"{head:>12}" for head in heads) + "".join(f"{name:>{len(name) + 3}}" for name in names))
    for point in made.points:
        parts = "".join(f"{part:>12.4g}" for part in point.parts)
        lines.append(parts + "".join(f"{point.scores[name]:>{len(name) + 3}.4f}" for name in names))
    if made.written is not None:
        lines.append(f"written and verified: {plain(made.written)}")
    return "\n".join(lines)


def sweep(made: Sweep) -> str:
    """A row for each trial, the best first; then what follows from them."""
    fields = [axis.field for axis in made.axes]
    kept = any(trial.retention is not None for trial in made.trials)
    rows: list[tuple[str, ...]] = [
        ("rank", made.by, *(["retention.loss"] if kept else []), *fields, "tokens", "time", "state", "trial", "")
    ]
    for trial in made.trials:
        scores = [trial.score, *([trial.retention] if kept else [])]
        rows.append(
            (
                "-" if trial.rank is None else str(trial.rank),
                *("-" if score is None else f"{score:.4f}" for score in scores),
                *(_value(trial.values.get(field)) for field in fields),
                f"{trial.tokens:,}",
                f"{trial.seconds:.1f} s",
                trial.state,
                str(trial.number),
                trial.reason,
            )
        )
    lines = [_aligned(rows), ""]
    if made.by in made.before:
        lines.append(f"the base: {made.by} {made.before[made.by]:.4f}")
    lines += [f"advice: {said}" for said in made.advice] + [f"note: {note}" for note in made.notes]
    if made.best is not None:
        lines.append(f"best recipe: {made.best}")
    lines.append(f"page: {Path(made.folder, 'sweep.html')}")
    return plain("\n".join(lines))


def _value(value: Any) -> str:
    return value if isinstance(value, str) else f"{value:g}" if isinstance(value, float) else json.dumps(value)


def outcome(record: RunRecord) -> Mapping[str, Any]:
    """The few figures that a person wants at the end."""
    shown: dict[str, Any] = {}
    after = next((report for report in record.evaluations if report.step == record.result_step), None)
    if record.baseline is not None and after is not None:
        for name, score in after.scores.items():
            old = record.baseline.scores.get(name)  # none of what was not measured yet when the run began
            shown[name] = f"{score:.4f}" if old is None else f"{old:.4f} -> {score:.4f}"
    asked = {(report.step, report.suite): report for report in record.suites}
    for (step, suite), report in asked.items():
        before = asked.get((0, suite))
        if step == record.result_step and before is not None:
            for name, score in report.scores.items():
                was = f"{before.scores[name]:.4f} -> " if name in before.scores else ""
                shown[f"{suite}.{name}"] = f"{was}{score:.4f} {_interval(report, name)}".rstrip()
    if record.verdict is not None:
        shown["verdict"] = record.verdict.headline
        if record.verdict.reasons:
            shown["note" if record.verdict.ship else "because"] = "; ".join(record.verdict.reasons)
    shown["updates"] = f"{record.progress.update}, the result is from {record.result_step}"
    shown["time"] = f"{record.progress.seconds:.1f} s of training"
    shown["peak_memory"] = f"{record.peak_bytes / 2**30:.2f} GiB"
    shown["model"] = record.result
    shown["report"] = str(Path(record.result).with_name("report.html"))
    return shown


def verdict(made: GateVerdict) -> str:
    """One line, and one for each reason."""
    return "\n".join(map(plain, (made.headline, *made.reasons)))


def scores(reports: Mapping[str, EvalReport]) -> str:
    """A column for each model, a row for each score."""
    names = list(next(iter(reports.values())).scores)
    width = max(map(len, names))
    lines = [" " * width + "".join(f"{who:>14}" for who in reports)]
    for name in names:
        lines.append(f"{name:<{width}}" + "".join(f"{report.scores[name]:>14.4f}" for report in reports.values()))
    return "\n".join(lines)


def examination(made: Examination) -> str:
    """A row for each model, suite and metric with its interval; then one for each paired test."""
    rows: list[tuple[str, ...]] = [("suite", "metric", "model", "score", "interval", "questions", "")]
    for report in made.reports:
        for name, score in report.scores.items():
            what = f"{100 * report.confidence:g}%, {report.better[name]} is better"
            found = (f"{score:.4f}", _interval(report, name), f"{report.questions:,}", what)
            rows.append((report.suite, name, report.model, *found))
    blocks = [_aligned(rows)]
    if made.comparisons:
        rows = [("suite", "metric", "difference", "interval", "p", "test", "")]
        for pair in made.comparisons:
            for name, test in pair.metrics.items():
                low, high = test.interval
                counts = f"{pair.one} above on {test.higher:,}, below on {test.lower:,} of {test.questions:,}"
                told = (f"{test.difference:+.4f}", f"[{low:+.4f}, {high:+.4f}]", f"{test.p:.3g}", test.test, counts)
                rows.append((pair.suite, name, *told))
        pair = made.comparisons[0]
        blocks.append(f"{pair.one} minus {pair.other}, the same questions:\n{_aligned(rows)}")
    if made.judged:
        blocks.append(f"by the judge, in both orders:\n{preferred(made.judged)}")
    blocks.append(
        f"answers and records: {made.folder}" if made.folder else "answers are not kept; --out DIR keeps them"
    )
    return plain("\n\n".join(blocks))


def preferred(found: Sequence[Wins]) -> str:
    """A row for each model: how often it was preferred, and its part of the prompts that are no ties."""
    rows: list[tuple[str, ...]] = [("suite", "model", "wins", "ties", "prompts", "wins of decided", "interval", "")]
    for wins in found:
        for name, count in ((wins.one, wins.one_wins), (wins.other, wins.other_wins)):
            low, high = wins.intervals.get(name, (0.0, 1.0))
            share = f"{wins.shares[name]:.1%}" if wins.shares else "all are ties"
            span = f"[{low:.1%}, {high:.1%}]" if wins.shares else ""
            swayed = f"; {wins.swayed:,} ties since the order decided" if wins.swayed else ""
            sure = f"{100 * wins.confidence:g}% Wilson, exact p {wins.p:.3g}{swayed}"
            rows.append((wins.suite, name, f"{count:,}", f"{wins.ties:,}", f"{wins.prompts:,}", share, span, sure))
    return plain(_aligned(rows))


def _interval(report: SuiteReport, name: str) -> str:
    """As it is written; nothing of a score that has none."""
    if name not in report.intervals:
        return ""
    low, high = report.intervals[name]
    return f"[{low:.4f}, {high:.4f}]"


def _aligned(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )
