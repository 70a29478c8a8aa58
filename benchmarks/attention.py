"""Attention by itself, forward and backward in float32 on a CPU: in blocks of rows beside torch's own kernel."""

import argparse
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

Found = dict[tuple[str, int, int], Mapping[str, list[float]]]
"""By model, length and threads: seconds of each way, one a round."""


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
        for name, shape in _SHAPES.items():
            for length in asked.lengths:
                for threads in asked.threads:
                    torch.set_num_threads(threads)
                    found[name, length, threads] = _timed(*shape, length, asked.rounds)
    parts = ["# Attention by itself, forward and backward", report.facts(dict(report.heading(when)))]
    shown = "\n\n".join([*parts, f"Float32, rows of one length in {_TOKENS:,} tokens.", _table(found)])
    print(shown)
    record = {"benchmark": "attention", "occasion": when, "asked": vars(asked)}
    record["seconds"] = {f"{name}, {length}, {threads}": times for (name, length, threads), times in found.items()}
    places = report.write(asked.results, "attention", shown, record)
    print(f"written: {', '.join(place.name for place in places)} in {asked.results.name}/", file=sys.stderr)
    return 0


def _kernel(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """As transformers calls it."""
    found = scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=True)
    return found.transpose(1, 2).contiguous()


def _timed(heads: int, groups: int, size: int, length: int, rounds: int) -> Mapping[str, list[float]]:
    """Seconds of each way, one a round."""
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
                torch.randn(rows, length, many, size, generator=drawn, requires_grad=True)
                for many in (heads, groups, groups)
            ]
            slope = torch.randn(rows, length, heads, size, generator=drawn)
            begun = time.perf_counter()
            torch.autograd.grad(way(*(tensor.transpose(1, 2) for tensor in given)), given, slope)
            if number:
                found[name].append(time.perf_counter() - begun)
    return found


def _table(found: Found) -> str:
    lines = []
    for (name, length, threads), times in found.items():
        kernel, blocks = (spread([1000 * time for time in times[way]]) for way in ("kernel", "blocks"))
        part = ratios(times["blocks"], times["kernel"])
        shape = "{} of {}, size {}".format(*_SHAPES[name])
        ratio = f"{part.median:.2f} ({part.low:.2f} to {part.high:.2f})"
        lines.append([name, shape, str(length), str(threads), f"{kernel.median:.1f}", f"{blocks.median:.1f}", ratio])
    return report.table(["model", "heads", "tokens", "threads", "kernel, ms", "blocks", "blocks / kernel"], lines)


if __name__ == "__main__":
    raise SystemExit(main())
