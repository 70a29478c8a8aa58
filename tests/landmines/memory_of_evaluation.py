"""Peak memory of evaluations: `python -m tests.landmines.memory_of_evaluation FOLDER KIND...`, each in its own fork.

Prints a line for each: by how many bytes the most memory ever held grew, with few rows, then with twenty times as
many, then where the logits of those rows are kept, as frameworks do that gather predictions.
"""

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from fulltune.data.feed import once
from fulltune.data.lay import Budget
from fulltune.evaluation.heldout import measure
from tests import tiny
from tests.contract.ground import Ground
from tests.unit.evaluation.test_suites import asked, suite

FEW, MANY = 64, 1280
VOCAB = 8000
"""Logits of one token take 32 kB: 1280 rows of ten tokens would be 400 MB."""


def peak() -> int:
    """Of this process alone: what getrusage says begins with what the process that started it held."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


def heldout(folder: Path) -> tuple[Callable[[int], Any], Any]:
    model = tiny.model("llama", vocab=VOCAB)
    grounds = {count: Ground(folder / str(count), model, count=count) for count in (FEW, MANY)}

    def run(count: int) -> None:
        batches = {"all": lambda: once(grounds[count].store, Budget(8, 10_000, "padded"))}
        measure({"heldout": batches}, grounds[count].engine, grounds[count].objective, step=0)

    return run, model


def suites(kind: str, folder: Path) -> tuple[Callable[[int], Any], Any]:
    model, made = tiny.model("llama", vocab=VOCAB), {}
    for count in (FEW, MANY):
        rows = [{"question": row["prompt"], "answer": row["completion"]} for row in tiny.rows(count, longest=8)]
        folder.mkdir(exist_ok=True)
        path = tiny.jsonl(folder / f"{count}.jsonl", rows)
        fields = {"max_new_tokens": 2, "metrics": "chrf"} if kind == "answer" else {"kind": kind}
        made[count] = suite(path, prompt="question", answer="answer", resamples=100, **fields)
    return lambda count: asked(made[count], model, tokens=512, folder=folder / "out"), model


def measured(kind: str, folder: Path) -> None:
    run, model = heldout(folder) if kind == "heldout" else suites(kind, folder)
    run(FEW)
    start = peak()
    run(FEW)
    few = peak()
    run(MANY)
    many = peak()
    kept = []
    with torch.no_grad():
        for _ in range(MANY // 4):
            kept.append(model(input_ids=torch.zeros(1, 40, dtype=torch.long)).logits)
    print(few - start, many - few, peak() - many, flush=True)


def main(folder: Path, kinds: list[str]) -> None:
    """Imported once; a fork's peak begins with what it holds."""
    torch.set_num_threads(1)
    for kind in kinds:
        if (child := os.fork()) == 0:
            measured(kind, folder / kind)
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
