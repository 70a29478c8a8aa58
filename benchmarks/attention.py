"""Attention by itself, forward and backward on a CPU: in blocks of rows beside torch's own kernel."""

import argparse
import itertools
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from benchmarks import options, report
from benchmarks.machine import occasion
from benchmarks.summary import ratios, spread
from fulltune.base.allocator import keeping
from fulltune.model.attention import causal

_SHAPES = {"M": (6, 2, 64), "SmolLM2-135M": (9, 3, 64), "Qwen3-0.6B": (16, 8, 128), "one key for each head": (8, 8, 64)}
"""Heads, heads of keys, numbers in a head."""
_LENGTHS = (64, 128, 208, 512, 1024)
_TOKENS = 1024
"""Of a micro-batch."""

_FORMATS = {"float32": torch.float32, "bfloat16": torch.bfloat16}

Found = dict[tuple[str, str, int, int], Mapping[str, list[float]]]
"""By number format, model, length and threads: seconds of each way, one a round."""


def main(words: Sequence[str] | None = None) -> int:
    """Measure, show, write."""
    words = sys.argv[1:] if words is None else words
    about = __doc__.partition("\n")[0] if __doc__ else None
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--lengths", type=options.positive, nargs="+", default=list(_LENGTHS), help="of examples")
    cores = len(os.sched_getaffinity(0))
    parser.add_argument("--threads", type=options.positive, nargs="+", default=sorted({1, cores}))
    parser.add_argument("--rounds", type=options.positive, default=9)
    parser.add_argument("--results", type=Path, default=report.RESULTS, help="folder for the results")
    asked = parser.parse_args(words)
    when = occasion("benchmarks.attention", words)
    found: Found = {}
    with keeping():
        for dtype, name, length, threads in itertools.product(_FORMATS, _SHAPES, asked.lengths, asked.threads):
            torch.set_num_threads(threads)
            found[dtype, name, length, threads] = _timed(_SHAPES[name], length, asked.rounds, _FORMATS[dtype])
    parts = ["# Attention by itself, forward and backward", report.facts(dict(report.heading(when)))]
    shown = "\n\n".join([*parts, f"Rows of one length in {_TOKENS:,} tokens.", _table(found)])
    print(shown)
    record = {"benchmark": "attention", "occasion": when, "asked": vars(asked)}
    record["seconds"] = {", ".join(map(str, case)): times for case, times in found.items()}
    places = report.write(asked.results, "attention", shown, record)
    print(f"written: {', '.join(place.name for place in places)} in {asked.results.name}/", file=sys.stderr)
    return 0


def _kernel(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """As transformers calls it."""
    found = scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=True)
    return found.transpose(1, 2).contiguous()


def _timed(shape: tuple[int, int, int], length: int, rounds: int, dtype: torch.dtype) -> Mapping[str, list[float]]:
    """Seconds of each way, one a round."""
    heads, groups, size = shape
    ways: dict[str, Callable[..., Tensor]] = {
        "kernel": _kernel,
        "blocks": lambda query, key, value: causal(query, key, value, None),
    }
    found: dict[str, list[float]] = {name: [] for name in ways}
    rows = max(1, _TOKENS // length)
    for number in range(rounds + 1):
        for name, way in ways.items():
            drawn = torch.Generator().manual_seed(number)
            given: list[Any] = [
                torch.randn(rows, length, many, size, generator=drawn).to(dtype).requires_grad_()
                for many in (heads, groups, groups)
            ]
            slope = torch.randn(rows, length, heads, size, generator=drawn).to(dtype)
            begun = time.perf_counter()
            torch.autograd.grad(way(*(tensor.transpose(1, 2) for tensor in given)), given, slope)
            if number:
                found[name].append(time.perf_counter() - begun)
    return found


def _table(found: Found) -> str:
    lines = []
    for (dtype, name, length, threads), times in found.items():
        kernel, blocks = (spread([1000 * time for time in times[way]]) for way in ("kernel", "blocks"))
        part = ratios(times["blocks"], times["kernel"])
        shape = "{} of {}, size {}".format(*_SHAPES[name])
        ratio = f"{part.median:.2f} ({part.low:.2f} to {part.high:.2f})"
        lines.append(
            [dtype, name, shape, str(length), str(threads), f"{kernel.median:.1f}", f"{blocks.median:.1f}", ratio]
        )
    return report.table(
        ["format", "model", "heads", "tokens", "threads", "kernel, ms", "blocks", "blocks / kernel"], lines
    )


if __name__ == "__main__":
    raise SystemExit(main())
