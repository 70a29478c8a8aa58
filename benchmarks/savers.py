"""Ways to save a state that is being trained. Between two updates `save` is called; `stands` says when it is done."""

import shutil
import time
from pathlib import Path
from typing import Protocol

from benchmarks.bed import Bed
from benchmarks.contestants.plain_save import plain_save
from fulltune.base.records import Progress
from fulltune.training.checkpoint import Belonging, Checkpoints


class Saver(Protocol):
    """One way."""

    def save(self, number: int) -> None:
        """Save the state as it is now; what the caller waits for here is time that training does not have."""

    @property
    def waited(self) -> float:
        """Seconds for which updates since then stood still, because what they were to move was being copied."""

    def stands(self) -> bool:
        """Whether the last one is done: asked between updates, so it answers at once."""

    def wait(self) -> None:
        """Until it is."""


class Plain:
    """What a script does: the optimizer by torch, the model by transformers. Older ones go in nobody's time."""

    def __init__(self, bed: Bed, folder: Path, *, flushed: bool) -> None:
        """`flushed`: also wait until it is on the disk (fsync), which neither of both does by itself."""
        self._bed, self._folder, self._flushed = bed, folder, flushed
        self._newest = folder

    def save(self, number: int) -> None:
        self._newest = self._folder / str(number)
        plain_save(self._bed.model, self._bed.optimizer, self._newest, flushed=self._flushed)

    @property
    def waited(self) -> float:
        return 0.0

    def stands(self) -> bool:
        return True

    def wait(self) -> None:
        for path in self._folder.iterdir():
            if path != self._newest:
                shutil.rmtree(path)


class Ours:
    """fulltune's checkpoints: copied while the next update is computed, then written, flushed, hashed and read back."""

    def __init__(self, bed: Bed, folder: Path, *, background: bool) -> None:
        """Without `background` training stands still until the checkpoint stands."""
        belonging = Belonging(identity={}, versions={}, world=1)
        self._checkpoints = Checkpoints(folder, keep=1, belonging=belonging)
        self._bed, self._background, self._open = bed, background, False
        self._waited = 0.0

    def save(self, number: int) -> None:
        capture = self._bed.engine.capture({})
        wait, self._waited = capture.wait, 0.0

        def timed() -> None:
            begun = time.perf_counter()
            wait()
            self._waited += time.perf_counter() - begun

        vars(capture)["wait"] = timed  # what the engine calls before it moves anything
        self._checkpoints.save(capture, Progress(update=number, saved=number), journal=0)
        self._open = True
        if not self._background:
            self.wait()

    @property
    def waited(self) -> float:
        return self._waited

    def stands(self) -> bool:
        if self._open and self._checkpoints.settled() is not None:
            self._open = False
        return not self._open

    def wait(self) -> None:
        self._checkpoints.wait()
        self._open = False


def savers(bed: Bed, folder: Path) -> dict[str, Saver]:
    """All of them by name, each with a folder of its own."""
    places = {name: folder / name for name in ("plain", "plain-fsync", "fulltune", "fulltune-waiting")}
    for place in places.values():
        place.mkdir()
    return {
        "plain": Plain(bed, places["plain"], flushed=False),
        "plain-fsync": Plain(bed, places["plain-fsync"], flushed=True),
        "fulltune": Ours(bed, places["fulltune"], background=True),
        "fulltune-waiting": Ours(bed, places["fulltune-waiting"], background=False),
    }
