"""Several processes for one run: started here, or met where a launcher started them."""

import os
import socket
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from fulltune.base.errors import FulltuneError, Interrupted, RankError, RecipeError
from fulltune.base.log import LOGGER
from fulltune.base.place import FOLLOWED, place
from fulltune.engine.agent import Failure, Hosts, run_agent
from fulltune.engine.deepspeed import require_library
from fulltune.engine.launch import Meeting, alone, joined
from fulltune.recipe.load import Asked, given, recipe_of
from fulltune.recipe.schema import ZERO, EngineSection
from fulltune.runs import RunFolder, open_run
from fulltune.training.journal import Sink, followed

_KINDS = {kind.exit_code: kind for kind in FulltuneError.__subclasses__()}


@contextmanager
def together(recipe: Asked, overrides: Mapping[str, Any]) -> Iterator[Meeting]:
    """The processes that a launcher started for a recipe; this one alone if none did."""
    section = recipe_of(recipe, overrides).engine
    if section.name in ZERO:
        require_library()
    if wanted(section):
        yield alone()
        return
    with joined(section.timeout, grouped=section.name not in ("auto", "single")) as meeting:
        yield meeting


def wanted(section: EngineSection) -> int:
    """How many processes are to be started from here: none (0) where a launcher has, or where one is enough.

    RecipeError where the recipe says another number than the launcher.
    """
    here = place()
    if here.launched:
        if section.processes not in (None, here.here):
            raise RecipeError(
                f"engine.processes is {section.processes}, but {here.here} were started on this machine",
                where="engine.processes",
                mend="leave it out under a launcher",
            )
        return 0
    if section.name == "single":
        return 0
    count = section.processes or (torch.cuda.device_count() if torch.cuda.is_available() else 1)
    return count if count > 1 else 0


def start(processes: int, run: RunFolder, accept: Sequence[str], sinks: Sequence[Sink]) -> None:
    """Train a run in so many processes of this machine, under torchrun's agent; returns when they are done.

    `sinks` hear the run's journal. What one of the processes failed of is raised, after its words were shown; where it
    was killed, did not answer or ended in a way that has no name, all are started anew as often as the recipe says.
    """
    section, logs = run.recipe.engine, run.path / "logs"
    command = _command(str(run.path), *(word for name in accept for word in ("--accept-change", name)))
    LOGGER.info(f"starting {processes} processes")
    with followed(run.journal, sinks):
        for left in reversed(range(section.restarts + 1)):
            failed = run_agent(processes, command, logs, patience=section.timeout, variables={FOLLOWED: "1"})
            if failed is None:
                return
            fault = _ended(failed, processes, logs)
            if left == 0 or not isinstance(fault, RankError):
                raise fault
            LOGGER.warning(
                f"{fault.faults[0].what}; all are started anew; that is done {left - 1} times more if need be"
            )


def _command(*words: str) -> list[str]:
    """What each process runs."""
    return [sys.executable, "-m", "fulltune", "train", *words]


def train_here(
    recipe: str | os.PathLike[str],
    hosts: Hosts,
    changes: Sequence[str] = (),
    *,
    out: str | os.PathLike[str] | None = None,
    options: Sequence[str] = (),
) -> None:
    """This machine's part of training on several: starts its processes, which meet the others'; waits for them.

    The same is run on every machine, and the run folder lies where all see it: the first process of all prepares the
    data, and shows progress and the result. `changes`: of the recipe, as `KEY=VALUE`. `options`: others of the command.
    """
    if place().launched:
        raise RecipeError("a launcher started this process", where="--nodes", mend="let it say how many there are")
    run = open_run(recipe, given(changes), out=out)
    words = [os.fspath(recipe), *changes, *options, "--out", os.fspath(run.path)]
    section = run.recipe.engine
    if section.restarts:
        raise RecipeError(
            "one machine alone cannot start those of the others anew",
            where="engine.restarts",
            mend="leave it out: the same command on all goes on",
        )
    processes, logs = wanted(section) or 1, run.path / "logs" / f"{socket.gethostname()}-{os.getpid()}"
    LOGGER.info(f"starting {processes} processes here, to meet those of {hosts.count} machines at {hosts.rendezvous}")
    failed = run_agent(processes, _command(*words), logs, patience=section.timeout, hosts=hosts)
    if failed is not None:
        raise _ended(failed, processes, logs)


def _ended(failed: Failure, processes: int, logs: Path) -> FulltuneError:
    """What one of the processes failed of, after its words were shown."""
    if failed.said:
        LOGGER.error(f"process {failed.rank} said:\n{failed.said}\n")
    kind = _KINDS.get(failed.code, RankError)
    how = f"ended with exit code {failed.code}" if failed.code > 0 else f"was ended by signal {-failed.code}"
    mend = "the same command goes on" if kind in (Interrupted, RankError) else "as its message says"
    return kind(f"process {failed.rank} of {processes} {how}", where=str(logs), mend=mend)
