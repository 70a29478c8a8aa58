"""What those who train are told and answer; free of everything that they import."""

import dataclasses
import json
import os
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

RATE, CLIP = 2e-4, 1.0
"""Of every run: AdamW at a constant rate, without weight decay, gradients cut to this norm."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Course:
    """One run of one contestant, as a JSON file."""

    model: str
    """A folder with float32 weights."""
    rows: str
    """Tokenised examples."""
    heldout: str
    """Others, which nobody trains on."""
    order: list[int]
    """The examples as they come; each once."""
    batch: int
    """Examples of one update."""
    precision: str
    out: str
    """A folder that is not there yet, for all that the contestant writes."""
    answer: str
    """Where the answer goes, as JSON."""

    @classmethod
    def given(cls) -> "Course":
        """The course that the command line names."""
        return cls(**json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))

    def write(self, path: Path) -> None:
        """The file that `given` reads."""
        path.write_text(json.dumps(dataclasses.asdict(self)), encoding="utf-8")

    @property
    def updates(self) -> int:
        """How many."""
        return len(self.order) // self.batch


@dataclass(frozen=True, slots=True)
class Mark:
    """A moment between two updates."""

    at: float
    """Seconds since the process was started."""
    cpu: float
    """CPU seconds of all its threads so far."""

    @classmethod
    def now(cls) -> "Mark":
        """This moment."""
        return cls(age(), time.process_time())


@dataclass(frozen=True, slots=True, kw_only=True)
class Trained:
    """What a contestant says of itself."""

    marks: list[Mark]
    """When the first update began, and when each had ended."""
    tokens: list[int]
    """Of each update, without padding."""
    supervised: list[int]
    losses: list[float]
    prepared: float
    """Seconds from the tokenised file to what the training reads."""
    peak: int
    """The most memory that the process had held when the last update ended, in bytes."""
    weights: str
    """The folder of the trained model."""
    versions: Mapping[str, str]

    def write(self, path: str) -> None:
        """The file that `read` reads."""
        Path(path).write_text(json.dumps(dataclasses.asdict(self)), encoding="utf-8")

    @classmethod
    def read(cls, path: Path) -> "Trained":
        """What a contestant wrote."""
        plain: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return cls(marks=[Mark(**mark) for mark in plain.pop("marks")], **plain)


def age() -> float:
    """Seconds since this process was started, to a hundredth."""
    # The name stands in parentheses and may hold any character; the start is the 20th field behind it, in ticks.
    begun = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19]) / os.sysconf("SC_CLK_TCK")
    return time.clock_gettime(time.CLOCK_BOOTTIME) - begun
