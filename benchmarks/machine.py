"""Where and what was measured: the machine, the commit, the command, without a path of this machine in it."""

import datetime
import os
import platform
import re
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.fresh import ROOT


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """What it ran on."""

    cpu: str
    cores: int
    """That this process may use."""
    memory: int
    system: str
    load: float
    """Processes that wanted a core in the last minute before it began: more than a few, and others were at work."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Occasion:
    """When, where and how."""

    date: str
    command: str
    commit: str
    machine: Machine


def occasion(module: str, words: Sequence[str]) -> Occasion:
    """Of this run of `python -m module words`."""
    return Occasion(
        date=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        command=command(module, words),
        commit=commit(),
        machine=machine(),
    )


def machine() -> Machine:
    """This one, as Linux tells it."""
    cpu = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    memory = re.search(r"^MemTotal:\s+(\d+) kB$", Path("/proc/meminfo").read_text(), re.MULTILINE)
    return Machine(
        cpu=cpu[1].strip() if cpu else platform.machine(),
        cores=len(os.sched_getaffinity(0)),
        memory=int(memory[1]) * 1024 if memory else 0,
        system=f"{platform.system()} {platform.release()}",
        load=round(os.getloadavg()[0], 2),
    )


def command(module: str, words: Sequence[str]) -> str:
    """As it was typed; of a path that lies outside the project only its name is shown."""
    return " ".join(["python", "-m", module, *map(_shown, words)])


def commit() -> str:
    """Of the project, and whether something was changed since; `unknown` where there is no git."""
    try:
        head, changes = (
            subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()
            for words in (("rev-parse", "--short=12", "HEAD"), ("status", "--porcelain"))
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return f"{head} with changes" if changes else head


def _shown(word: str) -> str:
    option, equals, value = word.partition("=") if word.startswith("--") else ("", "", word)
    if os.sep not in value:
        return word
    path = Path(value).absolute()  # not resolved: a link may lead to where nobody pointed
    shown = str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else f".../{path.name}"
    return f"{option}{equals}{shown}"
