"""Several processes for one run: started here, or met where a launcher started them."""

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from fulltune.base.errors import FulltuneError, Interrupted, RankError, RecipeError
from fulltune.base.log import LOGGER
from fulltune.base.place import FOLLOWED, place
from fulltune.engine.agent import run_agent
from fulltune.engine.deepspeed import require_library
from fulltune.engine.launch import Meeting, alone, joined
from fulltune.recipe.load import Asked
from fulltune.recipe.schema import ZERO, EngineSection
from fulltune.runs import RunFolder, recipe_of
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

    `sinks` hear the run's journal. What one of the processes failed of is raised, after its words were shown.
    """
    accepted = [word for name in accept for word in ("--accept-change", name)]
    command = [sys.executable, "-m", "fulltune", "train", str(run.path), *accepted]
    LOGGER.info(f"starting {processes} processes")
    with followed(run.journal, sinks):
        failed = run_agent(
            processes, command, run.path / "logs", patience=run.recipe.engine.timeout, variables={FOLLOWED: "1"}
        )
    if failed is None:
        return
    if failed.said:
        LOGGER.error(f"process {failed.rank} said:\n{failed.said}\n")
    kind = _KINDS.get(failed.code, RankError)
    how = f"ended with exit code {failed.code}" if failed.code > 0 else f"was ended by signal {-failed.code}"
    mend = "the same command goes on" if kind in (Interrupted, RankError) else "as its message says"
    raise kind(f"process {failed.rank} of {processes} {how}", where=str(run.path / "logs"), mend=mend)
