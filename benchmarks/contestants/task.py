"""What a contestant is told and what it answers; free of everything that contestants import."""

import dataclasses
import importlib.metadata
import json
import os
import platform
import re
import resource
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

_PACKAGES = ("datasets", "numpy", "pyarrow", "tokenizers", "torch", "transformers", "trl")


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """One run of one contestant, as a JSON file."""

    rows: str
    """The JSONL file."""
    model: str
    """A folder with tokenizer, chat template and config."""
    out: str
    """A folder that is not there yet, for all that the contestant writes."""
    answer: str
    """Where the answer goes, as JSON."""
    processes: int
    max_length: int
    heldout: float
    cores: int | None = None
    """How many of the cores it may use; by default all."""
    dump: str | None = None
    """A folder for every row as it came out, to be compared; by default none."""

    @classmethod
    def given(cls) -> "Task":
        """The task that the command line names. Keeps the process to its cores."""
        task = cls(**json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))
        if task.cores is not None:
            os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: task.cores])
        return task

    def write(self, path: Path) -> None:
        """The file that `given` reads."""
        path.write_text(json.dumps(dataclasses.asdict(self)), encoding="utf-8")

    @property
    def workers(self) -> int | None:
        """As `datasets` wants it: None for the process itself, since 1 would start a worker beside it."""
        return self.processes if self.processes > 1 else None


@dataclass(frozen=True, slots=True)
class Clock:
    """Phases with their beginning and end, by the clock that all processes of a machine share."""

    phases: dict[str, tuple[float, float]] = field(default_factory=dict)
    cpu: dict[str, tuple[float, float]] = field(default_factory=dict)
    """CPU seconds since the process was started, at the beginning and the end of each phase."""

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Times the block."""
        begun, used = time.monotonic(), cpu()
        yield
        self.phases[name], self.cpu[name] = (begun, time.monotonic()), (used, cpu())


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What a contestant says of itself."""

    phases: Mapping[str, tuple[float, float]]
    cpu: Mapping[str, tuple[float, float]]
    """As the clock told them."""
    main_peak: int
    """Bytes: the kernel's high-water mark of the process that was started."""
    rows: int
    tokens: int
    supervised_tokens: int
    written: int
    """Bytes of files that it left."""
    versions: Mapping[str, str]
    remarks: Mapping[str, str]
    """What a reader must know of how it ran."""

    def write(self, path: str) -> None:
        """The file that `read` reads."""
        Path(path).write_text(json.dumps(dataclasses.asdict(self)), encoding="utf-8")

    @classmethod
    def read(cls, path: Path) -> "Answer":
        """What a contestant wrote."""
        plain: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        phases, cpu = (
            {name: (begun, ended) for name, (begun, ended) in plain.pop(key).items()} for key in ("phases", "cpu")
        )
        return cls(phases=phases, cpu=cpu, **plain)

    @property
    def seconds(self) -> dict[str, float]:
        """How long each phase took."""
        return {name: ended - begun for name, (begun, ended) in self.phases.items()}

    @property
    def cpu_seconds(self) -> float:
        """CPU seconds of all phases."""
        return sum(ended - begun for begun, ended in self.cpu.values())

    @property
    def cpu_from_start(self) -> float:
        """CPU seconds up to the end of the last phase, interpreter and imports too."""
        return max(ended for _, ended in self.cpu.values())

    @property
    def window(self) -> tuple[float, float]:
        """From the beginning of the first phase to the end of the last; imports lie before it."""
        return min(begun for begun, _ in self.phases.values()), max(ended for _, ended in self.phases.values())


def cpu() -> float:
    """CPU seconds of this process so far, and of those that it started and that have ended."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in used)


def main_peak() -> int:
    """The most memory that this process held so far, in bytes.

    VmHWM and not ru_maxrss: that one is carried over by exec, so it begins at the size of the process that started us.
    """
    found = re.search(r"^VmHWM:\s+(\d+) kB$", Path("/proc/self/status").read_text(), re.MULTILINE)
    if found is None:
        raise OSError("this kernel does not tell VmHWM in /proc/self/status")
    return int(found[1]) * 1024


def versions() -> dict[str, str]:
    """Of Python and of every package here that matters."""
    installed = {dist.name.lower(): dist.version for dist in importlib.metadata.distributions() if dist.name}
    return {"python": platform.python_version()} | {name: installed[name] for name in _PACKAGES if name in installed}


def size(folders: Iterable[str]) -> int:
    """Bytes of all files in folders."""
    return sum(path.stat().st_size for folder in folders for path in Path(folder).rglob("*") if path.is_file())
