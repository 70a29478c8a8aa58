"""Memory that a run needs to start: each process loads the model whole, or reads the rows of it that it holds.

Both ways in fresh processes of this machine, on the same random model, in files of float32 and of bfloat16.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import cast

import torch
import transformers
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks import options, report
from benchmarks.bed import SHAPES
from benchmarks.contestants.starting import WAYS
from benchmarks.machine import Occasion, occasion
from fulltune.engine.agent import run_agent

FORMATS = ("float32", "bfloat16")
"""Of the files; the model that starts has float32 weights."""

Measured = Mapping[str, Sequence[Mapping[str, float]]]
"""By file and way, what each rank says."""


def main(words: Sequence[str] | None = None) -> int:
    """Measure, show, write. Exit code 1 if a process failed."""
    words = sys.argv[1:] if words is None else words
    asked = _asked(words)
    when = occasion("benchmarks.starting", words)
    measured: dict[str, list[dict[str, float]]] = {}
    with tempfile.TemporaryDirectory(prefix="fulltune-bench-", dir=asked.work) as scratch:
        for dtype in FORMATS:
            model = Path(scratch) / dtype
            _write(asked.shape, dtype, model)
            for way in WAYS:
                found = _run(way, model, Path(scratch) / f"{dtype}-{way}", asked.processes)
                if isinstance(found, str):
                    print(f"{way}: {found}", file=sys.stderr)
                    return 1
                measured[f"{dtype}, {way}"] = found
                print(f"{dtype}, {way}: {found}", file=sys.stderr, flush=True)
    shown = page(asked, when, measured)
    print(shown)
    told = {name: value for name, value in vars(asked).items() if name != "work"}
    record = {"benchmark": "starting", "occasion": when, "asked": told, "measured": measured}
    places = report.write(asked.results, "starting", shown, record)
    print(f"written: {', '.join(place.name for place in places)} in {asked.results.name}/", file=sys.stderr)
    return 0


def _asked(words: Sequence[str]) -> argparse.Namespace:
    about = __doc__.partition("\n")[0] if __doc__ else None
    made = argparse.ArgumentParser(description=about, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    made.add_argument("--shape", choices=SHAPES, default="300m", help="of the random model")
    made.add_argument("--processes", type=options.positive, default=2)
    made.add_argument("--results", type=Path, default=report.RESULTS, help="folder for the results")
    made.add_argument("--work", type=Path, default=None, help="folder for the model's files")
    return made.parse_args(words)


def _write(shape: str, dtype: str, folder: Path) -> None:
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**SHAPES[shape], tie_word_embeddings=True))
    model.to(cast(torch.dtype, vars(torch)[dtype])).save_pretrained(folder)


def _run(way: str, model: Path, folder: Path, processes: int) -> list[dict[str, float]] | str:
    """What each rank found, or how one failed."""
    folder.mkdir()
    command = [sys.executable, "-m", "benchmarks.contestants.starting", way, str(model), str(folder)]
    failed = run_agent(processes, command, folder / "logs", patience=30)
    if failed is not None:
        return str(failed)
    return [json.loads((folder / f"rank-{rank}.json").read_text()) for rank in range(processes)]


def page(asked: argparse.Namespace, when: Occasion, measured: Measured) -> str:
    """The result as Markdown."""
    parameters = int(next(iter(measured.values()))[0]["parameters"])
    lines = []
    for name, ranks in measured.items():
        most = {entry: max(rank[entry] for rank in ranks) for entry in ranks[0]}
        each = f"{most['peak'] / parameters:.1f}"
        sizes = [report.size(most[entry]) for entry in ("peak_with_files", "held")]
        lines.append([name, report.size(most["peak"]), each, *sizes, f"{most['seconds']:.1f}"])
    facts = dict(report.heading(when)) | {
        "model": f"random Llama, {parameters:,} parameters, tied; float32 weights take "
        f"{report.size(4 * parameters)}, a process's share of them {report.size(4 * parameters / asked.processes)}",
        "processes": f"{asked.processes}, over gloo; of each way the process that needs most",
        "versions": f"torch {torch.__version__}, transformers {transformers.__version__}",
    }
    head = ["files, way", "peak", "bytes a parameter", "peak with files", "held afterwards", "seconds"]
    return "\n\n".join(
        [
            "# Memory that a run needs to start under FSDP2",
            report.facts(facts),
            report.table(head, lines),
            "What is measured and how: [the benchmarks' README](../README.md).",
        ]
    )


if __name__ == "__main__":
    raise SystemExit(main())
