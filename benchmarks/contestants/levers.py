"""A run in a fresh process, as a user would have it, with one lever for memory: what it held, and how long it took."""

import dataclasses
import gc
import json
import re
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Lever:
    """What is told, as a JSON file."""

    model: str
    rows: str
    """Tokenised examples."""
    updates: int
    """Of one cycle."""
    cycles: int
    """That are timed, behind one that is not."""
    batch: int
    precision: str
    settings: Sequence[str]
    """`section.field=value` of the recipe."""
    out: str
    answer: str

    def write(self, path: Path) -> None:
        """The file that `main` reads."""
        path.write_text(json.dumps(dataclasses.asdict(self)), encoding="utf-8")


@dataclass(frozen=True, slots=True, kw_only=True)
class Moved:
    """What is answered."""

    peak: int
    """The most that the process held while it trained, less what it held before the model was made."""
    seconds: Sequence[float]
    """Of each cycle."""
    cpu: Sequence[float]
    losses: Sequence[float]
    """Of every update from the first one on."""

    @classmethod
    def read(cls, path: Path) -> "Moved":
        """As it was written."""
        return cls(**json.loads(path.read_text(encoding="utf-8")))


def resident(what: str) -> int:
    """Bytes of this process, files too: VmRSS now, VmHWM at most since `forget`."""
    found = re.search(rf"{what}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) * 1024


def forget() -> None:
    """The peak begins anew."""
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")


def main() -> None:
    """Train some cycles over the same updates, then say what it took."""
    told = Lever(**json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))
    from benchmarks import step
    from fulltune.losses import fitting
    from fulltune.ready import facts_of

    model = Path(told.model)
    with tempfile.TemporaryDirectory(dir=Path(told.out).parent) as folder:
        asked: dict[str, Any] = step.recipe(model, Path(told.rows), told.precision, told.batch, told.settings)
        recipe, _, plan = step.Ours.plan(Path(folder) / "run", asked)  # all modules that planning takes are there then
        forget()
        before = resident("VmRSS")
        losses, took = [], []
        with fitting(plan, facts_of(recipe.model)):  # memory is used again as a run of this recipe does it
            loop = step.Ours(Path(folder) / "run", asked)
            forget()
            for _ in range(1 + told.cycles):
                parts = [step.timed(loop, number) for number in range(told.updates)]
                losses += [loss for loss, _ in parts]
                took.append(step.total([part for _, part in parts]))
        made = Moved(
            peak=resident("VmHWM") - before,
            seconds=[one.wall for one in took[1:]],
            cpu=[one.cpu for one in took[1:]],
            losses=losses,
        )
    Path(told.answer).write_text(json.dumps(dataclasses.asdict(made)), encoding="utf-8")


if __name__ == "__main__":
    main()
