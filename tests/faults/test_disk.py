"""Disks that are full, broken, closed, or whose clock is wrong (F9, F10)."""

import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from fulltune.base.files import sweep
from fulltune.training import manifest
from tests.faults.boundaries import TAKES_SPACE
from tests.faults.forkserver import Case, Ended, ForkServer
from tests.faults.ground import AT_LENGTH, Ground, checkpoints, copied, drafts, lines, require


def require_refused(ended: Ended, run: Path) -> None:
    """Exit code 7, an error in words, what was saved before whole, and nothing half done."""
    require(ended, 7)
    assert "error: " in ended.stderr
    assert "Traceback" not in ended.stderr
    for step in checkpoints(run):
        manifest.verify(step)
    assert drafts(run) == [], ended.stderr


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """A disk of 6 MiB: a run's data and its first checkpoints fit on it."""
    place = tmp_path / "small"
    place.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=6m", "tmpfs", str(place)], capture_output=True)
    if mounted.returncode:
        pytest.skip("mounting a small disk takes root")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


def test_F9_no_room_is_said_before_the_first_update(ground: Ground, server: ForkServer, tmp_path: Path) -> None:
    run = ground.copy(tmp_path / "run")
    ended = server.run(ground.job(run, {"do": "free", "bytes_": 2_000_000}))  # enough for the weights, not the moments
    require_refused(ended, run)
    assert "MiB are free" in ended.stderr
    assert not lines(run, "step")
    require(server.run(ground.job(run)), 0)
    ground.require_same_end(run)


def test_F9_a_small_disk_is_refused(ground: Ground, server: ForkServer, small: Path) -> None:
    run = ground.copy(small / "run")
    (small / "somebody-elses").write_bytes(b"\0" * 4_500_000)
    ended = server.run(ground.job(run))
    require_refused(ended, run)
    assert "MiB are free" in ended.stderr
    (small / "somebody-elses").unlink()
    require(server.run(ground.job(run)), 0)
    ground.require_same_end(run)


@pytest.mark.parametrize("update", [7, *(pytest.param(n, marks=AT_LENGTH) for n in (2, 12))])
def test_F9_somebody_else_fills_the_disk(update: int, ground: Ground, server: ForkServer, small: Path) -> None:
    """In the middle of the run: the checkpoints before stay whole, and the run goes on when there is room again."""
    run = ground.copy(small / "run")
    require_refused(server.run(ground.job(run, {"do": "fill", "folder": str(small), "update": update})), run)
    (small / "somebody-elses").unlink()
    require(server.run(ground.job(run)), 0)
    ground.require_same_end(run)


@pytest.mark.parametrize("size", [60_000, 200_000])
def test_F9_files_may_not_grow(size: int, ground: Ground, server: ForkServer, tmp_path: Path) -> None:
    """A limit on the size of files, smaller than the model, or than the optimizer's state alone."""
    run = ground.copy(tmp_path / "run")
    require_refused(server.run(ground.job(run, {"do": "limit", "bytes": size})), run)
    require(server.run(ground.job(run)), 0)
    ground.require_same_end(run)


@pytest.mark.parametrize("every", [61, pytest.param(3, marks=AT_LENGTH)])
def test_F9_full_from_any_write_on(every: int, short: Ground, server: ForkServer, tmp_path: Path) -> None:
    """At any boundary the disk is full, and stays so: weights, manifest, journal, result, record."""
    ground = short
    seen = ground.boundaries(ground.copy(tmp_path / "seen"), server)

    def course(number: int) -> Case:
        run = ground.copy(tmp_path / str(number))
        ended = yield ground.job(run, {"folder": str(run), "at": number, "act": "ENOSPC", "lasting": True})
        assert "ENOSPC at boundary" in ended.stderr, seen[number - 1]
        require_refused(ended, run)
        require((yield ground.job(run)), 0)
        ground.require_same_end(run, ended.stderr)
        shutil.rmtree(run)

    numbers = range(1, 1 + sum(text.split()[0] in TAKES_SPACE for text in seen), every)
    assert server.drive(map(course, numbers)) == len(numbers)


@pytest.mark.parametrize(
    "name", ["weights.safetensors", *(pytest.param(n, marks=AT_LENGTH) for n in ("MANIFEST.json", "journal.jsonl"))]
)
def test_landmine_H5_the_old_checkpoint_stays_until_the_new_one_stands(
    name: str, server: ForkServer, tmp_path: Path
) -> None:
    """Full while the second checkpoint is written, and only one is kept: the first is still there, and whole."""
    ground = Ground.make(tmp_path / "ground", server, checkpoint={"every": 3, "keep": 1}, evaluate={"every": 12})
    run = ground.copy(tmp_path / "run")
    only = name if name.startswith("journal") else ".step-00000006.part"
    seen = [text for text in ground.boundaries(copied(run, tmp_path / "seen"), server) if only in text]
    seen = [text for text in seen if text.split()[0] in TAKES_SPACE]
    at = 1 + next(n for n, text in enumerate(seen) if text.startswith("write") and name in text)
    at += 20 if name.startswith("journal") else 0
    fault = {"folder": str(run), "only": only, "at": at, "act": "ENOSPC", "lasting": True}
    require_refused(server.run(ground.job(run, fault)), run)
    assert checkpoints(run)[-1].name == "step-00000003"
    require(server.run(ground.job(run)), 0)
    ground.require_same_end(run)


@pytest.mark.parametrize(
    ("number", "every"), [("EIO", 4), *(pytest.param(n, 1, marks=AT_LENGTH) for n in ("EIO", "EACCES", "EROFS"))]
)
def test_F10_a_checkpoint_that_did_not_reach_the_disk_is_none(
    number: str, every: int, ground: Ground, server: ForkServer, tmp_path: Path
) -> None:
    """fsync fails, for each file and folder in turn: the error is said, and the folder never gets its name."""
    seen = ground.boundaries(ground.copy(tmp_path / "seen"), server)
    within = [text for text in seen if text.startswith("fsync") and ".step-00000006.part" in text]
    assert len(within) >= 6

    def course(at: int) -> Case:
        run = ground.copy(tmp_path / str(at))
        fault = {"folder": str(run), "only": "fsync checkpoints/.step-00000006.part", "at": at, "act": number}
        require_refused((yield ground.job(run, fault)), run)
        assert "step-00000006" not in [step.name for step in checkpoints(run)]
        require((yield ground.job(run)), 0)
        ground.require_same_end(run)

    server.drive(map(course, range(1, len(within) + 1, every)))


def test_F10_a_folder_that_may_not_be_written(ground: Ground, server: ForkServer, tmp_path: Path) -> None:
    run = ground.copy(tmp_path / "run")
    fault = {"do": "befall", "target": "fulltune.training.updating:step", "act": "KILL", "calls": [7]}
    require(server.run(ground.job(run, fault)), -signal.SIGKILL)
    sweep(run / "checkpoints")  # what was being written when it was killed could not be removed
    (run / "checkpoints").chmod(0o555)
    require_refused(server.run(ground.job(run, {"do": "ordinary"})), run)
    (run / "checkpoints").chmod(0o755)
    require(server.run(ground.job(run)), 0)
    ground.require_same_end(run)


def test_F10_a_disk_that_is_read_only(ground: Ground, server: ForkServer, small: Path) -> None:
    """As after an error of the disk: nothing is written, and with the disk back the run goes on."""
    run = ground.copy(small / "run")
    fault = {"do": "befall", "target": "fulltune.training.updating:step", "act": "KILL", "calls": [7]}
    require(server.run(ground.job(run, fault)), -signal.SIGKILL)
    subprocess.run(["mount", "-o", "remount,ro", str(small)], check=True)
    ended = require(server.run(ground.job(run)), 7)
    assert "Read-only" in ended.stderr
    subprocess.run(["mount", "-o", "remount,rw", str(small)], check=True)
    require(server.run(ground.job(run)), 0)
    ground.require_same_end(run)


def test_F10_and_landmine_H3_clocks_and_times_of_files_mean_nothing(
    ground: Ground, server: ForkServer, tmp_path: Path
) -> None:
    """The clock goes back an hour, and a copy has made the oldest checkpoint the youngest: the number decides."""
    run = ground.copy(tmp_path / "run")
    fault = {"do": "befall", "target": "fulltune.training.updating:step", "act": "KILL", "calls": [8]}
    require(server.run(ground.job(run, fault)), -signal.SIGKILL)
    newest = checkpoints(run)[-1]
    for age, step in enumerate(checkpoints(run)):
        for path in (step, *step.iterdir()):
            os.utime(path, (2e9 - 1000 * age, 2e9 - 1000 * age))
    require(server.run(ground.job(run, {"do": "clock", "hours": -1, "after": 3})), 0)
    assert lines(run, "start")[-1]["resumed_at"] == int(newest.name.removeprefix("step-"))
    ground.require_same_end(run)
    assert [step.name for step in checkpoints(run)] == [step.name for step in checkpoints(ground.whole)]
