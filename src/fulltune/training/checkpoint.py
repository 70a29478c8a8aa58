"""Checkpoints: written in the background, whole or absent, verified before they are believed; some are kept."""

import os
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch

from fulltune.base.beside import Beside
from fulltune.base.errors import CheckpointError, FulltuneError, Interrupted
from fulltune.base.files import discard, read_record, require_room, whole_folder, write_record
from fulltune.base.log import LOGGER
from fulltune.base.records import CheckpointInfo, Progress
from fulltune.engine.capture import Capture
from fulltune.engine.contract import Engine, Extra
from fulltune.engine.crew import Alone, Crew
from fulltune.training import parts
from fulltune.training.manifest import Manifest, damaged, facts, read_manifest, step_name, verify, write_manifest

_PROGRESS = "progress.json"
_BESIDE = 1 << 20
"""Bytes of a checkpoint besides its tensors, and then some."""


@dataclass(frozen=True, slots=True)
class Belonging:
    """What every checkpoint of a run says of it: its recipe and data, library versions, number of processes."""

    identity: Mapping[str, Any]
    versions: Mapping[str, str]
    world: int


class Checkpoints:
    """The folder of one run's saved states: `step-00000012/` with weights, optimizer, progress and a manifest.

    A folder gets its name when everything in it is on the disk. One is written at a time, by a thread of its own; what
    fails there is raised by the next call. Used as a context, the last one is waited for at its end.

    Of several processes each writes what it holds; the first publishes, judges, thins, and tells the others. All of
    them call every method, in the same order.
    """

    def __init__(self, folder: Path, *, keep: int, belonging: Belonging, crew: Crew | None = None) -> None:
        self._folder, self._keep, self._belonging = folder, keep, belonging
        self._crew: Crew = Alone() if crew is None else crew
        self._begun: Future[CheckpointInfo | None] | None = None
        self._last: Beside[CheckpointInfo | None] | None = None
        self._failed = False

    def save(self, capture: Capture, progress: Progress, *, journal: int) -> None:
        """Begin to write a state; `wait` for the one before it first. DiskError if the disk has no room for it.

        Returns at once: the engine itself waits until what it is about to move has been copied.
        """
        assert self._begun is None
        size = int(self._crew.sum(torch.tensor(capture.bytes))) + _BESIDE
        what = f"the checkpoint after {progress.update} updates"
        self._crew.told(lambda: self._require_room(size, what))
        if self._crew.rank < capture.writers:
            write = partial(self._write, journal=journal) if self._crew.rank == 0 else self._leave
            self._last = Beside("checkpoint", write, capture, progress)
            self._begun = self._last.found
        if capture.held and self._begun is not None:
            self._begun.exception()  # waits; it is raised where it is asked for

    def _require_room(self, size: int, what: str) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        require_room(self._folder, size, what)

    def _leave(self, capture: Capture, progress: Progress) -> None:
        parts.leave(self._folder, progress.update, self._crew.rank, capture)

    def settled(self) -> CheckpointInfo | None:
        """The one that was begun, once it stands: told once. Raises what it failed of."""
        return self.wait() if self._begun is not None and self._begun.done() else None

    def wait(self) -> CheckpointInfo | None:
        """As `settled`, but waits for it."""
        begun, self._begun = self._begun, None
        self._crew.rest()  # a disk may be slow
        return None if begun is None else begun.result()

    def _write(self, capture: Capture, progress: Progress, journal: int) -> CheckpointInfo:
        place = self._place(progress.update)
        with whole_folder(place) as draft:
            digests = capture.write(draft)
            for rank in range(1, capture.writers):
                failed, patience = lambda: self._failed, self._crew.patience
                digests |= parts.fetch(self._folder, progress.update, rank, draft, failed, patience)
            write_record(draft / _PROGRESS, progress)
            manifest = Manifest(
                step=progress.update,
                journal=journal,
                healthy=progress.healthy,
                world=self._belonging.world,
                identity=self._belonging.identity,
                versions=self._belonging.versions,
                files={path.name: facts(path, digests.get(path.name)) for path in sorted(draft.iterdir())},
            )
            write_manifest(draft, manifest)
        _uncache(place)
        verify(place)  # before an older one goes
        self._thin(progress)
        return CheckpointInfo(step=progress.update, score=progress.best_score)

    def newest(self) -> int | None:
        """The update of the newest checkpoint that is whole; None if none was ever written.

        Damaged ones that are newer are named and moved into the run's `quarantine/`. CheckpointError if there are
        checkpoints and none of them is whole: a run never starts anew in silence.
        """
        return self._crew.told(self._newest)

    def _newest(self) -> int | None:
        faults: dict[int, CheckpointError] = {}
        for step in sorted(self.steps(), reverse=True):
            try:
                verify(self._place(step))
            except CheckpointError as fault:
                faults[step] = fault
            else:
                for bad, why in faults.items():
                    self._quarantine(bad, why)
                return step
        put_away = sorted(self._quarantined.iterdir()) if self._quarantined.is_dir() else []
        if not faults and not put_away:
            return None
        named = [why.faults[0] for why in faults.values()]
        raise CheckpointError(
            faults=named,
            note=f"of {len(named) + len(put_away)} checkpoints none is whole, and nothing was changed. To start anew: "
            "--fresh makes a new folder",
        )

    def healthy(self) -> int:
        """The update of the newest whole checkpoint that a run may go back to."""
        return self._crew.told(self._healthy)

    def _healthy(self) -> int:
        for step in sorted(self.steps(), reverse=True):
            try:
                if verify(self._place(step)).healthy:
                    return step
            except CheckpointError as fault:
                self._quarantine(step, fault)
        raise CheckpointError(
            "there is no healthy checkpoint to go back to", where=str(self._folder), mend="save more often, or skip"
        )

    def load(self, step: int, engine: Engine, *, weights_only: bool = False) -> tuple[Progress, Manifest, Extra]:
        """Verify and read one. CheckpointError names what is damaged."""
        self._crew.told(lambda: self._require(step, engine))
        place = self._place(step)
        manifest = read_manifest(place)
        extra = engine.load(place, weights_only=weights_only)
        return read_record(place / _PROGRESS, Progress), manifest, extra

    def _require(self, step: int, engine: Engine) -> None:
        """A whole checkpoint of what the engine has to load."""
        place = self._place(step)
        if not place.is_dir():
            raise CheckpointError(
                f"there is no checkpoint of update {step}",
                where=str(self._folder),
                mend=f"those there are: {', '.join(map(str, sorted(self.steps()))) or 'none'}",
            )
        if missing := engine.files - verify(place).files.keys():
            raise damaged(place / min(missing), "it is missing")

    def manifest(self, step: int) -> Manifest:
        """What a state says of itself."""
        return read_manifest(self._place(step))

    def clear(self) -> None:
        """Remove the state in which nothing was learned yet."""
        self._crew.told(lambda: self._discard([0]))

    def forget(self, step: int) -> None:
        """Remove what is newer than a state that the run went back to: nobody may go on from there any more."""
        self._crew.told(lambda: self._discard([newer for newer in self.steps() if newer > step]))

    def _discard(self, steps: Sequence[int]) -> None:
        for step in steps:
            if self._place(step).exists():
                discard(self._place(step))

    def steps(self) -> list[int]:
        """The updates after which the states that stand here were written, whole or not."""
        found = self._folder.glob("step-*")
        return [int(path.name[5:]) for path in found if path.is_dir() and path.name[5:].isdecimal()]

    def _thin(self, progress: Progress) -> None:
        """By number, never by time: clocks go back, and copies get new times."""
        steps = sorted(self.steps())
        kept = {*steps[-self._keep :], progress.chosen}
        kept.add(next((step for step in reversed(steps) if self._may_be_healthy(step)), None))
        for step in steps:
            if step not in kept and step < progress.update:
                discard(self._place(step))

    def _may_be_healthy(self, step: int) -> bool:
        try:
            return read_manifest(self._place(step)).healthy
        except CheckpointError as fault:  # damaged behind our back; it is dealt with when somebody wants to read it
            LOGGER.warning(str(fault.faults[0]))
            return False

    def _quarantine(self, step: int, fault: FulltuneError) -> None:
        self._quarantined.mkdir(exist_ok=True)
        name = self._quarantined / step_name(step)
        number = 1
        while name.exists():
            number += 1
            name = name.with_name(f"{step_name(step)}-{number}")
        self._place(step).replace(name)
        said = fault.faults[0]
        LOGGER.warning(f"{said.what} ({said.where}); it is moved to {name}, and an older checkpoint is taken")

    @property
    def _quarantined(self) -> Path:
        return self._folder.parent / "quarantine"

    def _place(self, step: int) -> Path:
        return self._folder / step_name(step)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, at: TracebackType | None) -> None:
        """Waits for what is being written. If the run fails already, a failure of the writing comes second."""
        self._failed = value is not None and not isinstance(value, Interrupted)
        try:
            self.wait()
        except Exception as fault:
            if value is None:
                raise
            LOGGER.error(f"besides, the last checkpoint could not be written: {fault}")
        finally:
            if self._last is not None:  # also where an interrupt cut the waiting short
                self._last.join()


def _uncache(folder: Path) -> None:
    """Drop what the system remembers of files, so that reading them asks the disk."""
    for path in folder.iterdir():
        handle = os.open(path, os.O_RDONLY)
        try:
            os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(handle)
