"""Checkpoints: written whole, verified before they are believed, thinned out; the best is kept."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fulltune.base.errors import CheckpointError
from fulltune.base.files import read_record, sha256, whole_folder, write_record, writing
from fulltune.base.records import CheckpointInfo, Progress
from fulltune.engine.contract import Engine, Extra

_MANIFEST = "MANIFEST.json"


class Checkpoints:
    """The folder of one run's saved states: `step-00000012/` with weights, optimizer, progress and a manifest.

    A folder gets its name when everything in it is on disk. The manifest, written last, holds the size and sha256 of
    every file and what the state belongs to.
    """

    def __init__(self, folder: Path, *, keep: int, identity: Mapping[str, str]) -> None:
        """`identity`: fingerprints of recipe and data; a checkpoint of others is refused."""
        self._folder, self._keep, self._identity = folder, keep, dict(identity)

    def save(self, engine: Engine, progress: Progress, *, journal: int, extra: Extra) -> CheckpointInfo:
        """Write the state after `progress.update` updates, then remove what need not be kept."""
        with whole_folder(self._place(progress.update)) as draft:
            with writing(draft):
                engine.save(draft, extra)
            write_record(draft / "progress.json", progress)
            files = {path.name: _facts(path) for path in sorted(draft.iterdir())}
            manifest = {"format": 1, "journal": journal, "identity": self._identity, "files": files}
            (draft / _MANIFEST).write_text(json.dumps(manifest, indent=2), encoding="utf-8")
        self._thin(progress)
        return CheckpointInfo(step=progress.update, score=progress.best_score)

    def newest(self) -> int | None:
        """The update after which the newest checkpoint was written; None if there is none."""
        return max(self._steps(), default=None)

    def load(self, step: int, engine: Engine, *, weights_only: bool = False) -> tuple[Progress, int, Extra]:
        """Verify and read one: progress, bytes of the journal, extra. CheckpointError names what is damaged."""
        place = self._place(step)
        if not place.is_dir():
            raise CheckpointError(
                f"there is no checkpoint of update {step}",
                where=str(self._folder),
                mend=f"those there are: {', '.join(map(str, sorted(self._steps()))) or 'none'}",
            )
        manifest = self._verified(place)
        extra = engine.load(place, weights_only=weights_only)
        return read_record(place / "progress.json", Progress), manifest["journal"], extra

    def _verified(self, place: Path) -> dict[str, Any]:
        try:
            manifest: dict[str, Any] = json.loads((place / _MANIFEST).read_text(encoding="utf-8"))
        except (OSError, json.JSONDecodeError) as fault:
            raise _damaged(place / _MANIFEST, "it is missing or cannot be read") from fault
        for name, facts in manifest["files"].items():
            path = place / name
            if not path.exists():
                raise _damaged(path, "it is missing")
            if path.stat().st_size != facts["bytes"]:
                raise _damaged(path, f"it has {path.stat().st_size} bytes, not {facts['bytes']}")
            if _facts(path) != facts:
                raise _damaged(path, "its content changed (sha256 differs)")
        differing = [key for key, value in self._identity.items() if manifest["identity"].get(key) != value]
        if differing:
            raise CheckpointError(
                f"the checkpoint belongs to another {' and '.join(differing)}",
                where=str(place),
                mend="use the recipe and data it was made with, or a new run folder (--fresh)",
            )
        return manifest

    def _thin(self, progress: Progress) -> None:
        steps = sorted(self._steps())
        for step in steps[: -self._keep]:
            if step != progress.best_update:
                shutil.rmtree(self._place(step))

    def _steps(self) -> list[int]:
        return [int(path.name.removeprefix("step-")) for path in self._folder.glob("step-*") if path.is_dir()]

    def _place(self, step: int) -> Path:
        return self._folder / f"step-{step:08d}"


def _facts(path: Path) -> dict[str, Any]:
    return {"bytes": path.stat().st_size, "sha256": sha256(path)}


def _damaged(path: Path, how: str) -> CheckpointError:
    return CheckpointError(
        f"the checkpoint is damaged: {how}",
        where=str(path),
        mend="move its folder away and run the same command: the run goes on from the one before it",
    )
