"""Options that the benchmarks share, and the folder that they work in."""

import argparse
import signal
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks import material, report, rows
from benchmarks.contestants.task import Task


@dataclass(frozen=True, slots=True)
class Bench:
    """A folder with everything that contestants read and write."""

    folder: Path
    asked: argparse.Namespace

    @property
    def model(self) -> Path:
        """Tokenizer, chat template and config."""
        return self.folder / "model"

    def rows(self, count: int) -> Path:
        """The file of so many rows."""
        return self.folder / f"rows-{count}.jsonl"

    def task(self, name: str, count: int, *, dump: Path | None = None) -> Task:
        """To prepare so many rows; `name` is that of the folder for what comes out."""
        return Task(
            rows=str(self.rows(count)),
            model=str(self.model),
            out=str(self.folder / name),
            answer=str(self.folder / f"{name}.json"),
            processes=self.asked.processes,
            max_length=self.asked.max_length,
            heldout=self.asked.heldout,
            cores=self.asked.cores,
            dump=None if dump is None else str(dump),
        )

    def facts(self, counts: list[int]) -> dict[str, str]:
        """What was prepared: digests that another run can be compared by."""
        found = {f"rows-{count}.jsonl": material.digest(self.rows(count)) for count in counts}
        return found | {"model": material.digest(self.model)}


def parser(about: str | None) -> argparse.ArgumentParser:
    """With the options that all benchmarks have."""
    made = argparse.ArgumentParser(description=about, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    made.add_argument("--processes", type=positive, default=2, help="worker processes of each contestant")
    made.add_argument("--cores", type=positive, help="cores that a contestant may use; all, unless given")
    made.add_argument("--source", type=Path, help="JSONL file that rows are made from; else the embedded data")
    made.add_argument("--tokenizer", type=Path, help="folder with a tokenizer; else the embedded model's")
    made.add_argument("--template", type=Path, help="Jinja file; else that of the tokenizer")
    made.add_argument("--max-length", type=positive, default=2048, help="most tokens of a row")
    made.add_argument("--heldout", type=float, default=0.01, help="share of rows that fulltune holds out")
    made.add_argument("--seed", type=int, default=0, help="of the rows")
    made.add_argument("--work", type=Path, help="folder on the disk to work on; else that for temporary files")
    made.add_argument("--results", type=Path, default=report.RESULTS, help="folder for the results")
    return made


def positive(text: str) -> int:
    """A whole number from 1."""
    if (number := int(text)) < 1:
        raise ValueError
    return number


@contextmanager
def bench(asked: argparse.Namespace, counts: list[int]) -> Iterator[Bench]:
    """The model folder and a file of rows for each count, removed afterwards with all that contestants wrote."""
    with endable(), tempfile.TemporaryDirectory(dir=asked.work, prefix="fulltune-bench-") as folder:
        made = Bench(Path(folder), asked)
        material.model_folder(made.model, asked.tokenizer, asked.template)
        corpus = material.corpus(asked.source, asked.seed)
        for count in counts:
            rows.write(made.rows(count), corpus, count, asked.seed)
        yield made


@contextmanager
def endable() -> Iterator[None]:
    """Within the block SIGTERM is what Ctrl-C is: contestants end and files are removed, also if run in background."""
    before = {number: signal.signal(number, signal.default_int_handler) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
