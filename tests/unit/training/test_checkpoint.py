"""Checkpoints: what is kept, what is believed, what happens to damaged ones."""

import math
import os
import random
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from fulltune.base.errors import CheckpointError, DiskError, DivergedError
from fulltune.base.records import CheckpointInfo, Mark, Progress
from fulltune.engine import tensors as tensors_module
from fulltune.engine.capture import Capture, Staging
from fulltune.training.checkpoint import Belonging, Checkpoints
from fulltune.training.manifest import read_manifest
from tests import tiny
from tests.contract.ground import Ground


def at(update: int, **more: object) -> Progress:
    return Progress(update=update, position=8 * update, begun=Mark(8 * (update - 1), update - 1), **more)  # type: ignore[arg-type]


def belonging(**changes: object) -> Belonging:
    return Belonging({"recipe": {"optim": {"lr": 1e-3}}, "depends": {}, **changes}, {"torch": "2"}, 1)


def save(folder: Path, ground: Ground, progress: Progress, keep: int = 2) -> Checkpoints:
    checkpoints = Checkpoints(folder, keep=keep, belonging=belonging())
    with checkpoints:
        checkpoints.save(ground.engine.capture({}), progress, journal=17)
        told = checkpoints.wait()
    assert told == CheckpointInfo(step=progress.update, score=progress.best_score)
    return checkpoints


@pytest.fixture
def ground(tmp_path: Path) -> Ground:
    return Ground(tmp_path / "ground", tiny.model("llama"), count=4)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_the_last_the_best_and_the_last_healthy_are_kept(tmp_path: Path, ground: Ground) -> None:
    folder = tmp_path / "c"
    for update in range(1, 8):
        progress = at(update, best_update=min(update, 2), best_score=1.0, healthy=update < 4)
        checkpoints = save(folder, ground, progress)
    assert names(folder) == ["step-00000002", "step-00000003", "step-00000006", "step-00000007"]
    assert checkpoints.healthy() == 3


def test_times_of_files_do_not_matter(tmp_path: Path, ground: Ground) -> None:
    """Landmine H3: copies get new times, and clocks go back."""
    folder = tmp_path / "c"
    for update in (1, 2):
        save(folder, ground, at(update))
    os.utime(folder / "step-00000001", (2e9, 2e9))
    save(folder, ground, at(3), keep=2)
    assert names(folder) == ["step-00000002", "step-00000003"]


def test_a_checkpoint_comes_back_with_its_progress(tmp_path: Path, ground: Ground) -> None:
    checkpoints = save(tmp_path / "c", ground, at(3, best_update=2, best_score=0.5, stale=1, saved=3))
    assert checkpoints.newest() == 3
    progress, manifest, extra = checkpoints.load(3, ground.engine)
    assert progress == at(3, best_update=2, best_score=0.5, stale=1, saved=3)
    assert (manifest.journal, dict(extra)) == (17, {})
    assert manifest.identity == belonging().identity
    assert Checkpoints(tmp_path / "none", keep=1, belonging=belonging()).newest() is None


def test_copies_on_a_host_are_dropped_when_they_are_written(tmp_path: Path) -> None:
    """Pinned ones are kept, beside a GPU: a state would be held twice for the whole run."""
    tensors = {"a": torch.arange(6.0).view(2, 3), "b": torch.tensor(True), "c": torch.ones(0, 4), "d": torch.eye(3).T}
    staging: Staging = {}
    capture = Capture({"x.safetensors": tensors}, {}, staging)
    capture.copy()
    assert len(staging) == len(tensors)
    tensors["a"] += 1
    capture.write(tmp_path)
    assert not staging
    found = load_file(tmp_path / "x.safetensors")
    assert found.keys() == tensors.keys()
    assert found["a"].tolist() == [[0.0, 1.0, 2.0], [3.0, 4.0, 5.0]], "as it was"
    assert all(torch.equal(found[name], tensors[name]) for name in "bcd")


class Turnstile:
    """A lock, behind whose n-th release something happens at once."""

    def __init__(self, number: int, act: Callable[[], None]) -> None:
        self._left, self._act = number, act

    def __enter__(self) -> None:
        self._left -= 1

    def __exit__(self, *_: object) -> None:
        if self._left == 0:
            self._act()


def test_what_is_written_before_anything_moves_is_never_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever moves weights meanwhile copies the rest: also of a tensor that is half written."""
    monkeypatch.setattr(tensors_module, "_PIECE", 4 * 8)
    values = {name: torch.arange(20.0) + start for start, name in enumerate("abc")}
    before = {name: value.clone() for name, value in values.items()}
    staging: Staging = {}
    capture = Capture({"x.safetensors": values}, {}, staging)
    copied: list[str] = []

    def move() -> None:
        capture.wait()
        copied.extend(sorted(staging))
        for value in values.values():
            value.zero_()

    looked, whole, half = 3, 3 + 1, 1  # each is looked at, `a` has three pieces and is done, `b` has begun
    monkeypatch.setattr(capture, "_lock", Turnstile(looked + whole + half, move))
    capture.write(tmp_path)
    found = load_file(tmp_path / "x.safetensors")
    assert copied == ["x.safetensors/b", "x.safetensors/c"]
    assert all(torch.equal(found[name], before[name]) for name in "abc")
    assert not any(value.any() for value in values.values())
    assert not staging
    alone = Capture({"y.safetensors": before}, {}, staging)
    monkeypatch.setattr(alone, "_copied", None)
    alone.write(tmp_path)
    alone.wait()


def test_beside_a_gpu_copies_of_what_lies_on_the_host_are_dropped_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Moments that wait there (memory.offload): only what is pinned is worth keeping."""
    staging: Staging = {}
    capture = Capture({"x.safetensors": {"weight": torch.ones(2), "moment": torch.zeros(3)}}, {}, staging)
    capture.copy()
    monkeypatch.setattr(capture, "_pins", True)
    monkeypatch.setattr(torch.Tensor, "is_pinned", lambda tensor: len(tensor) == 2)
    capture.write(tmp_path)
    assert list(staging) == ["x.safetensors/weight"]


def test_a_checkpoint_that_stands_leaves_no_thread(tmp_path: Path, ground: Ground) -> None:
    """The next updates would be slower for it (base/beside.py)."""
    before = threading.active_count()
    checkpoints = Checkpoints(tmp_path / "c", keep=2, belonging=belonging())
    with checkpoints:
        checkpoints.save(ground.engine.capture({}), at(1), journal=17)
        assert checkpoints.wait() is not None
        until = time.monotonic() + 10
        while threading.active_count() > before and time.monotonic() < until:
            time.sleep(0.01)
        assert threading.active_count() == before, "the run goes on inside of this context"


FILES = ("weights.safetensors", "optimizer.safetensors", "optimizer.json", "extra.safetensors", "progress.json")


def test_every_damage_is_noticed_named_and_put_away(tmp_path: Path, ground: Ground) -> None:
    for name in (*FILES, "MANIFEST.json"):
        for number, damage in enumerate((_flip, _cut, Path.unlink)):
            run = tmp_path / f"{name}{number}"
            save(run / "c", ground, at(1))
            checkpoints = save(run / "c", ground, at(2))
            damage(run / "c/step-00000002" / name)
            with pytest.raises(CheckpointError, match=r"damaged") as caught:
                checkpoints.load(2, ground.engine)
            assert name in caught.value.faults[0].where
            assert checkpoints.newest() == 1, "the one before it is taken"
            assert names(run / "c") == ["step-00000001"]
            assert names(run / "quarantine") == ["step-00000002"]


def test_a_run_of_which_no_checkpoint_is_whole_never_starts_anew(tmp_path: Path, ground: Ground) -> None:
    save(tmp_path / "run/c", ground, at(1))
    checkpoints = save(tmp_path / "run/c", ground, at(2))
    for number in (1, 2):
        _cut(tmp_path / f"run/c/step-0000000{number}/progress.json")
    for _ in range(2):
        with pytest.raises(CheckpointError, match="2 checkpoints none is whole") as caught:
            checkpoints.newest()
        assert [Path(fault.where).parent.name for fault in caught.value.faults] == ["step-00000002", "step-00000001"]
        assert names(tmp_path / "run/c") == ["step-00000001", "step-00000002"], "nothing was changed"
    (tmp_path / "run/c").rename(tmp_path / "run/quarantine")
    with pytest.raises(CheckpointError, match="none is whole"):
        checkpoints.newest()


def test_a_manifest_of_another_step_is_none(tmp_path: Path, ground: Ground) -> None:
    save(tmp_path / "c", ground, at(1))
    checkpoints = save(tmp_path / "c", ground, at(2))
    (tmp_path / "c/step-00000002/MANIFEST.json").write_bytes((tmp_path / "c/step-00000001/MANIFEST.json").read_bytes())
    with pytest.raises(CheckpointError, match="manifest of step-00000001"):
        checkpoints.load(2, ground.engine)


def _flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def test_every_bit_of_a_manifest_counts(tmp_path: Path, ground: Ground) -> None:
    save(tmp_path / "c", ground, at(1))
    path = tmp_path / "c/step-00000001/MANIFEST.json"
    whole = path.read_bytes()
    rng = random.Random(0)
    for _ in range(300):
        content, bit = bytearray(whole), rng.randrange(8 * len(whole))
        content[bit // 8] ^= 1 << bit % 8
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match="damaged"):
            read_manifest(path.parent)


def test_a_draft_is_no_checkpoint(tmp_path: Path, ground: Ground) -> None:
    checkpoints = save(tmp_path / "c", ground, at(1))
    (tmp_path / "c/.step-00000009.part-x").mkdir()
    assert checkpoints.newest() == 1


def test_what_is_not_finite_is_never_published(tmp_path: Path, ground: Ground) -> None:
    """Landmine D13: with a few NaN checkpoints the good ones would rotate away."""
    save(tmp_path / "c", ground, at(1))
    next(iter(ground.model.parameters())).data.view(-1)[3] = math.nan
    checkpoints = Checkpoints(tmp_path / "c", keep=1, belonging=belonging())
    with pytest.raises(DivergedError, match="not finite"), checkpoints:
        checkpoints.save(ground.engine.capture({}), at(2), journal=0)
    assert names(tmp_path / "c") == ["step-00000001"]


def test_what_fails_in_the_background_is_raised_where_it_is_asked_for(tmp_path: Path, ground: Ground) -> None:
    """Landmine H5: the old one stays until the new one stands."""
    save(tmp_path / "c", ground, at(1), keep=1)
    (tmp_path / "c/step-00000002").write_text("in the way")
    checkpoints = Checkpoints(tmp_path / "c", keep=1, belonging=belonging())
    checkpoints.save(ground.engine.capture({}), at(2), journal=0)
    with pytest.raises(OSError, match="step-00000002"):
        checkpoints.wait()
    assert "step-00000001" in names(tmp_path / "c")
    assert checkpoints.wait() is None, "told once"
    with pytest.raises(KeyError, match="first"), checkpoints:  # what ends a run comes first
        checkpoints.save(ground.engine.capture({}), at(2), journal=0)
        raise KeyError("first")


def test_no_room_is_noticed_before_anything_is_written(tmp_path: Path, ground: Ground) -> None:
    checkpoints = save(tmp_path / "c", ground, at(1))
    capture = ground.engine.capture({})
    capture.bytes = 1 << 60
    with pytest.raises(DiskError, match=r"after 2 updates: it needs 1,099,511,627,777\.0 MiB"):
        checkpoints.save(capture, at(2), journal=0)
    assert names(tmp_path / "c") == ["step-00000001"]


def test_a_capture_is_the_state_of_its_moment(tmp_path: Path, ground: Ground) -> None:
    """The engine copies it before it moves a weight, whoever writes it and whenever."""
    ground.gradients()
    ground.engine.update([1e-2, 1e-2])
    before = {name: value.clone() for name, value in ground.engine.full_weights()}
    for number, held in enumerate((False, True)):
        capture = ground.engine.capture({"pull/x": torch.ones(2)})
        capture.held = held
        (tmp_path / str(number)).mkdir()
        if held:
            capture.write(tmp_path / str(number))
        else:
            ground.gradients()
            ground.engine.update([1e-2, 1e-2])
            capture.write(tmp_path / str(number))
            moved = dict(ground.engine.full_weights())
            assert not all(torch.equal(before[name], moved[name]) for name in before)
            ground.engine.load(tmp_path / "0")
        saved = load_file(tmp_path / str(number) / "weights.safetensors")
        assert all(torch.equal(before[name], saved[name]) for name in before)
        assert load_file(tmp_path / str(number) / "extra.safetensors")["pull/x"].tolist() == [1, 1]
