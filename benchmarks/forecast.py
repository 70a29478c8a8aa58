"""The forecast of memory held against reality: random models trained on this machine's CPU, in fresh processes."""

import argparse
import importlib.util
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
from benchmarks.contestants.forecast import Trial, expected
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
    "llama-wide": {"intermediate_size": 1024, "num_hidden_layers": 1, "vocab_size": 512},
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


_CHECKPOINTED = {"full": "checkpointed", "selective": "checkpointed but for products"}


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
    optimizer: str = "adamw"
    in_backward: str = "off"
    tile: int | None = None

    @property
    def processes(self) -> int:
        """Two, unless one has all."""
        return 1 if self.engine == "single" else 2

    def __str__(self) -> str:
        said = [self.shape, self.engine, self.precision, self.layout, f"{self.rows} x {self.tokens}"]
        said += [f"{self.micros} micro-batches"] if self.micros > 1 else []
        said += [_CHECKPOINTED[self.checkpointing]] if self.checkpointing != "none" else []
        said += [f"{self.attention} attention"] if self.attention != "auto" else []
        said += ["weights kept"] if not self.reshard else []
        said += [self.optimizer] if self.optimizer != "adamw" else []
        said += [f"in backward, {self.in_backward}"] if self.in_backward != "off" else []
        said += [f"MLPs by {self.tile} tokens"] if self.tile else []
        return ", ".join(said)

    def trial(self) -> Trial:
        """As the processes are told."""
        engine: dict[str, Any] = {"name": self.engine} | ({} if self.reshard else {"reshard": False})
        model = {**_COMMON, **SHAPES[self.shape], "max_position_embeddings": 4096}
        attention = {} if self.attention == "auto" else {"attn_implementation": self.attention}
        return Trial(
            model=model | attention,
            precision=self.precision,  # type: ignore[arg-type]
            layout=self.layout,  # type: ignore[arg-type]
            rows=self.rows,
            tokens=self.tokens,
            micros=self.micros,
            engine=self.engine,  # type: ignore[arg-type]
            sections={
                "model": {"path": "/none", "attention": self.attention},
                "memory": {"checkpointing": self.checkpointing, "mlp_tile": self.tile},
                "optim": {"name": self.optimizer, "in_backward": self.in_backward}
                | ({"clip": None} if self.in_backward == "one_pass" else {}),
                "engine": engine,
            },
        )


def _alone() -> Iterator[Row]:
    """One process."""
    yield Row(shape="llama-11m", rows=4, tokens=128)
    yield Row(shape="llama-28m", rows=2, tokens=128)
    yield Row(shape="llama-28m", rows=2, tokens=128, checkpointing="full")
    yield Row(shape="llama-28m", rows=2, tokens=128, checkpointing="selective")
    yield Row(shape="llama-28m", rows=2, tokens=128, layout="packed")
    yield Row(shape="llama-28m", rows=2, tokens=128, layout="packed", checkpointing="full")
    yield Row(shape="llama-28m", rows=2, tokens=128, layout="packed", checkpointing="selective")
    yield Row(shape="llama-28m", rows=1, tokens=384, attention="eager")
    yield Row(shape="llama-28m", rows=1, tokens=384, attention="eager", checkpointing="selective")
    for checkpointing in ("none", "selective", "full"):
        yield Row(shape="llama-11m", rows=16, tokens=128, checkpointing=checkpointing)
    yield Row(shape="llama-28m", rows=1, tokens=128, micros=4)
    yield Row(shape="llama-42m", rows=2, tokens=128)
    yield Row(shape="qwen3-57m", rows=2, tokens=128)
    yield Row(shape="qwen3-57m", rows=2, tokens=128, checkpointing="full")
    yield Row(shape="qwen3-57m", rows=2, tokens=128, checkpointing="selective")
    yield Row(shape="llama-135m", rows=1, tokens=64)
    yield Row(shape="llama-301m", rows=1, tokens=32)
    yield Row(shape="llama-wide", rows=66, tokens=256)
    for precision in ("bf16-mixed", "bf16-sr"):
        yield Row(shape="llama-28m", rows=1, tokens=32, precision=precision)
        yield Row(shape="llama-28m", rows=1, tokens=32, precision=precision, checkpointing="selective")
        yield Row(shape="llama-28m", rows=1, tokens=32, precision=precision, layout="packed", checkpointing="full")
    yield Row(shape="llama-28m", rows=1, tokens=32, precision="bf16-sr", micros=2)
    for way, precision in (("two_passes", "float32"), ("one_pass", "float32"), ("two_passes", "bf16-sr")):
        yield Row(shape="llama-135m", rows=1, tokens=64, in_backward=way, precision=precision)
    yield Row(shape="llama-28m", rows=1, tokens=2048, tile=256)
    yield Row(shape="llama-28m", rows=1, tokens=2048, tile=256, checkpointing="full")
    for optimizer in ("schedule_free_adamw", "galore", "apollo_mini"):
        yield Row(shape="llama-42m", rows=1, tokens=64, optimizer=optimizer)


def _several() -> Iterator[Row]:
    """Two processes."""
    yield Row(shape="llama-28m", rows=1, tokens=128, engine="ddp")
    yield Row(shape="llama-135m", rows=1, tokens=32, engine="ddp")
    yield Row(shape="llama-28m", rows=1, tokens=32, engine="ddp", precision="bf16-mixed")
    yield Row(shape="llama-28m", rows=1, tokens=128, engine="fsdp2")
    yield Row(shape="llama-28m", rows=1, tokens=128, engine="fsdp2", checkpointing="selective")
    yield Row(shape="llama-28m", rows=1, tokens=128, engine="fsdp2", checkpointing="full")
    yield Row(shape="llama-28m", rows=1, tokens=128, engine="fsdp2", layout="packed", micros=2)
    yield Row(shape="llama-42m", rows=1, tokens=32, engine="fsdp2", reshard=False)
    yield Row(shape="llama-42m", rows=1, tokens=32, engine="fsdp2", reshard=False, micros=2)
    yield Row(shape="llama-28m", rows=1, tokens=32, engine="fsdp2", precision="bf16-mixed")
    yield Row(shape="llama-135m", rows=1, tokens=32, engine="fsdp2")
    yield Row(shape="llama-301m", rows=1, tokens=32, engine="fsdp2")


def _zero() -> Iterator[Row]:
    """Two processes, by DeepSpeed where it is installed."""
    if importlib.util.find_spec("deepspeed") is None:
        return
    for engine in ("zero1", "zero2", "zero3"):
        yield Row(shape="llama-28m", rows=1, tokens=128, engine=engine)
        yield Row(shape="llama-28m", rows=1, tokens=32, engine=engine, precision="bf16-mixed", micros=2)
        yield Row(shape="llama-135m", rows=1, tokens=32, engine=engine)


ROWS = (*_alone(), *_several(), *_zero())
_TINY = (Row(shape="tiny", rows=2, tokens=16), Row(shape="tiny", rows=2, tokens=16, engine="fsdp2"))


def main(words: Sequence[str] | None = None) -> int:
    """Measure, show, write. Exit code 1 if a process failed, or a peak lies outside of its forecast."""
    words = sys.argv[1:] if words is None else words
    asked = _asked(words)
    when = occasion("benchmarks.forecast", words)
    known = _peaks(asked.again)
    measured = []
    for row in (row for row in (_TINY if asked.tiny else ROWS) if asked.only in str(row)):
        peak = known[str(row)] if str(row) in known else measure(row)
        if peak is None:
            return 1
        parameters, made = expected(row.trial(), row.processes)
        parts = {part.name: [part.low, part.high] for part in made.parts}
        found = {"parameters": parameters, "peak": peak, "low": made.low, "high": made.high, "parts": parts}
        measured.append((row, found))
        print(f"{row}: {_told(found)}", file=sys.stderr, flush=True)
    shown = page(when, measured, asked.again)
    print(shown)
    record = {
        "benchmark": "forecast",
        "occasion": when,
        "asked": vars(asked),
        "measured": [{"row": str(row), **asdict(row), **found} for row, found in measured],
    }
    places = report.write(asked.results, "forecast", shown, record)
    print(f"written: {', '.join(place.name for place in places)} in {asked.results.name}/", file=sys.stderr)
    return int(not all(_inside(found) for _, found in measured))


def _asked(words: Sequence[str]) -> argparse.Namespace:
    about = __doc__.partition("\n")[0] if __doc__ else None
    made = argparse.ArgumentParser(description=about, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    made.add_argument("--tiny", action="store_true", help="tiny models alone: to see whether it runs")
    made.add_argument("--only", default="", metavar="WORDS", help="cases alone whose line has these words")
    made.add_argument(
        "--again",
        nargs="+",
        type=Path,
        default=[],
        metavar="FILE",
        help="JSON of earlier runs, whose peaks are taken, the last one's of each case: only the forecast is new",
    )
    made.add_argument("--results", type=Path, default=report.RESULTS, help="folder for the results")
    return made.parse_args(words)


def _peaks(again: Sequence[Path]) -> Mapping[str, int]:
    """By row, what the last of these runs that has it measured."""
    measured = (json.loads(path.read_text(encoding="utf-8"))["measured"] for path in again)
    return {one["row"]: one["peak"] for run in measured for one in run}


def measure(row: Row) -> int | None:
    """The peak of the process that held most; None if one failed."""
    with tempfile.TemporaryDirectory(prefix="fulltune-bench-") as scratch:
        told = json.dumps(asdict(row.trial()))
        command = [sys.executable, "-m", "benchmarks.contestants.forecast", told, scratch]
        failed = run_agent(row.processes, command, Path(scratch) / "logs", patience=30)
        if failed is not None:
            print(f"{row}: {failed}", file=sys.stderr)
            return None
        ranks = [Path(scratch) / f"rank-{rank}.json" for rank in range(row.processes)]
        return max(int(path.read_text()) for path in ranks)


def _inside(found: Mapping[str, Any]) -> bool:
    return bool(found["low"] <= found["peak"] <= found["high"])


def _told(found: Mapping[str, Any]) -> str:
    here = "inside" if _inside(found) else "OUTSIDE"
    return f"{report.size(found['peak'])}, {here} of {report.size(found['low'])} to {report.size(found['high'])}"


def page(when: Occasion, measured: Sequence[tuple[Row, Mapping[str, Any]]], again: Sequence[Path]) -> str:
    """The result as Markdown."""
    names = ", then ".join(path.name for path in again)
    taken = {"peaks": f"those of {names}; the forecast was made anew"} if again else {}
    lines = [
        [
            str(row),
            report.size(found["low"]),
            report.size(found["peak"]),
            report.size(found["high"]),
            f"{found['high'] / found['low']:.2f}",
            "yes" if _inside(found) else "no",
        ]
        for row, found in measured
    ]
    facts = (
        dict(report.heading(when))
        | taken
        | {
            "engines": "`single` is one process, the others are two, over gloo; shown is the one that held more",
            "versions": f"torch {torch.__version__}, transformers {transformers.__version__}",
            "inside": f"{sum(_inside(found) for _, found in measured)} of {len(measured)}",
        }
    )
    head = ["model, engine, precision, micro-batch", "low", "measured", "high", "high / low", "inside"]
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
