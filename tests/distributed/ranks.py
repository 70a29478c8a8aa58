"""What each rank runs for the contract: every case with one meeting, its figures on disk at the end.

`python -m tests.distributed.ranks FOLDER CASE...`, started by `together` in the environment of a launcher.
"""

import atexit
import importlib.util
import itertools
import json
import os
import runpy
import signal
import socket
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import pytest
import torch

from fulltune.engine.contract import World
from fulltune.engine.crew import Crew
from fulltune.engine.launch import Meeting, joined
from fulltune.engine.layout import Layout
from fulltune.engine.replicated import Replicated
from fulltune.engine.sharded import Sharded
from fulltune.engine.single import Single
from fulltune.engine.zero import ZeroEngine
from fulltune.model import facts
from fulltune.planning.deepspeed import configuration
from fulltune.planning.precision import precision_plan
from fulltune.recipe.load import load_recipe
from fulltune.training.step import Outcome, step
from tests import tiny
from tests.contract.ground import Ground
from tests.faults import forkserver
from tests.faults.forkserver import ForkServer, Job

UPDATES = 20
HAS_DEEPSPEED = importlib.util.find_spec("deepspeed") is not None
NEEDS_DEEPSPEED = pytest.mark.skipif(
    not HAS_DEEPSPEED, reason="deepspeed is not installed: pip install 'fulltune[deepspeed]'"
)
_PORTS = itertools.count()
WARM = (*forkserver.WARM, "torch.distributed.fsdp", "tests.distributed.ranks", *(["deepspeed"] * HAS_DEEPSPEED))


@dataclass(frozen=True)
class Case:
    """A model, the layout it is laid out by, and what is odd about the data."""

    layout: str
    kind: str = "llama"
    micro: int = 2
    precision: str = "float32"

    def __str__(self) -> str:
        return ":".join(map(str, (self.layout, self.kind, self.micro, self.precision)))

    @classmethod
    def of(cls, text: str) -> "Case":
        layout, kind, micro, precision = text.split(":")
        return cls(layout, kind, int(micro), precision)

    def lay(self, model: Any, world: World, crew: Crew) -> Layout:
        shard = partial(Sharded, world, crew, facts.blocks(model))
        made: dict[str, Any] = {
            "single": lambda: Single(world),
            "ddp": lambda: Replicated(world, crew),
            "fsdp2": lambda: shard(reshard=True),
            "fsdp2keep": lambda: shard(reshard=False),
            "fsdp2offload": lambda: shard(offload=True),
            "hsdp": lambda: shard(replicas=2),
        }
        return made[self.layout]()  # type: ignore[no-any-return]

    def zero(self, world: World, crew: Crew) -> Any:
        """Makes an engine on DeepSpeed: `zero2` or `zero3offload`."""
        stage = self.layout.removesuffix("offload")
        engine = {"name": stage, "offload": stage != self.layout}
        values = {"model": {"path": "/m"}, "data": {"train": "/d.jsonl"}, "engine": engine}
        recipe = load_recipe(values, {"train.precision": self.precision})
        zero = configuration(recipe, precision_plan(self.precision, recipe.optim, several=True), 8)
        meeting = Meeting(world, crew)
        return lambda *made, precision, **more: ZeroEngine(*made, meeting, zero, precision=precision, **more)


def ground(folder: Path, case: Case, world: World, crew: Crew, *, kl: float = 0.0, optimizer: str = "adamw") -> Ground:
    model = tiny.model(case.kind)
    zero = case.layout.startswith("zero")
    return Ground(
        folder,
        model,
        count=40,
        micro=case.micro,
        lay=None if zero else case.lay(model, world, crew),
        make_engine=case.zero(world, crew) if zero else None,
        clip=1.0,
        rank=world.rank,
        size=world.size,
        precision=case.precision,
        most=16 * case.micro if case.layout.startswith("zero3") else 0,  # an example teaches 15 at most
        kl=kl,
        optimizer=optimizer,
    )


def curve(made: Ground, updates: range, rates: Sequence[float] = (1e-3, 1e-3)) -> list[tuple[float, float]]:
    """Loss and gradient norm of updates of 7 examples, the last of an epoch shorter."""
    found = []
    for number in updates:
        begin = number * 7 % 40
        batches = made.batches(range(begin, min(begin + 7, 40)))
        outcome = step(batches, rates, engine=made.engine, objective=made.objective)
        assert isinstance(outcome, Outcome) and outcome.applied
        found.append((outcome.loss, outcome.grad_norm))
    return found


def put_away(folder: Path, made: Ground, crew: Crew, extra: Mapping[str, torch.Tensor]) -> None:
    """As a checkpoint, each rank its part."""
    folder.mkdir(exist_ok=True)
    capture = made.engine.capture(extra)
    if made.engine.world.rank < capture.writers:
        capture.write(folder)
    crew.sum(torch.zeros(1))  # all wait until all parts are there


def weights(made: Ground) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in made.engine.full_weights()}


def main(folder: Path, cases: Sequence[str]) -> None:
    with joined(60) as meeting:
        world, crew = meeting.world, meeting.crew
        for text in cases:
            case = Case.of(text)
            here = folder / f"{world.size}" / str(case)
            made = ground(here / f"rank-{world.rank}", case, world, crew)
            found = curve(made, range(UPDATES))
            whole = weights(made)
            if world.rank == 0:
                (here / "curve.json").write_text(json.dumps(found))
                from safetensors.torch import save_file

                save_file(whole, here / "weights.safetensors")


@dataclass(frozen=True)
class Ended:
    """How processes that were started together ended, by rank, and after how many seconds the last did."""

    codes: list[int]
    said: list[str]
    seconds: float


@cache
def server() -> ForkServer:
    """The process that forks all ranks: each would import for 5 s, with DeepSpeed for 9, to work for one."""
    started = ForkServer(WARM)
    atexit.register(started.__exit__, None, None, None)
    return started


def rank(module: str, words: list[str], variables: dict[str, str]) -> int:
    """What a forked child does: a module as a program, in the environment of a launcher."""
    os.environ.update(variables)
    os.dup2(1, 2)  # what it says is read as one
    sys.argv = [module, *words]
    runpy.run_module(module, run_name="__main__", alter_sys=True)
    return 0


def free_port() -> int:
    """A port to meet at, from below those that the kernel gives to connections: tests beside this one open many.

    Processes draw from ranges of their own.
    """
    while True:
        port = 10000 + os.getpid() % 200 * 100 + next(_PORTS) % 100
        with socket.socket() as free, suppress(OSError):
            free.bind(("127.0.0.1", port))
            return port


def run_together(size: int, module: str, *words: str, timeout: float = 240, **variables: str) -> Ended:
    """Run a module in so many processes that can meet, as a launcher would start them."""
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": str(size), **variables}
    begun = time.monotonic()
    running = []
    for number in range(size):
        own = {**shared, "RANK": str(number), "LOCAL_RANK": str(number)}
        asked = {"module": module, "words": list(words), "variables": own}
        running.append(server().start(Job("tests.distributed.ranks:rank", asked)))
    try:
        ended = []
        for child in running:
            ended.append(child.wait(timeout))
    except TimeoutError as fault:  # the cause may stand with one that ended
        raise TimeoutError("\n".join([*(one.stdout for one in ended), str(fault)])) from fault
    finally:
        for child in running:
            child.signal(signal.SIGKILL)
    return Ended([one.returncode for one in ended], [one.stdout for one in ended], time.monotonic() - begun)


def together(size: int, module: str, *words: str) -> None:
    """As `run_together`; AssertionError with what they said if one fails."""
    ended = run_together(size, module, *words)
    assert ended.codes == [0] * size, "\n".join(ended.said)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)  # gloo's threads may abort a process that ends in order
