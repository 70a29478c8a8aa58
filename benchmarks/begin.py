"""Seconds from the start of a process to its first update, on prepared data, beside what nobody can do without.

That is: torch and transformers imported, weights and tokenizer loaded. transformers' Trainer takes part too, on rows
that are tokenised already. Each in a fresh process, in turn.
"""

import argparse
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import fulltune
from benchmarks import models, options, report, tokenised
from benchmarks.contestants.course import Course, Trained
from benchmarks.contestants.train_fulltune import recipe
from benchmarks.environment import trl_python
from benchmarks.fresh import Contestant, Failed, execute
from benchmarks.machine import Occasion, occasion
from benchmarks.summary import ratios, spread

_UPDATES = 3
FLOOR, LOADED, TRIED, TRAINER = "imports and weights", "fulltune, model loaded", "fulltune, all tried", "Trainer"
_SAID = {
    FLOOR: "torch and transformers imported, weights and tokenizer loaded",
    LOADED: "data, plan and memory looked at, weights looked at, engine built",
    TRIED: "and an export written and compared, the costliest micro-batches tried, a checkpoint written and read back",
    TRAINER: "transformers' Trainer at its first update, which it has not prepared for",
}

Found = Mapping[str, Sequence[float]]
"""By moment, one a round: seconds since the process was started."""


def main(words: Sequence[str] | None = None) -> int:
    """Measure, show, write. Exit code 1 if a contestant could not be run."""
    words = sys.argv[1:] if words is None else words
    asked = _asked(words)
    when = occasion("benchmarks.begin", words)
    wall: dict[str, list[float]] = {name: [] for name in _SAID}
    cpu: dict[str, list[float]] = {name: [] for name in _SAID}
    try:
        with options.endable(), tempfile.TemporaryDirectory(prefix="fulltune-bench-") as folder:
            course = _prepared(asked, Path(folder))
            for _ in range(asked.rounds):
                for name, (at, used) in _round(asked, course, Path(folder)).items():
                    wall[name].append(at)
                    cpu[name].append(used)
                print(", ".join(f"{name} {took[-1]:.1f} s" for name, took in wall.items()), file=sys.stderr, flush=True)
    except Failed as fault:
        print(f"error: {fault}", file=sys.stderr)
        return 1
    shown = page(asked, when, wall, cpu)
    print(shown)
    record = {"benchmark": "begin", "occasion": when, "asked": vars(asked), "wall": wall, "cpu": cpu}
    places = report.write(asked.results, "begin", shown, record)
    print(f"written: {', '.join(place.name for place in places)} in {asked.results.name}/", file=sys.stderr)
    return 0


def _asked(words: Sequence[str]) -> argparse.Namespace:
    about = __doc__.partition("\n")[0] if __doc__ else None
    made = argparse.ArgumentParser(description=about, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    made.add_argument("--model", choices=list(models.SHAPES), default="M", help="shape of the random model")
    made.add_argument("--data", choices=list(tokenised.SOURCES), default="gsm8k")
    made.add_argument("--precision", choices=["bf16-mixed", "float32"], default="float32")
    made.add_argument("--rounds", type=options.positive, default=5)
    made.add_argument("--threads", type=options.positive, default=len(os.sched_getaffinity(0)), help="of everyone")
    made.add_argument("--trl-python", type=Path, help="Python that has a Trainer; else benchmarks/.env-trl is made")
    made.add_argument("--results", type=Path, default=report.RESULTS, help="folder for the results")
    return made.parse_args(words)


def _prepared(asked: argparse.Namespace, folder: Path) -> Course:
    """Weights, tokenised rows, and the run folder that fulltune goes on from."""
    model, rows, batch = folder / "model", folder / "rows.jsonl", 8
    models.save(model, asked.model)
    lesson = tokenised.write(tokenised.SOURCES[asked.data][0], model, rows, count=2 * batch * _UPDATES, max_length=512)
    order = tokenised.order(lesson.examples, batch * _UPDATES, seed=0)
    places = {"model": str(model), "rows": str(rows), "heldout": "", "out": "", "answer": str(folder / "answer.json")}
    course = Course(**places, order=order, batch=batch, precision=asked.precision)
    fulltune.prepare(recipe(course), out=str(folder / "prepared"))
    return course


def _round(asked: argparse.Namespace, course: Course, folder: Path) -> dict[str, tuple[float, float]]:
    """Moments by clock and CPU seconds."""
    threads = {"OMP_NUM_THREADS": str(asked.threads)}
    out = folder / "out"
    own = replace(course, out=str(out))
    found: dict[str, tuple[float, float]] = {}
    execute(Contestant("floor", "begun", options=("floor",), environment=threads), own, watched=False)
    found[FLOOR] = _marks(own)["loaded"]
    shutil.copytree(folder / "prepared", out)
    execute(Contestant("fulltune", "begun", options=("fulltune",), environment=threads), own, watched=False)
    found[LOADED], found[TRIED] = (_marks(own)[name] for name in ("loaded", "tried"))
    shutil.rmtree(out)
    python = trl_python(asked.trl_python)
    execute(Contestant("hf", "train_trainer", python, ("grouped",), environment=threads), own, watched=False)
    shutil.rmtree(out)
    first = Trained.read(Path(own.answer)).marks[0]
    return found | {TRAINER: (first.at, first.cpu)}


def _marks(course: Course) -> dict[str, tuple[float, float]]:
    plain = json.loads(Path(course.answer).read_text(encoding="utf-8"))
    return {name: (mark["at"], mark["cpu"]) for name, mark in plain.items()}


def page(asked: argparse.Namespace, when: Occasion, wall: Found, cpu: Found) -> str:
    """The result as Markdown."""
    lines = []
    for name, took in wall.items():
        one, times = spread(took), ratios(took, wall[FLOOR])
        lines.append(
            [
                name,
                f"{one.median:.1f}",
                f"{one.low:.1f} to {one.high:.1f}",
                f"{spread(cpu[name]).median:.1f}",
                f"{times.median:.2f}",
                _SAID[name],
            ]
        )
    facts = dict(report.heading(when)) | {
        "model": f"{asked.model}, {asked.precision}; {asked.threads} threads; medians of {asked.rounds} rounds",
    }
    return "\n\n".join(
        [
            "# Seconds to the first update",
            report.facts(facts),
            report.table(["at the moment", "seconds", "range", "CPU s", "times the first", "what was done"], lines),
            "What is measured and how: [the benchmarks' README](../README.md).",
        ]
    )


if __name__ == "__main__":
    raise SystemExit(main())
