"""The result of training side by side, as Markdown."""

import argparse
from collections.abc import Iterator, Mapping, Sequence
from typing import Protocol

from benchmarks import report
from benchmarks.contestants.course import Trained
from benchmarks.machine import Occasion
from benchmarks.models import SHAPES
from benchmarks.speed import WARM, Pace, Work, bound, mfu, work
from benchmarks.summary import ratios, spread
from benchmarks.tokenised import Lesson

_QUIET, _EQUAL = 0.9, 0.005


class Found(Protocol):
    """What is shown besides the paces."""

    runs: dict[str, list[Trained]]
    heldout: dict[str, float]


def page(
    asked: argparse.Namespace,
    when: Occasion,
    lesson: Lesson,
    found: Found,
    paces: Mapping[str, Sequence[Pace]],
    rates: Mapping[str, float],
) -> str:
    """The first contestant is ours."""
    name = f"train-{asked.model}-{asked.data}-{asked.precision}"
    parts = [
        f"# Training, side by side: {asked.model}, {asked.data}, {asked.precision}",
        report.facts(dict(_facts(asked, when, lesson, found, rates))),
        _speed(asked, lesson, paces, rates),
        _rest(paces, found.heldout),
        f"![Tokens per second]({name}.svg)",
        "\n".join(f"- {line}" for line in _warnings(paces, found.heldout)) or "- Nothing is to be held against it.",
        "What is measured and how: [the benchmarks' README](../README.md).",
    ]
    return "\n\n".join(parts) + "\n"


def _facts(
    asked: argparse.Namespace, when: Occasion, lesson: Lesson, found: Found, rates: Mapping[str, float]
) -> Iterator[tuple[str, str]]:
    yield from report.heading(when)
    yield (
        "data",
        f"{lesson.examples} examples of {asked.data}, {lesson.tokens / lesson.examples:.0f} tokens each "
        f"({lesson.supervised / lesson.tokens:.0%} supervised, {lesson.longest} at most)",
    )
    yield (
        "runs",
        f"{asked.updates} updates of {asked.batch} examples, {WARM} of them not counted; {asked.repeats} rounds; "
        f"{asked.threads} threads",
    )
    said = ", ".join(f"{kind} {rate / 1e12:.3g}" for kind, rate in rates.items())
    limit = bound(_work(asked, lesson), rates)
    yield "matrix products", f"{said} (1e12 operations a second, best round); their bound is {limit:,.0f} tokens/s"
    yield "versions", report.versions({name: made[0].versions for name, made in found.runs.items()})


def _work(asked: argparse.Namespace, lesson: Lesson) -> Work:
    return work(SHAPES[asked.model], length=lesson.tokens / lesson.examples, taught=lesson.supervised / lesson.tokens)


def _speed(
    asked: argparse.Namespace, lesson: Lesson, paces: Mapping[str, Sequence[Pace]], rates: Mapping[str, float]
) -> str:
    """Medians over rounds; ratios are those within rounds."""
    ours, *_ = paces.values()
    cost = _work(asked, lesson)
    limit = bound(cost, rates)
    lines = []
    for name, runs in paces.items():
        tokens = spread([run.tokens for run in runs])
        faster = ratios([run.tokens for run in ours], [run.tokens for run in runs])
        lines.append(
            [
                name,
                f"{tokens.median:,.0f}",
                f"{tokens.low:,.0f} to {tokens.high:,.0f}",
                f"{spread([run.supervised for run in runs]).median:,.0f}",
                "1" if runs is ours else f"{faster.median:.2f} ({faster.low:.2f} to {faster.high:.2f})",
                f"{spread([run.seconds for run in runs]).median:.2f}",
                f"{mfu(tokens.median, cost, rates):.1%}",
                f"{tokens.median / limit:.1%}",
                f"{spread([run.share for run in runs]).median:.2f}",
            ]
        )
    head = ["contestant", "tokens/s", "range", "supervised/s", "fulltune is faster by"]
    return report.table([*head, "s per update", "MFU", "of the bound", "CPU share"], lines)


def _rest(paces: Mapping[str, Sequence[Pace]], heldout: Mapping[str, float]) -> str:
    """Memory, time before the first update, losses."""
    ours, *_ = paces.values()
    name_of_ours = next(iter(paces))
    lines = []
    for name, runs in paces.items():
        peak = spread([run.peak for run in runs])
        beside = ratios([run.peak for run in ours], [run.peak for run in runs])
        lines.append(
            [
                name,
                report.size(peak.median),
                "1" if runs is ours else f"{beside.median:.2f}",
                f"{spread([run.begun for run in runs]).median:.1f}",
                f"{spread([run.first for run in runs]).median:.1f}",
                f"{spread([run.prepared for run in runs]).median:.2f}",
                f"{runs[0].loss:.4f}",
                f"{heldout[name]:.4f}",
                f"{heldout[name] / heldout[name_of_ours] - 1:+.2%}",
            ]
        )
    head = ["contestant", "peak", "fulltune's peak, of it", "s to first update", "s of first update", "s to prepare"]
    return report.table([*head, "training loss", "held-out loss", "beside fulltune"], lines)


def _warnings(paces: Mapping[str, Sequence[Pace]], heldout: Mapping[str, float]) -> Iterator[str]:
    """What a reader must hold against the numbers."""
    ours = heldout[next(iter(paces))]
    for name, runs in paces.items():
        if busy := sum(run.share < _QUIET for run in runs):
            yield f"{name}: in {busy} of {len(runs)} rounds others were at work (CPU share below {_QUIET})."
        if abs(heldout[name] / ours - 1) > _EQUAL:
            yield f"{name}: its held-out loss is more than {_EQUAL:.1%} from fulltune's."
