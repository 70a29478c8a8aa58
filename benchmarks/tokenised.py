"""Rows as tokens, made once for all who train on them: JSONL of `input_ids` and `labels`, -100 where not taught."""

import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import fulltune
from benchmarks.contestants.dump import IGNORE
from benchmarks.fresh import ROOT
from fulltune.data.order import Order
from fulltune.material import stores
from fulltune.runs import open_run

SHARED = ROOT.parent / "shared" / "data"
EMBEDDED = ROOT / "src" / "fulltune" / "embedded"
SOURCES = {
    "gsm8k": (SHARED / "gsm8k/train_first2000.norm.jsonl", SHARED / "gsm8k/test.norm.jsonl"),
    "dolly": (SHARED / "dolly_hhrlhf_small/train.norm.jsonl", SHARED / "self_instruct_seeds/all.norm.jsonl"),
    "embedded": (EMBEDDED / "train.jsonl", EMBEDDED / "heldout.jsonl"),
}
"""What is taught, and what is held out."""
POOL = 2000
"""Rows that examples are picked from."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Lesson:
    """One file of tokenised examples."""

    path: Path
    examples: int
    tokens: int
    supervised: int
    longest: int


def write(rows: Path, model: Path, target: Path, *, count: int, max_length: int) -> Lesson:
    """The first so many rows of a JSONL file, tokenised by fulltune with a model's template; longer ones are cut."""
    with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
        some = Path(scratch) / "rows.jsonl"
        with rows.open(encoding="utf-8") as file:
            some.write_text("".join(islice(file, count)), encoding="utf-8")
        data = {"train": str(some), "heldout": 0, "max_length": max_length}
        lenient = {"over_length": "truncate", "on_bad_row": "drop", "duplicates": "drop"}
        recipe = {"model": {"path": str(model)}, "data": data | lenient}
        fulltune.prepare(recipe, out=Path(scratch) / "run")
        run = open_run(str(Path(scratch) / "run"), {})
        store = stores(run.data, run.data_facts())["train"]
        encoded = [(store[n].ids.tolist(), store[n].labels.tolist()) for n in range(len(store))]
    lines = [{"input_ids": ids, "labels": [IGNORE, *labels[:-1]]} for ids, labels in encoded]  # a store's are shifted
    return _lesson(lines, target)


def pick(pool: Path, target: Path, *, updates: int, batch: int) -> Lesson:
    """Some of a file's examples, such that groups of `batch` are as long as groups by length of a large file are.

    Of so few a sampler that groups them would find no similar ones, and pad more than it does in a real run. So the
    file is cut into as many parts by length as there are updates, and neighbours are taken from the middle of each.
    ValueError if there are too few.
    """
    lines = sorted(map(json.loads, pool.read_text(encoding="utf-8").splitlines()), key=lambda line: len(line["labels"]))
    part = len(lines) // updates
    if part < batch:
        raise ValueError(f"{len(lines)} examples are too few for {updates} updates of {batch}")
    begin = (part - batch) // 2
    return _lesson([line for n in range(updates) for line in lines[n * part + begin :][:batch]], target)


def _lesson(lines: Sequence[Mapping[str, list[int]]], target: Path) -> Lesson:
    target.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return Lesson(
        path=target,
        examples=len(lines),
        tokens=sum(len(line["labels"]) for line in lines),
        supervised=sum(label != IGNORE for line in lines for label in line["labels"]),
        longest=max(len(line["labels"]) for line in lines),
    )


def order(examples: int, count: int, *, seed: int) -> list[int]:
    """The examples that a run of fulltune with this seed sees first, in order: others are to see the same ones."""
    return [int(number) for number in Order((examples,), shares=None, seed=seed).at(0, count)]


def read(path: Path, which: Sequence[int]) -> list[dict[str, list[int]]]:
    """Some of the examples of a file."""
    lines = path.read_text(encoding="utf-8").splitlines()
    return [json.loads(lines[number]) for number in which]
