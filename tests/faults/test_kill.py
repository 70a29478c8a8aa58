"""Killed anywhere, the same command goes on, and ends with the same bits (F1, F2)."""

import random
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.forkserver import Case, ForkServer
from tests.faults.ground import AT_LENGTH, UPDATES, Ground, checkpoints, copied, drafts, require

PLACES = (
    ("fulltune.engine.native:NativeEngine.forward", False),
    ("fulltune.engine.native:NativeEngine.backward", True),
    ("fulltune.engine.native:NativeEngine.update", False),
    ("torch.optim.adam:adam", True),
    ("fulltune.training.updating:Updating.__call__", True),
)
"""In the course of an update: what is called there, and whether the process dies before it or after."""


@pytest.mark.parametrize("seeds", [range(4), pytest.param(range(4, 24), marks=AT_LENGTH)], ids=len)
def test_F1_killed_at_a_random_step(seeds: range, ground: Ground, server: ForkServer, tmp_path: Path) -> None:
    """The whole process group is gone in the middle of an update; up to three times in one run."""

    def course(seed: int) -> Case:
        rng = random.Random(seed)
        run = ground.copy(tmp_path / str(seed))
        for _ in range(rng.randint(1, 3)):
            target, after = rng.choice(PLACES)
            fault = {"do": "befall", "target": target, "act": "KILL", "after": after}
            ended = yield ground.job(run, {**fault, "calls": [rng.randint(1, UPDATES // 2)]})
            require(ended, -signal.SIGKILL, 0)  # the last of three may come after all updates are done
        require((yield ground.job(run)), 0)
        ground.require_same_end(run, f"seed {seed}")

    assert server.drive(map(course, seeds)) == len(seeds)


@pytest.mark.parametrize("every", [29, pytest.param(1, marks=AT_LENGTH)])
def test_F2_killed_at_every_write_boundary(every: int, short: Ground, server: ForkServer, tmp_path: Path) -> None:
    """From the first folder to the last fsync of the record: before each change, and in the middle of each writing."""
    ground = short
    seen = ground.boundaries(ground.copy(tmp_path / "seen"), server)

    def course(number: int) -> Case:
        run = ground.copy(tmp_path / str(number))
        killed = yield ground.job(run, {"folder": str(run), "at": number})
        require(killed, -signal.SIGKILL)
        for step in checkpoints(run):
            assert (step / "MANIFEST.json").exists() or step != checkpoints(run)[-1], "a folder has its name when whole"
        require((yield ground.job(run)), 0)
        ground.require_same_end(run, killed.stderr.splitlines()[-1])
        shutil.rmtree(run)

    numbers = range(1, len(seen) + 1, every)
    assert server.drive(map(course, numbers)) == len(numbers)


@pytest.mark.parametrize("every", [197, pytest.param(5, marks=AT_LENGTH)])
def test_F2_killed_while_going_on(every: int, ground: Ground, server: ForkServer, tmp_path: Path) -> None:
    """A second kill, at a boundary of what the first one made necessary: drafts swept, the journal cut, a damaged
    checkpoint put aside.
    """
    torn = ground.copy(tmp_path / "torn")
    half = {"folder": str(torn), "only": "write checkpoints/.step-00000006.part", "at": 3}
    require(server.run(ground.job(torn, half)), -signal.SIGKILL)
    assert drafts(torn)
    weights = checkpoints(torn)[-1] / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    seen = ground.boundaries(copied(torn, tmp_path / "seen"), server)

    def course(number: int) -> Case:
        run = copied(torn, tmp_path / str(number))
        killed = yield ground.job(run, {"folder": str(run), "at": number})
        require(killed, -signal.SIGKILL)
        require((yield ground.job(run)), 0)
        ground.require_same_end(run, killed.stderr.splitlines()[-1])
        shutil.rmtree(run)

    numbers = range(1, len(seen) + 1, every)
    assert server.drive(map(course, numbers)) == len(numbers)


@pytest.mark.faults
def test_F2_killed_at_every_boundary_of_preparation(ground: Ground, server: ForkServer, tmp_path: Path) -> None:
    """Rows to tokens: killed anywhere, the data is prepared as if it never happened."""
    seen_in = tmp_path / "seen"
    seen = ground.boundaries(seen_in, server, verb="prepare")

    def course(number: int) -> Case:
        run = tmp_path / str(number)
        killed = yield ground.job(run, {"folder": str(run), "at": number}, verb="prepare")
        require(killed, -signal.SIGKILL)
        require((yield ground.job(run, verb="prepare")), 0)
        assert list(_contents(run)) == list(_contents(seen_in)), killed.stderr
        shutil.rmtree(run)

    assert server.drive(map(course, range(1, len(seen) + 1))) == len(seen)


def _contents(folder: Path) -> Iterator[tuple[str, bytes]]:
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != ".lock")  # of a dead holder
    for path in sorted(files):
        yield str(path.relative_to(folder)), path.read_bytes()


def test_landmine_H7_drafts_do_not_count_and_are_swept(ground: Ground, server: ForkServer, tmp_path: Path) -> None:
    """Killed three times in the middle of a checkpoint: the drafts push no whole one out, and are gone at the end."""
    run = ground.copy(tmp_path / "run")
    for _ in range(3):
        torn = {"folder": str(run), "only": "write checkpoints/.step-00000006.part", "at": 3}
        require(server.run(ground.job(run, torn)), -signal.SIGKILL)
        assert drafts(run)
    assert "step-00000003" in [step.name for step in checkpoints(run)]
    require(server.run(ground.job(run)), 0)
    ground.require_same_end(run)
    assert [step.name for step in checkpoints(run)] == [step.name for step in checkpoints(ground.whole)]
