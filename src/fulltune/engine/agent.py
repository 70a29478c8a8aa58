"""Starts processes on this machine, and ends them together: torchrun's elastic agent, as a library.

Each machine of a run on several starts its own; they meet at one place.
"""

import dataclasses
import os
import signal
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException, Std
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, launch_agent

from fulltune.base.errors import Interrupted, RankError

_SIGNALS = "SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1,SIGUSR2"
_LINES = 30
"""Of what a process said last, to be shown where it failed."""


@dataclass(frozen=True, slots=True)
class Failure:
    """The process that failed first: its number here, exit code (less than 0: the signal that ended it), last words."""

    rank: int
    code: int
    said: str


@dataclass(frozen=True, slots=True)
class Hosts:
    """The machines of a run, which of them this is, and where they meet."""

    count: int
    rendezvous: str
    """`HOST:PORT` of the first of them."""
    number: int | None = None
    """From 0; None: as they come."""
    name: str = "fulltune"
    """Of what they meet for: the same on all."""

    def config(self) -> dict[str, Any]:
        """What torch's agent is told of them."""
        told = {"min_nodes": self.count, "max_nodes": self.count, "rdzv_endpoint": self.rendezvous, "run_id": self.name}
        if self.number is None:
            return told | {"rdzv_backend": "c10d"}
        return told | {"rdzv_backend": "static", "rdzv_configs": {"rank": self.number}}


def run_agent(
    processes: int,
    command: Sequence[str],
    logs: Path,
    *,
    patience: float,
    variables: Mapping[str, str] | None = None,
    hosts: Hosts | None = None,
) -> Failure | None:
    """Run a command in so many processes with these environment variables more, and wait; None if all went well.

    What the first here says to stderr is seen at once, all else lies in `logs`; with `hosts` its results are seen too.
    If one fails, the others are asked to end; so they are by a signal to this process, which is passed on, and have
    `patience` seconds for it.
    """
    meeting = (hosts or Hosts(1, "localhost:0", name=f"pid{os.getpid()}")).config()
    quiet = ({} if hosts else {0: Std.OUT}) | dict.fromkeys(range(1, processes), Std.ALL)
    known = {field.name for field in dataclasses.fields(LaunchConfig)}
    # Before it had this option the agent killed after 30 seconds (torch 2.11 has it not).
    ending: dict[str, Any] = {"shutdown_timeout": int(patience)} if "shutdown_timeout" in known else {}
    config = LaunchConfig(
        nproc_per_node=processes,
        max_restarts=0,
        monitor_interval=0.1,
        signals_to_handle=_SIGNALS,
        logs_specs=DefaultLogsSpecs(log_dir=str(logs), redirects=quiet),
        **meeting,
        **ending,
    )
    os.environ.update(variables or {})  # which the processes inherit
    before = {number: signal.getsignal(number) for number in map(signal.Signals.__getitem__, _SIGNALS.split(","))}
    try:
        launch_agent(config, command[0], list(command[1:]))
    except ChildFailedError as fault:
        failed = {int(one.local_rank): int(one.exitcode) for one in fault.failures.values()}
        # Who was asked to end, or lost the others, is never the first, in whatever order they were found.
        after = (-signal.SIGTERM, RankError.exit_code)
        rank = min(failed, key=lambda rank: (failed[rank] in after, rank))
        return Failure(rank, failed[rank], _said(logs, meeting["run_id"], rank))
    except SignalException:
        return Failure(0, Interrupted.exit_code, "")
    finally:  # the agent leaves its own
        for variable in variables or {}:
            del os.environ[variable]
        for number, handler in before.items():
            if signal.getsignal(number) is not handler:
                signal.signal(number, handler)
    return None


def _said(logs: Path, name: str, rank: int) -> str:
    """The last lines of a process that did not speak to the terminal."""
    found = sorted(logs.glob(f"{name}_*/attempt_0/{rank}/stderr.log"), key=lambda path: path.stat().st_mtime)
    return "\n".join(found[-1].read_text(encoding="utf-8", errors="replace").splitlines()[-_LINES:]) if found else ""
