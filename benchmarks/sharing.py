"""Memory of each process of several, by engine: what a model's state takes where all have it, and where they share it.

Every engine trains the same random model in fresh processes of this machine.
"""

import argparse
import importlib.metadata
import importlib.util
import json
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks import options, report
from benchmarks.bed import SHAPES
from benchmarks.contestants.sharing import NATIVE, ZERO
from benchmarks.machine import Occasion, occasion
from fulltune.engine.agent import run_agent

Measured = Mapping[str, Sequence[Mapping[str, int]]]
"""Of one number of processes: by engine, what each rank says."""

_STATE = 12
"""Bytes of float32 weights and two moments for each parameter."""


def main(words: Sequence[str] | None = None) -> int:
    """Measure, show, write. Exit code 1 if a process failed."""
    words = sys.argv[1:] if words is None else words
    asked = _asked(words)
    when = occasion("benchmarks.sharing", words)
    measured: dict[int, Measured] = {}
    for processes in asked.processes:
        try:
            measured[processes] = _of(processes, asked.shape)
        except RuntimeError as fault:
            print(fault, file=sys.stderr)
            return 1
    shown = page(when, measured)
    print(shown)
    record = {"benchmark": "sharing", "occasion": when, "asked": vars(asked), "measured": measured}
    places = report.write(asked.results, "sharing", shown, record)
    print(f"written: {', '.join(place.name for place in places)} in {asked.results.name}/", file=sys.stderr)
    return 0


def _of(processes: int, shape: str) -> Measured:
    """Every engine with so many processes. RuntimeError if one of them failed."""
    found: dict[str, list[dict[str, int]]] = {}
    for engine in [*NATIVE, *(ZERO if _has_deepspeed() else ())]:
        with tempfile.TemporaryDirectory(prefix="fulltune-bench-") as scratch:
            command = [sys.executable, "-m", "benchmarks.contestants.sharing", engine, shape, scratch]
            failed = run_agent(processes, command, Path(scratch) / "logs", patience=30)
            if failed is not None:
                raise RuntimeError(f"{engine}: {failed}")
            ranks = [Path(scratch) / f"rank-{rank}.json" for rank in range(processes)]
            found[engine] = [json.loads(path.read_text()) for path in ranks]
        print(f"{processes} processes, {engine}: {found[engine]}", file=sys.stderr, flush=True)
    return found


def _has_deepspeed() -> bool:
    return importlib.util.find_spec("deepspeed") is not None


def _asked(words: Sequence[str]) -> argparse.Namespace:
    about = __doc__.partition("\n")[0] if __doc__ else None
    made = argparse.ArgumentParser(description=about, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    made.add_argument("--shape", choices=SHAPES, default="300m", help="of the random model")
    made.add_argument("--processes", type=options.positive, nargs="+", default=[2])
    made.add_argument("--results", type=Path, default=report.RESULTS, help="folder for the results")
    return made.parse_args(words)


def page(when: Occasion, measured: Mapping[int, Measured]) -> str:
    """The result as Markdown: a table for each number of processes."""
    parameters = next(rank["parameters"] for found in measured.values() for rank in found["ddp"])
    facts = dict(report.heading(when)) | {
        "model": f"random Llama, {parameters:,} parameters, tied, AdamW, float32: {_STATE} bytes of weights and "
        f"moments for each, {report.size(_STATE * parameters)}",
        "processes": "over gloo; of each engine the process that holds most",
        "versions": ", ".join(
            f"{name} {importlib.metadata.version(name)}"
            for name in ("torch", "transformers", *(["deepspeed"] if _has_deepspeed() else []))
        ),
    }
    parts = ["# Memory of each process, by engine", report.facts(facts)]
    for processes, found in measured.items():
        parts += [f"## {processes} processes", _table(found, parameters)]
    return "\n\n".join([*parts, "What is measured and how: [the benchmarks' README](../README.md)."])


def _table(found: Measured, parameters: int) -> str:
    whole = max(rank["after_update"] for rank in found["ddp"])
    lines = []
    for engine, ranks in found.items():
        most = max(rank["after_update"] for rank in ranks)
        with_gradients = max(rank["with_gradients"] for rank in ranks)
        each = f"{most / parameters:.1f}"
        lines.append([engine, report.size(most), each, f"{most / whole:.2f}", report.size(with_gradients)])
    head = ["engine", "held after an update", "bytes a parameter", "times ddp's", "with gradients, before its step"]
    return report.table(head, lines)


if __name__ == "__main__":
    raise SystemExit(main())
