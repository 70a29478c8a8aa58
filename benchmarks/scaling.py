"""What an update costs for each token as examples and vocabularies grow, and what is held of logits.

Time: CPU seconds of random models in one process, one update each in turn. Memory: each case in a fresh process.
"""

import argparse
import importlib.metadata
import json
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from benchmarks import options, report
from benchmarks.bed import Bed
from benchmarks.fresh import ROOT
from benchmarks.machine import Occasion, occasion
from benchmarks.summary import Spread, spread
from fulltune.engine.launch import alone
from fulltune.engines import By, reusing

_LENGTHS = (256, 512, 1024, 2048, 4096)
_AT_ONCE = 4096
"""Tokens of an update where lengths are compared."""
_VOCABS = (32_000, 64_000, 100_000, 150_000)
_FEW = 1024
"""Tokens of an update, examples of 512, where vocabularies are compared."""
_TAUGHT = (512, 2048, 8192)

Costs = Mapping[str, Sequence[float]]
"""By case: CPU seconds of an update, one a round."""


def main(words: Sequence[str] | None = None) -> int:
    """Measure, show, write."""
    words = sys.argv[1:] if words is None else words
    asked = _asked(words)
    when = occasion("benchmarks.scaling", words)
    torch.set_num_threads(1)
    with reusing(alone().world, By("single"), 0):
        lengths = _timed({str(n): _bed(n, _AT_ONCE // n, 512) for n in asked.lengths}, asked.rounds)
        vocabs = _timed({f"{vocab:,}": _bed(512, _FEW // 512, vocab) for vocab in asked.vocabularies}, asked.rounds)
    logits = {vocab: {taught: _logits(taught, vocab) for taught in _TAUGHT} for vocab in asked.vocabularies}
    shown = page(when, lengths, vocabs, logits)
    print(shown)
    record = {"benchmark": "scaling", "occasion": when, "asked": vars(asked)}
    record |= {"lengths": lengths, "vocabularies": vocabs, "logits": logits}
    places = report.write(asked.results, "scaling", shown, record)
    print(f"written: {', '.join(place.name for place in places)} in {asked.results.name}/", file=sys.stderr)
    return 0


def _asked(words: Sequence[str]) -> argparse.Namespace:
    about = __doc__.partition("\n")[0] if __doc__ else None
    made = argparse.ArgumentParser(description=about, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    made.add_argument("--lengths", type=options.positive, nargs="+", default=list(_LENGTHS), help="of examples")
    made.add_argument("--vocabularies", type=options.positive, nargs="+", default=list(_VOCABS))
    made.add_argument("--rounds", type=options.positive, default=5)
    made.add_argument("--results", type=Path, default=report.RESULTS, help="folder for the results")
    return made.parse_args(words)


def _bed(tokens: int, rows: int, vocab: int) -> Bed:
    return Bed("small", "cpu", "float32", rows=rows, tokens=tokens, changes={"vocab_size": vocab})


def _timed(beds: Mapping[str, Bed], rounds: int) -> Costs:
    """One update each in turn; those of the first round are not counted."""
    found: dict[str, list[float]] = {name: [] for name in beds}
    for number in range(rounds + 1):
        for name, bed in beds.items():
            begun = time.process_time()
            bed.update()
            if number:
                found[name].append(time.process_time() - begun)
    return found


def _logits(taught: int, vocab: int) -> int:
    """Bytes at most."""
    command = [sys.executable, "-m", "benchmarks.contestants.logits", str(taught), str(vocab)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    held: int = json.loads(done.stdout)
    return held


def page(when: Occasion, lengths: Costs, vocabs: Costs, logits: Mapping[int, Mapping[int, int]]) -> str:
    """The result as Markdown."""
    packages = ("torch", "transformers")
    facts = dict(report.heading(when)) | {
        "model": "random Llama, hidden 256, 4 layers, float32, one thread",
        "versions": ", ".join(f"{name} {importlib.metadata.version(name)}" for name in packages),
    }
    held = [[f"{vocab:,}", *(report.size(found[taught]) for taught in _TAUGHT)] for vocab, found in logits.items()]
    return "\n\n".join(
        [
            "# Cost of a token, by length and vocabulary",
            report.facts(facts),
            f"## Lengths: updates of {_AT_ONCE:,} tokens, a vocabulary of 512",
            _table("tokens of an example", lengths, _AT_ONCE),
            f"## Vocabularies: updates of {_FEW:,} tokens, examples of 512",
            _table("vocabulary", vocabs, _FEW),
            "## Memory of logits, at most",
            report.table(["vocabulary", *(f"{taught:,} tokens" for taught in _TAUGHT)], held),
            "What is measured and how: [the benchmarks' README](../README.md).",
        ]
    )


def _table(head: str, costs: Costs, tokens: int) -> str:
    each: dict[str, Spread] = {name: spread([cost / tokens * 1e6 for cost in found]) for name, found in costs.items()}
    first = next(iter(each.values())).median
    lines = [
        [name, f"{cost.median:,.0f}", f"{cost.low:,.0f} to {cost.high:,.0f}", f"{cost.median / first:.2f}"]
        for name, cost in each.items()
    ]
    return report.table([head, "CPU us a token", "range", "times the first"], lines)


if __name__ == "__main__":
    raise SystemExit(main())
