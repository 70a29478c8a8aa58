"""The forecast of memory held against reality: random models trained on this machine's CPU, in fresh processes."""

import argparse
import json
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import transformers

from benchmarks import report
from benchmarks.contestants.forecast import Trial
from benchmarks.machine import Occasion, occasion
from fulltune.engine.agent import run_agent

SHAPES: Mapping[str, Mapping[str, Any]] = {
    "llama-11m": {"hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 8, "vocab_size": 8192},
    "llama-28m": {"num_key_value_heads": 2, "intermediate_size": 1536, "vocab_size": 8192},
    "llama-42m": {"num_hidden_layers": 6, "vocab_size": 16000, "tie_word_embeddings": False},
    "qwen3-57m": {
        "model_type": "qwen3",
        "num_hidden_layers": 6,
        "intermediate_size": 1536,
        "num_key_value_heads": 4,
        "head_dim": 128,
        "vocab_size": 65536,
    },
    "llama-135m": {
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "vocab_size": 49152,
    },
    "llama-301m": {
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_hidden_layers": 16,
        "num_attention_heads": 16,
        "num_key_value_heads": 16,
        "vocab_size": 32000,
    },
    "llama-wide": {"hidden_size": 2048, "num_hidden_layers": 1, "vocab_size": 512},
    "tiny": {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "vocab_size": 256},
}
"""Where they differ from `_COMMON`."""

_COMMON: Mapping[str, Any] = {
    "model_type": "llama",
    "hidden_size": 512,
    "intermediate_size": 2048,
    "num_hidden_layers": 8,
    "num_attention_heads": 8,
    "num_key_value_heads": 8,
    "tie_word_embeddings": True,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One line of the table."""

    shape: str
    rows: int
    tokens: int
    engine: str = "single"
    precision: str = "float32"
    layout: str = "padded"
    micros: int = 1
    checkpointing: str = "none"
    attention: str = "auto"
    reshard: bool = True

    @property
    def processes(self) -> int:
        """Two, unless one has all."""
        return 1 if self.engine == "single" else 2

    def __str__(self) -> str:
        said = [self.precision, self.layout, f"{self.rows} x {self.tokens}"]
        said += [f"{self.micros} micro-batches"] if self.micros > 1 else []
        said += ["checkpointed"] if self.checkpointing == "full" else []
        said += [f"{self.attention} attention"] if self.attention != "auto" else []
        said += ["weights kept"] if not self.reshard else []
        return ", ".join(said)

    def trial(self) -> Trial:
        """As the processes are told."""
        engine = {"name": self.engine} | ({} if self.reshard else {"reshard": False})
        model = {**_COMMON, **SHAPES[self.shape], "max_position_embeddings": 4096}
        attention = {} if self.attention == "auto" else {"attn_implementation": self.attention}
        return Trial(
            model=model | attention,
            precision=self.precision,  # type: ignore[arg-type]
            layout=self.layout,  # type: ignore[arg-type]
            rows=self.rows,
            tokens=self.tokens,
            micros=self.micros,
            recipe={
                "model": {"path": "/none", "attention": self.attention},
                "memory": {"checkpointing": self.checkpointing},
                "engine": engine,
            },
        )


def _alone() -> Iterator[Row]:
    """One process."""
    yield Row(shape="llama-11m", rows=8, tokens=128)
    yield Row(shape="llama-28m", rows=4, tokens=256)
    yield Row(shape="llama-28m", rows=4, tokens=256, checkpointing="full")
    yield Row(shape="llama-28m", rows=4, tokens=256, layout="packed")
    yield Row(shape="llama-28m", rows=4, tokens=256, layout="packed", checkpointing="full")
    yield Row(shape="llama-28m", rows=2, tokens=512, attention="eager")
    yield Row(shape="llama-28m", rows=4, tokens=128, micros=4)
    yield Row(shape="llama-42m", rows=4, tokens=128, micros=2)
    yield Row(shape="qwen3-57m", rows=4, tokens=128)
    yield Row(shape="qwen3-57m", rows=4, tokens=256, checkpointing="full")
    yield Row(shape="llama-135m", rows=2, tokens=64)
    yield Row(shape="llama-135m", rows=2, tokens=64, checkpointing="full")
    yield Row(shape="llama-301m", rows=1, tokens=64)
    yield Row(shape="llama-wide", rows=17, tokens=256)
    for precision in ("bf16-mixed", "bf16-sr"):
        yield Row(shape="llama-28m", rows=1, tokens=64, precision=precision)
        yield Row(shape="llama-28m", rows=1, tokens=64, precision=precision, checkpointing="full")
        yield Row(shape="llama-28m", rows=1, tokens=64, precision=precision, layout="packed")
    yield Row(shape="llama-28m", rows=1, tokens=64, precision="bf16-sr", micros=2)


def _several() -> Iterator[Row]:
    """Two processes."""
    yield Row(shape="llama-28m", rows=4, tokens=128, engine="ddp")
    yield Row(shape="llama-135m", rows=1, tokens=64, engine="ddp")
    yield Row(shape="llama-28m", rows=1, tokens=64, engine="ddp", precision="bf16-mixed")
    yield Row(shape="llama-28m", rows=4, tokens=128, engine="fsdp2")
    yield Row(shape="llama-28m", rows=4, tokens=128, engine="fsdp2", checkpointing="full")
    yield Row(shape="llama-28m", rows=4, tokens=128, engine="fsdp2", layout="packed", micros=2)
    yield Row(shape="llama-42m", rows=4, tokens=128, engine="fsdp2")
    yield Row(shape="llama-42m", rows=1, tokens=64, engine="fsdp2", reshard=False)
    yield Row(shape="llama-42m", rows=1, tokens=64, engine="fsdp2", reshard=False, micros=2)
    yield Row(shape="llama-28m", rows=1, tokens=64, engine="fsdp2", precision="bf16-mixed")
    yield Row(shape="llama-135m", rows=1, tokens=64, engine="fsdp2")
    yield Row(shape="llama-301m", rows=1, tokens=64, engine="fsdp2")


ROWS = (*_alone(), *_several())


def main(words: Sequence[str] | None = None) -> int:
    """Measure, show, write. Exit code 1 if a process failed, or a peak lies outside of its forecast."""
    words = sys.argv[1:] if words is None else words
    asked = _asked(words)
    when = occasion("benchmarks.forecast", words)
    chosen = [Row(shape="tiny", rows=2, tokens=16)] if asked.tiny else list(ROWS)
    measured = []
    for row in chosen:
        found = measure(row)
        if found is None:
            return 1
        measured.append((row, found))
        print(f"{row.shape}, {row.engine}, {row}: {_told(found)}", file=sys.stderr, flush=True)
    shown = page(when, measured)
    print(shown)
    record = {
        "benchmark": "forecast",
        "occasion": when,
        "measured": [{**asdict(row), **found} for row, found in measured],
    }
    places = report.write(asked.results, "forecast", shown, record)
    print(f"written: {', '.join(place.name for place in places)} in {asked.results.name}/", file=sys.stderr)
    return int(not all(_inside(found) for _, found in measured))


def _asked(words: Sequence[str]) -> argparse.Namespace:
    about = __doc__.partition("\n")[0] if __doc__ else None
    made = argparse.ArgumentParser(description=about, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    made.add_argument("--tiny", action="store_true", help="one tiny model alone: to see whether it runs")
    made.add_argument("--results", type=Path, default=report.RESULTS, help="folder for the results")
    return made.parse_args(words)


def measure(row: Row) -> dict[str, Any] | None:
    """What the process says that held most; None if one failed."""
    with tempfile.TemporaryDirectory(prefix="fulltune-bench-") as scratch:
        told = json.dumps(asdict(row.trial()))
        command = [sys.executable, "-m", "benchmarks.contestants.forecast", told, scratch]
        failed = run_agent(row.processes, command, Path(scratch) / "logs", patience=30)
        if failed is not None:
            print(f"{row.shape}, {row}: {failed}", file=sys.stderr)
            return None
        ranks = [json.loads((Path(scratch) / f"rank-{rank}.json").read_text()) for rank in range(row.processes)]
    most: dict[str, Any] = max(ranks, key=lambda rank: rank["peak"])
    return most


def _inside(found: Mapping[str, Any]) -> bool:
    return bool(found["low"] <= found["peak"] <= found["high"])


def _told(found: Mapping[str, Any]) -> str:
    here = "inside" if _inside(found) else "OUTSIDE"
    return f"{report.size(found['peak'])}, {here} of {report.size(found['low'])} to {report.size(found['high'])}"


def page(when: Occasion, measured: Sequence[tuple[Row, Mapping[str, Any]]]) -> str:
    """The result as Markdown."""
    lines = [
        [
            f"{row.shape}, {row}",
            row.engine,
            report.size(found["low"]),
            report.size(found["peak"]),
            report.size(found["high"]),
            f"{found['high'] / found['low']:.2f}",
            "yes" if _inside(found) else "no",
        ]
        for row, found in measured
    ]
    facts = dict(report.heading(when)) | {
        "engines": "`single` is one process, of all others there are two, over gloo; the one that held more is shown",
        "versions": f"torch {torch.__version__}, transformers {transformers.__version__}",
        "inside": f"{sum(_inside(found) for _, found in measured)} of {len(measured)}",
    }
    head = ["model, precision, micro-batch", "engine", "low", "measured", "high", "high / low", "inside"]
    return "\n\n".join(
        [
            "# The forecast of memory, and what was held",
            report.facts(facts),
            report.table(head, lines),
            "What is measured and how: [the benchmarks' README](../README.md).",
        ]
    )


if __name__ == "__main__":
    raise SystemExit(main())
