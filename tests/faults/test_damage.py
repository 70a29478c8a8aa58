"""Checkpoints that were damaged behind our back: found, put aside, and the one before is taken (F5 to F8)."""

import random
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fulltune.base.errors import CheckpointError
from fulltune.training import manifest
from tests.faults.forkserver import Case, ForkServer
from tests.faults.ground import AT_LENGTH, Ground, checkpoints, copied, lines, require

Damage = Callable[[Path], object]
"""Something that is done to a file."""


@pytest.fixture(scope="module")
def killed(ground: Ground, server: ForkServer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that died before its result was written, with all its checkpoints at rest."""
    run = ground.copy(tmp_path_factory.mktemp("killed") / "run")
    fault = {"do": "befall", "target": "fulltune.outcome:Outcome.write_model", "act": "KILL", "calls": [2]}
    require(server.run(ground.job(run, fault)), -signal.SIGKILL)
    assert len(checkpoints(run)) >= 3
    return run


def names(run: Path) -> list[str]:
    """Files of the newest checkpoint."""
    return sorted(path.name for path in checkpoints(run)[-1].iterdir())


def cut(share: str) -> Damage:
    def damage(path: Path) -> None:
        size = path.stat().st_size
        with path.open("r+b") as file:
            file.truncate({"0": 0, "1": 1, "half": size // 2, "n-1": size - 1}[share])

    return damage


def flip(number: int) -> Damage:
    """The bit of this number, counted around the file."""

    def damage(path: Path) -> None:
        content = bytearray(path.read_bytes())
        at = number % (8 * len(content))
        content[at // 8] ^= 1 << (at % 8)
        path.write_bytes(content)

    return damage


def replace_by_that_of_the_one_before(path: Path) -> None:
    shutil.copyfile(sorted(path.parent.parent.glob("step-*"))[-2] / path.name, path)


def goes_on(ground: Ground, killed: Path, run: Path, name: str, damage: Damage) -> Case:
    """The newest checkpoint with one bad file: found, named, moved away; the run goes on from the one before."""
    copied(killed, run)
    *_, before, newest = checkpoints(run)
    damage(newest / name)
    ended = require((yield ground.job(run)), 0)
    assert str(newest / name) in ended.stderr, ended.stderr
    assert (run / "quarantine" / newest.name).is_dir(), "kept, for whoever wants to look"
    assert lines(run, "start")[-1]["resumed_at"] == int(before.name.removeprefix("step-"))
    ground.require_same_end(run, f"{name}: {ended.stderr}")
    shutil.rmtree(run)


CUTS = ("0", "1", "half", "n-1")


@pytest.mark.parametrize("shares", [CUTS[2:3], pytest.param(CUTS, marks=AT_LENGTH)], ids=len)
def test_F5_every_file_cut_short(
    shares: tuple[str, ...], ground: Ground, killed: Path, server: ForkServer, tmp_path: Path
) -> None:
    server.drive(
        goes_on(ground, killed, tmp_path / f"{name}-{share}", name, cut(share))
        for name in names(killed)
        for share in shares
    )


def draws(count: int, killed: Path) -> Iterator[tuple[str, int]]:
    """Files and bits, by chance; each file has its turn, and no bit of the small ones is far from another draw."""
    rng = random.Random(6)
    files = names(killed)
    return ((files[number % len(files)], rng.randrange(1 << 40)) for number in range(count))


def test_F6_one_bit_is_seen(killed: Path, tmp_path: Path) -> None:
    """100 draws over all files, the manifest included: every one is an error that names the file."""
    newest = checkpoints(killed)[-1]
    for name, number in draws(100, killed):
        copy = copied(newest, tmp_path / newest.name)
        flip(number)(copy / name)
        with pytest.raises(CheckpointError) as caught:
            manifest.verify(copy)
        assert str(copy / name) in str(caught.value)
        shutil.rmtree(copy)
    manifest.verify(newest)


@pytest.mark.parametrize("every", [17, pytest.param(1, marks=AT_LENGTH)])
def test_F6_every_byte_of_a_manifest_is_seen(every: int, killed: Path, tmp_path: Path) -> None:
    """Also where it is a space, or a digit of a number that nothing else depends on."""
    copy = copied(checkpoints(killed)[-1], tmp_path / checkpoints(killed)[-1].name)
    content = (copy / "MANIFEST.json").read_bytes()
    for byte in range(0, len(content), every):
        flip(8 * byte + byte % 8)(copy / "MANIFEST.json")
        with pytest.raises(CheckpointError):
            manifest.read_manifest(copy)
        (copy / "MANIFEST.json").write_bytes(content)


@pytest.mark.parametrize("count", [6, pytest.param(100, marks=AT_LENGTH)])
def test_F6_a_run_goes_on_behind_a_flipped_bit(
    count: int, ground: Ground, killed: Path, server: ForkServer, tmp_path: Path
) -> None:
    server.drive(
        goes_on(ground, killed, tmp_path / str(number), name, flip(bit))
        for number, (name, bit) in enumerate(draws(count, killed))
    )


@pytest.mark.parametrize("every", [3, pytest.param(1, marks=AT_LENGTH)])
def test_F7_every_file_gone_or_of_another_checkpoint(
    every: int, ground: Ground, killed: Path, server: ForkServer, tmp_path: Path
) -> None:
    """Never a fresh optimizer, never weights of one moment with the moments of another."""
    gone = names(killed)[::every]
    replaced = [name for name in gone if name != "extra.safetensors"]  # that is the same in both
    server.drive(
        [
            *(goes_on(ground, killed, tmp_path / f"{name}-gone", name, Path.unlink) for name in gone),
            *(
                goes_on(ground, killed, tmp_path / f"{name}-old", name, replace_by_that_of_the_one_before)
                for name in replaced
            ),
        ]
    )


def test_landmine_G3_a_missing_optimizer_file_is_no_fresh_start(
    ground: Ground, killed: Path, server: ForkServer, tmp_path: Path
) -> None:
    run = copied(killed, tmp_path / "run")
    for step in checkpoints(run):
        (step / "optimizer.safetensors").unlink()
    require(server.run(ground.job(run)), 6)


def test_F8_nothing_whole_is_left(ground: Ground, killed: Path, server: ForkServer, tmp_path: Path) -> None:
    """Exit code 6, also when asked again; every candidate is named; no byte changes, and nothing starts at 0."""
    run = copied(killed, tmp_path / "run")
    for number, step in enumerate(checkpoints(run)):
        (cut("half") if number % 2 else flip(12345))(step / "weights.safetensors")
    before = contents(run)
    for _ in range(2):
        ended = require(server.run(ground.job(run)), 6)
        assert all(str(step) in ended.stderr for step in checkpoints(run)), ended.stderr
        assert contents(run) == before


def contents(run: Path) -> dict[str, bytes]:
    """Every file, but for what a killed process left behind: its drafts may be swept, and its lock taken over."""
    files = {str(path.relative_to(run)): path for path in sorted(run.rglob("*")) if path.is_file()}
    return {name: path.read_bytes() for name, path in files.items() if ".part" not in name and name != ".lock"}
