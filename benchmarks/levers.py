"""Levers for memory: what each leaves of the peak of a run, and what it costs in time, with the losses beside it."""

import argparse
import importlib.metadata
import os
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks import models, options, report, tokenised
from benchmarks.contestants.levers import Lever, Moved
from benchmarks.fresh import Contestant, Failed, execute
from benchmarks.machine import Occasion, occasion
from benchmarks.summary import ratios, spread

_WHOLE = "train.micro_tokens={whole}"
_NONE = (_WHOLE, "memory.checkpointing=none")
_ONE_PASS = ("optim.in_backward=one_pass", "optim.clip=null", "train.on_nonfinite=stop")
_SMALL = ("train.precision=bf16-sr", "optim.moments=int8")
LEVERS: Mapping[str, tuple[str, ...]] = {
    "none": _NONE,
    "as it ships": (),
    "half the micro-batch": (*_NONE, "train.micro_examples={half}"),
    "a quarter": (*_NONE, "train.micro_examples={quarter}"),
    "one example": (*_NONE, "train.micro_examples=1"),
    "selective": (_WHOLE, "memory.checkpointing=selective"),
    "full": (_WHOLE, "memory.checkpointing=full"),
    "mlp_tile": (*_NONE, "memory.mlp_tile=256"),
    "in backward": (*_NONE, "optim.in_backward=two_passes"),
    "in backward, one pass": (*_NONE, *_ONE_PASS),
    "bf16-mixed": (*_NONE, "train.precision=bf16-mixed"),
    "bf16-sr": (*_NONE, "train.precision=bf16-sr"),
    "bf16-sr, moments int8": (*_NONE, *_SMALL),
    "lion": (*_NONE, "optim.name=lion"),
    "adafactor": (*_NONE, "optim.name=adafactor"),
    "muon": (*_NONE, "optim.name=muon"),
    "galore": (*_NONE, "optim.name=galore"),
    "apollo_mini": (*_NONE, "optim.name=apollo_mini"),
    "the least": (_WHOLE, "memory.checkpointing=full", "optim.in_backward=two_passes", *_SMALL),
}
"""What is set of the recipe; the first, an update at once, is what all are compared with."""
EXACT = ("selective", "full")
"""Whose losses must be those of the first to the last bit."""

Measured = Mapping[str, Sequence[Moved]]
"""By lever, each round."""


def main(words: Sequence[str] | None = None) -> int:
    """Measure, show, write. Exit code 1 if a process failed, or a loss that must not differ does."""
    words = sys.argv[1:] if words is None else words
    asked = _asked(words)
    when = occasion("benchmarks.levers", words)
    with options.endable(), tempfile.TemporaryDirectory(prefix="fulltune-bench-") as folder:
        try:
            lesson, measured = measure(asked, Path(folder))
        except Failed as fault:
            print(fault, file=sys.stderr)
            return 1
    shown = page(when, asked, lesson, measured)
    print(shown)
    record = {
        "benchmark": "levers",
        "occasion": when,
        "asked": vars(asked),
        "lesson": lesson,
        "measured": measured,
        "differences": {name: difference(measured, name) for name in measured},
    }
    places = report.write(asked.results, "levers", shown, record)
    print(f"written: {', '.join(place.name for place in places)} in {asked.results.name}/", file=sys.stderr)
    return int(any(difference(measured, name) for name in EXACT if name in measured))


def _asked(words: Sequence[str]) -> argparse.Namespace:
    about = __doc__.partition("\n")[0] if __doc__ else None
    made = argparse.ArgumentParser(description=about, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    made.add_argument("--model", choices=list(models.SHAPES), default="M")
    made.add_argument(
        "--levers",
        nargs="+",
        choices=list(LEVERS)[1:],
        default=list(LEVERS)[1:],
        help="beside none",
    )
    made.add_argument("--data", choices=list(tokenised.SOURCES), default="gsm8k")
    made.add_argument("--precision", choices=["float32", "bf16-mixed", "bf16-sr"], default="float32")
    made.add_argument("--batch", type=options.positive, default=8, help="examples of one update")
    made.add_argument("--updates", type=options.positive, default=2, help="of one cycle")
    made.add_argument("--cycles", type=options.positive, default=2, help="that are timed in each process")
    made.add_argument("--rounds", type=options.positive, default=3, help="processes of each lever")
    made.add_argument("--threads", type=options.positive, default=len(os.sched_getaffinity(0)))
    made.add_argument("--results", type=Path, default=report.RESULTS, help="folder for the results")
    return made.parse_args(words)


def measure(asked: argparse.Namespace, folder: Path) -> tuple[tokenised.Lesson, Measured]:
    """Each lever in a fresh process, in turns. Failed if one fails."""
    model, rows, count = folder / "model", folder / "examples.jsonl", asked.updates * asked.batch
    models.save(model, asked.model)
    lesson = tokenised.write(tokenised.SOURCES[asked.data][0], model, rows, count=count, max_length=512)
    if lesson.examples < count:
        raise Failed(f"{asked.data} gives {lesson.examples} examples, and {count} are asked for")
    parts = {"half": max(1, asked.batch // 2), "quarter": max(1, asked.batch // 4), "whole": asked.batch * 512}
    found: dict[str, list[Moved]] = {name: [] for name in LEVERS if name in ("none", *asked.levers)}
    for number in range(asked.rounds):
        for name in found:
            told = Lever(
                model=str(model),
                rows=str(rows),
                updates=asked.updates,
                cycles=asked.cycles,
                batch=asked.batch,
                precision=asked.precision,
                settings=[word.format(**parts) for word in LEVERS[name]],
                out=str(folder / f"run-{number}"),
                answer=str(folder / "answer.json"),
            )
            threads = {"OMP_NUM_THREADS": str(asked.threads)}
            execute(Contestant(name, "levers", environment=threads), told, watched=False)
            found[name].append(Moved.read(Path(told.answer)))
            print(f"round {number + 1}, {name}: {report.size(found[name][-1].peak)}", file=sys.stderr, flush=True)
    return lesson, found


def difference(measured: Measured, name: str) -> float:
    """The largest between losses of the same update of a lever and of none."""
    pairs = [zip(one.losses, other.losses, strict=True) for one in measured[name] for other in measured["none"]]
    return max(abs(mine - theirs) for pair in pairs for mine, theirs in pair)


def page(when: Occasion, asked: argparse.Namespace, lesson: tokenised.Lesson, measured: Measured) -> str:
    """The result as Markdown."""
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in ("torch", "transformers"))
    facts: dict[str, Any] = dict(report.heading(when)) | {
        "model": f"{asked.model}, random, AdamW and {asked.precision} unless said, {asked.threads} threads",
        "updates": f"{asked.batch} examples of {asked.data} each, {lesson.tokens / asked.updates:,.0f} tokens of which "
        f"the longest has {lesson.longest}; {asked.updates} of them again and again",
        "order": f"{asked.rounds} rounds, each lever in a fresh process; {asked.cycles} cycles of it are timed",
        "versions": versions,
    }
    head = ["lever", "peak", "of none's", "tokens/s", "tokens/CPU-s", "CPU time, times none's", "CPU share"]
    lines = [_line(name, lesson, asked, measured) for name in measured]
    return "\n\n".join(
        [
            "# Levers for memory: peak, and time",
            report.facts(facts),
            report.table([*head, "largest difference of a loss"], lines),
            "What is measured and how: [the benchmarks' README](../README.md).",
        ]
    )


def _line(name: str, lesson: tokenised.Lesson, asked: argparse.Namespace, measured: Measured) -> list[str]:
    mine, none = measured[name], measured["none"]
    seconds = [second for one in mine for second in one.seconds]
    cpu = [second for one in mine for second in one.cpu]
    slower = ratios(cpu, [second for one in none for second in one.cpu])
    peak = spread([one.peak for one in mine])
    whole = spread([one.peak for one in none])
    return [
        name,
        report.size(peak.median),
        f"{peak.median / whole.median:.0%}",
        f"{lesson.tokens / spread(seconds).median:,.0f}",
        f"{lesson.tokens / spread(cpu).median:,.0f}",
        "1" if mine is none else f"{slower.median:.2f} ({slower.low:.2f} to {slower.high:.2f})",
        f"{sum(cpu) / sum(seconds) / asked.threads:.2f}",
        f"{difference(measured, name):.1e}" if difference(measured, name) else "0",
    ]


if __name__ == "__main__":
    raise SystemExit(main())
