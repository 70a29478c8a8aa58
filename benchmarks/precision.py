"""Every precision against float32 on a real run: the curve, the share of weights that moved, bytes per parameter.

The same recipe, data and order each time; besides what fulltune offers, bfloat16 weights as a plain script has them.
"""

import argparse
import itertools
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import nn

import fulltune
from benchmarks import options, report
from benchmarks.fresh import ROOT
from benchmarks.machine import Occasion, occasion
from fulltune import assemble
from fulltune.base.errors import FulltuneError
from fulltune.base.log import speak
from fulltune.engine.native import NativeEngine
from fulltune.model.folder import section_of
from fulltune.model.load import load_model
from fulltune.training.journal import read

PLAIN = "plain bf16"
MODES: Mapping[str, Mapping[str, Any]] = {
    "float32": {"train": {"precision": "float32"}},
    "bf16-mixed": {"train": {"precision": "bf16-mixed"}},
    "fp16-mixed": {"train": {"precision": "fp16-mixed"}},
    "bf16-sr": {"train": {"precision": "bf16-sr"}},
    "bf16-sr, bf16 moments": {"train": {"precision": "bf16-sr"}, "optim": {"moments": "bfloat16"}},
    "bf16-sr, int8 moments": {"train": {"precision": "bf16-sr"}, "optim": {"moments": "int8"}},
    PLAIN: {"train": {"precision": "float32"}},
}
_SHOWN = 5
"""Points of a curve on the page, means over a window; the JSON has every update."""


class PlainBf16(NativeEngine):
    """What a script does that loads a bfloat16 file and trains it: weights, gradients and moments in bfloat16.

    fulltune does not offer it. The plan says float32 here, so nothing is cast or rounded but what the weights decide.
    """

    def __init__(self, model: nn.Module, *given: Any, **named: Any) -> None:
        for parameter in model.parameters():
            parameter.data = parameter.data.bfloat16()
        super().__init__(model, *given, **named)


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """One run."""

    mode: str
    lr: float
    losses: list[float]
    before: float
    """Held-out loss."""
    after: float
    in_float32: float
    """The result's held-out loss computed in float32: the other two are in the run's own precision."""
    changed: float
    """Share of the weights that are not what they were at the start, in the format that they are held in."""
    planned: Mapping[str, float]
    """Bytes per parameter that the plan names."""
    stored: dict[str, float]
    """Bytes per parameter in the last checkpoint, of weights and moments."""
    skipped: int
    seconds: float


def main(words: Sequence[str] | None = None) -> int:
    """Measure, show, write. Exit code 1 if a run failed, 130 if interrupted."""
    words = sys.argv[1:] if words is None else words
    asked = _asked(words)
    when = occasion("benchmarks.precision", words)
    speak()
    try:
        with tempfile.TemporaryDirectory() as scratch:
            prepared = Path(scratch) / "prepared"
            fulltune.prepare(_recipe(asked, "float32", asked.rates[0]), out=prepared)
            measured = []
            for rate, mode in itertools.product(asked.rates, MODES):
                folder = Path(scratch) / f"{mode}-{rate}"
                shutil.copytree(prepared, folder)
                measured.append(measure(asked, mode, rate, folder, prepared))
    except (FulltuneError, OSError) as fault:
        print(f"error: {fault}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    shown = page(asked, when, measured)
    print(shown)
    record = {"benchmark": "precision", "occasion": when, "asked": vars(asked), "measured": measured}
    places = report.write(asked.results, "precision", shown, record)
    print(f"written: {', '.join(place.name for place in places)} in {asked.results.name}/", file=sys.stderr)
    return 0


def _asked(words: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    shared = ROOT.parent / "shared"
    parser.add_argument("--model", type=Path, default=shared / "models/stories260K", help="a model folder")
    rows = shared / "data/gsm8k/train_first2000.norm.jsonl"
    parser.add_argument("--rows", type=Path, default=rows, help="what is taught; a fiftieth is held out")
    parser.add_argument("--updates", type=options.positive, default=60)
    parser.add_argument("--batch", type=options.positive, default=8, help="examples of one update")
    parser.add_argument("--rates", type=float, nargs="+", default=[1e-4, 1e-5], help="learning rates, kept constant")
    parser.add_argument("--results", type=Path, default=report.RESULTS, help="where the result is written")
    return parser.parse_args(words)


def _recipe(asked: argparse.Namespace, mode: str, rate: float) -> dict[str, Any]:
    sections = MODES[mode]
    return {
        "model": {"path": str(asked.model.resolve())},
        "data": {"train": str(asked.rows.resolve()), "heldout": 0.02, "max_length": 512, "over_length": "drop"},
        "train": {"steps": asked.updates, "batch_examples": asked.batch, **sections["train"]},
        "optim": {"lr": rate, "schedule": "constant", "warmup": 0, **sections.get("optim", {})},
        "evaluate": {"every": asked.updates, "samples": 0},
        "checkpoint": {"every": asked.updates},
        "export": {"dtype": "float32"},
    }


def measure(asked: argparse.Namespace, mode: str, rate: float, folder: Path, prepared: Path) -> Measured:
    """Train from prepared data, then look at what is left on disk."""
    begun = time.perf_counter()
    with _plain() if mode == PLAIN else nullcontext():
        record = fulltune.train(_recipe(asked, mode, rate), out=folder)
    seconds = time.perf_counter() - begun
    last = folder / f"checkpoints/step-{record.progress.update:08d}"
    weights, moments = load_file(last / "weights.safetensors"), load_file(last / "optimizer.safetensors")
    start = dict(load_model(section_of(asked.model)).named_parameters())
    kept = {name: value for name, value in weights.items() if name in start}
    same = sum(int((value == start[name].to(value.dtype)).sum()) for name, value in kept.items())
    count = sum(value.numel() for value in kept.values())
    moved = [value for name, value in moments.items() if value.ndim > 0]
    report = fulltune.evaluate(_recipe(asked, "float32", rate), model=record.result, out=prepared)["model"]
    assert record.baseline is not None
    print(f"{mode} at {rate}: {seconds:.0f} s", file=sys.stderr, flush=True)
    return Measured(
        mode=mode,
        lr=rate,
        losses=[line["loss"] for line in read(folder / "journal.jsonl", "step")],
        before=record.baseline.scores["heldout.loss"],
        after=record.evaluations[-1].scores["heldout.loss"],
        in_float32=report.scores["heldout.loss"],
        changed=1 - same / count,
        planned=record.plan.dtypes.bytes if mode != PLAIN else {"weights": 2, "gradients": 2, "moments": 4},
        stored={"weights": _bytes(kept.values(), count), "moments": _bytes(moved, count)},
        skipped=record.progress.skipped,
        seconds=seconds,
    )


def _bytes(tensors: Any, parameters: int) -> float:
    return float(sum(value.numel() * value.element_size() for value in tensors) / parameters)


@contextmanager
def _plain() -> Iterator[None]:
    """Inside, runs are made with PlainBf16."""
    names = vars(assemble)
    names["NativeEngine"] = PlainBf16
    try:
        yield
    finally:
        names["NativeEngine"] = NativeEngine


def page(asked: argparse.Namespace, when: Occasion, measured: Sequence[Measured]) -> str:
    """The result as Markdown."""
    parts = ["# Precision", report.facts(dict(_facts(asked, when)))]
    for rate in dict.fromkeys(one.lr for one in measured):
        parts += [f"## At a learning rate of {rate:g}", _table([one for one in measured if one.lr == rate])]
    parts.append("What is measured and how: [the benchmarks' README](../README.md).")
    return "\n\n".join(parts) + "\n"


def _facts(asked: argparse.Namespace, when: Occasion) -> Iterator[tuple[str, str]]:
    yield from report.heading(when)
    yield (
        "run",
        f"{asked.model.name}, {asked.updates} updates of {asked.batch} rows of {asked.rows.name}, AdamW, seed 0",
    )
    yield "versions", f"fulltune {fulltune.__version__}, torch {torch.__version__}"


def _table(measured: Sequence[Measured]) -> str:
    window = max(1, len(measured[0].losses) // _SHOWN)
    ends = [window * (number + 1) for number in range(_SHOWN) if window * (number + 1) <= len(measured[0].losses)]
    head = ["precision", "weights changed", *(f"loss, {end - window + 1} to {end}" for end in ends)]
    lines = [
        [
            one.mode if one.mode != PLAIN else f"{PLAIN} (not offered)",
            f"{one.changed:.1%}",
            *(f"{sum(one.losses[end - window : end]) / window:.4f}" for end in ends),
            f"{one.before:.4f} to {one.after:.4f}",
            f"{one.in_float32:.4f}",
            " + ".join(f"{size:g}" for size in one.planned.values()),
            f"{sum(one.planned.values()):g}",
        ]
        for one in measured
    ]
    tail = ["held-out loss", "result in float32", "weights + gradients + moments", "bytes per parameter"]
    return report.table([*head, *tail], lines)


if __name__ == "__main__":
    sys.exit(main())
