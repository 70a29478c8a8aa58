"""Memory of fulltune's data preparation by the number of rows, and the time to fetch examples from what it prepared.

Each size is prepared in a fresh process that is watched from outside; then another one fetches at random positions.
"""

import argparse
import itertools
import json
import shutil
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import options, report
from benchmarks.contestants.task import Answer
from benchmarks.fresh import Contestant, Failed, Peak, execute, run
from benchmarks.machine import Occasion, occasion
from benchmarks.rows import BadCorpus
from benchmarks.summary import growth

OURS = Contestant("fulltune", "with_fulltune")
FETCH = Contestant("fetch", "fetch")


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """One size."""

    rows: int
    read: int
    """Bytes of the JSONL file."""
    answer: Answer
    peak: Peak
    fetch: dict[str, float]
    """Microseconds to `open` the store, `median` and `p99` of a fetch."""


def main(words: Sequence[str] | None = None) -> int:
    """Measure, show, write. Exit code 1 if fulltune could not be run, 130 if interrupted."""
    words = sys.argv[1:] if words is None else words
    asked = _asked(words)
    counts = sorted(set(asked.rows))
    when = occasion("benchmarks.memory", words)
    try:
        with options.bench(asked, counts) as bench:
            measured = [measure(bench, count) for count in counts]
            digests = bench.facts(counts)
    except (Failed, BadCorpus, OSError) as fault:
        print(f"error: {fault}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    shown = page(asked, when, measured)
    print(shown)
    record = {"benchmark": "memory", "occasion": when, "asked": vars(asked), "sha256": digests}
    places = report.write(asked.results, "memory", shown, record | results(measured))
    print(f"written: {', '.join(place.name for place in places)} in {asked.results.name}/", file=sys.stderr)
    return 0


def _asked(words: Sequence[str]) -> argparse.Namespace:
    parser = options.parser(__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--rows", type=options.positive, nargs="+", default=[100_000, 1_000_000], help="sizes")
    return parser.parse_args(words)


def measure(bench: options.Bench, count: int) -> Measured:
    """Prepare so many rows, fetch from them, remove them."""
    task = bench.task(f"run-{count}", count)
    ran = run(OURS, task, watched=True)
    assert ran.peak is not None
    print(f"{count:,} rows: {ran.answer.seconds['prepare']:.1f} s", file=sys.stderr, flush=True)
    execute(FETCH, task, watched=False)
    fetch = json.loads(Path(task.answer).read_text(encoding="utf-8"))
    shutil.rmtree(task.out)
    return Measured(rows=count, read=bench.rows(count).stat().st_size, answer=ran.answer, peak=ran.peak, fetch=fetch)


def page(asked: argparse.Namespace, when: Occasion, measured: Sequence[Measured]) -> str:
    """The result as Markdown."""
    parts = ["# Memory of data preparation", report.facts(dict(_facts(asked, when, measured))), _peaks(measured)]
    if len(measured) > 1:
        parts.append(_growth(measured))
    parts += [_fetches(measured), "What is measured and how: [the benchmarks' README](../README.md)."]
    return "\n\n".join(parts) + "\n"


def _facts(asked: argparse.Namespace, when: Occasion, measured: Sequence[Measured]) -> Iterator[tuple[str, str]]:
    yield from report.heading(when)
    answer = measured[-1].answer
    yield "data", f"{answer.tokens / answer.rows:,.0f} tokens a row; {asked.processes} processes"
    yield "versions", report.versions({OURS.name: answer.versions})
    for remark in answer.remarks.values():
        yield "note", remark


def _peaks(measured: Sequence[Measured]) -> str:
    """Seconds are those of a watched run, and no benchmark of speed."""
    lines = [
        [
            f"{one.rows:,}",
            f"{one.answer.seconds['prepare']:.1f}",
            report.size(one.read),
            report.size(one.answer.written),
            report.size(one.peak.pss),
            report.size(one.peak.own),
            report.size(one.peak.main),
            report.size(one.answer.main_peak),
            str(one.peak.processes),
        ]
        for one in measured
    ]
    head = ["rows", "seconds, watched", "read", "written", "peak, all", "of it no files"]
    return report.table([*head, "main, no files", "main, VmHWM", "processes"], lines)


def _growth(measured: Sequence[Measured]) -> str:
    lines = [
        [f"{small.rows:,} to {large.rows:,}", *(f"{grown:,.1f}" for grown in growths(small, large).values())]
        for small, large in itertools.pairwise(measured)
    ]
    return report.table(["rows", "bytes a row, all processes", "bytes a row, main process"], lines)


def _fetches(measured: Sequence[Measured]) -> str:
    lines = [
        [f"{one.rows:,}", f"{one.fetch['open'] / 1000:.2f}"] + [f"{one.fetch[what]:.1f}" for what in ("median", "p99")]
        for one in measured
    ]
    return report.table(["rows", "open the store, ms", "fetch, median, us", "fetch, p99, us"], lines)


def growths(small: Measured, large: Measured) -> dict[str, float]:
    """Bytes for each row more, of memory that is no mapped file."""
    return {
        "all": growth((small.rows, small.peak.own), (large.rows, large.peak.own)),
        "main": growth((small.rows, small.peak.main), (large.rows, large.peak.main)),
    }


def results(measured: Sequence[Measured]) -> dict[str, Any]:
    """Every number."""
    return {
        "measured": measured,
        "bytes_a_row": [
            {"from": small.rows, "to": large.rows} | growths(small, large)
            for small, large in itertools.pairwise(measured)
        ],
    }


if __name__ == "__main__":
    sys.exit(main())
