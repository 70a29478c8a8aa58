"""The parts of a checkpoint that other processes write: each leaves its own, whole, where the first fetches it.

All processes see one file system; nothing is sent. A part stands under its name when it is complete and on the disk, so
that a process killed in the middle of it leaves nothing that could be taken for one.
"""

import json
import time
from collections.abc import Callable
from pathlib import Path

from fulltune.base.errors import RankError
from fulltune.base.files import remove, whole_folder
from fulltune.engine.capture import Capture
from fulltune.training.manifest import step_name

_DIGESTS = "digests.json"
_ASK_EVERY = 0.02


def leave(checkpoints: Path, step: int, rank: int, capture: Capture) -> None:
    """Write this process's part."""
    place = _place(checkpoints, step, rank)
    if place.exists():  # of a save that the first process did not finish
        remove(place)
    with whole_folder(place) as draft:
        digests = capture.write(draft)
        (draft / _DIGESTS).write_text(json.dumps(digests), encoding="utf-8")


def fetch(
    checkpoints: Path, step: int, rank: int, draft: Path, given_up: Callable[[], bool], patience: float
) -> dict[str, str]:
    """Move another process's part into the draft, when it stands; the digest of each of its files.

    RankError if it was given up, since that process has failed, or if it does not come for so many seconds.
    """
    place = _place(checkpoints, step, rank)
    until = time.monotonic() + patience
    while not place.exists():
        if given_up() or time.monotonic() > until:
            raise RankError(f"process {rank} did not write its part of {step_name(step)}", where=str(checkpoints))
        time.sleep(_ASK_EVERY)
    digests: dict[str, str] = json.loads((place / _DIGESTS).read_text(encoding="utf-8"))
    for name in digests:
        (place / name).replace(draft / name)
    remove(place)
    return digests


def _place(checkpoints: Path, step: int, rank: int) -> Path:
    return checkpoints / f".{step_name(step)}.part-rank-{rank:05d}"
