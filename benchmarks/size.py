"""Time of an update by the number of rows that a run learns from: stores of several sizes, one update each in turn.

Every store is prepared from rows that are tokenised already, of the same lengths. Data time is what it takes to find
the examples of an update and lay them into micro-batches.
"""

import argparse
import json
import resource
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from benchmarks import models, options, report
from benchmarks.machine import Occasion, occasion
from benchmarks.step import Ours, recipe
from benchmarks.summary import ratios, spread
from fulltune.engine.launch import alone
from fulltune.engines import By, reusing

_ROWS = (1_000, 100_000, 1_000_000)
_SHORTEST, _LONGEST = 16, 112
_BATCH = 8


@dataclass(slots=True)
class Took:
    """Of one store: a value for each round."""

    update: list[float] = field(default_factory=list)
    """CPU seconds of a token."""
    data: list[float] = field(default_factory=list)
    """Seconds of an update's data."""


def main(words: Sequence[str] | None = None) -> int:
    """Measure, show, write."""
    words = sys.argv[1:] if words is None else words
    asked = _asked(words)
    when = occasion("benchmarks.size", words)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="fulltune-bench-", dir=asked.work) as folder:
        models.save(Path(folder) / "model", asked.model)
        with reusing(alone().world, By("single"), 0):
            runs = {rows: _run(Path(folder), rows) for rows in asked.rows}
            found = measured(runs, asked.updates, asked.rounds)
    shown = page(asked, when, found)
    print(shown)
    record = {"benchmark": "size", "occasion": when, "asked": vars(asked), "measured": found}
    places = report.write(asked.results, "size", shown, record)
    print(f"written: {', '.join(place.name for place in places)} in {asked.results.name}/", file=sys.stderr)
    return 0


def _asked(words: Sequence[str]) -> argparse.Namespace:
    about = __doc__.partition("\n")[0] if __doc__ else None
    made = argparse.ArgumentParser(description=about, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    made.add_argument("--rows", type=options.positive, nargs="+", default=list(_ROWS))
    made.add_argument("--model", choices=list(models.SHAPES), default="S", help="shape of the random model")
    made.add_argument("--updates", type=options.positive, default=24, help="of each store in a round")
    made.add_argument("--rounds", type=options.positive, default=5)
    made.add_argument("--work", type=Path, default=None, help="folder on the disk to work on")
    made.add_argument("--results", type=Path, default=report.RESULTS, help="folder for the results")
    return made.parse_args(words)


def _run(folder: Path, rows: int) -> Ours:
    """A run on a store of so many rows, ready to learn."""
    place, begun = folder / f"rows-{rows}.jsonl", time.perf_counter()
    write(place, rows)
    run = Ours(folder / f"run-{rows}", recipe(folder / "model", place, "float32", _BATCH))
    place.unlink()
    print(f"{rows:,} rows prepared after {time.perf_counter() - begun:.0f} s", file=sys.stderr, flush=True)
    return run


def write(target: Path, rows: int) -> None:
    """Rows of random tokens, all of them taught but the first half of each; a thousand lengths, again and again."""
    lengths = np.random.default_rng(0).integers(_SHORTEST, _LONGEST, 1_000)
    draw = np.random.default_rng(1)
    with target.open("w", encoding="utf-8") as file:
        for row in range(rows):
            ids = draw.integers(3, 32_000, int(lengths[row % 1_000])).tolist()
            half = len(ids) // 2
            file.write(json.dumps({"input_ids": ids, "labels": [-100] * half + ids[half:]}) + "\n")


def measured(runs: Mapping[int, Ours], updates: int, rounds: int) -> dict[int, Took]:
    """One update of each in turn; those of the first round are not counted."""
    found = {rows: Took() for rows in runs}
    at = 0
    for number in range(rounds + 1):
        sums = {rows: [0.0, 0.0, 0.0] for rows in runs}
        for _ in range(updates):
            for rows, run in runs.items():
                cpu, data, tokens = _update(run, at % (rows // _BATCH))
                sums[rows] = [old + new for old, new in zip(sums[rows], (cpu, data, tokens), strict=True)]
            at += 1
        for rows, (cpu, data, tokens) in sums.items() if number else ():
            found[rows].update.append(cpu / tokens)
            found[rows].data.append(data / updates)
    return found


def _update(run: Ours, number: int) -> tuple[float, float, float]:
    """CPU seconds, those of its data alone by the clock, and tokens."""
    updating = run.built.updating
    begun = time.perf_counter()
    members = updating.feed.take(number * _BATCH)
    batches = list(updating.feed.batches(members, updating.budget))
    data = time.perf_counter() - begun
    before = resource.getrusage(resource.RUSAGE_SELF)
    run.update(number)
    after = resource.getrusage(resource.RUSAGE_SELF)
    cpu = after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime
    return cpu, data, float(sum(batch.tokens for batch in batches))


def page(asked: argparse.Namespace, when: Occasion, found: Mapping[int, Took]) -> str:
    """The result as Markdown."""
    first = next(iter(found.values()))
    lines = []
    for rows, took in found.items():
        update, data, times = spread(took.update), spread(took.data), ratios(took.update, first.update)
        lines.append(
            [
                f"{rows:,}",
                f"{update.median * 1e6:,.0f}",
                f"{times.median:.3f} ({times.low:.3f} to {times.high:.3f})",
                f"{data.median * 1e6:,.0f}",
                f"{data.low * 1e6:,.0f} to {data.high * 1e6:,.0f}",
            ]
        )
    facts = dict(report.heading(when)) | {
        "model": f"{asked.model}, float32, one thread",
        "updates": f"of {_BATCH} examples of {_SHORTEST} to {_LONGEST} tokens",
        "rounds": f"{asked.rounds} of {asked.updates} updates; medians",
    }
    head = ["rows", "update, CPU us a token", "times the first", "its data, us", "range"]
    return "\n\n".join(
        [
            "# Time of an update, by rows",
            report.facts(facts),
            report.table(head, lines),
            "What is measured and how: [the benchmarks' README](../README.md).",
        ]
    )


if __name__ == "__main__":
    raise SystemExit(main())
