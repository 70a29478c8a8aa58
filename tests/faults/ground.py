"""A tiny run that one can break: prepared once, copied for each case, and what its end must be to the bit."""

import hashlib
import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from fulltune.reporting.page import finished
from tests import tiny
from tests.faults.forkserver import Ended, ForkServer, Job

UPDATES, SAVED, MEASURED = 12, 3, 4
AT_LENGTH = (pytest.mark.faults,)
"""Of cases that take minutes: `make faults` runs them."""


def sections(**changes: dict[str, Any]) -> dict[str, Any]:
    """12 updates with dropout that cross an epoch; a checkpoint every 3, an evaluation every 4."""
    values: dict[str, Any] = {
        "train": {"steps": UPDATES, "seed": 3, "micro_examples": 4},
        "evaluate": {"every": MEASURED, "samples": 1, "sample_tokens": 4},
        "checkpoint": {"every": SAVED, "keep": 3},
    }
    for section, fields in changes.items():
        values[section] = {**values.get(section, {}), **fields}
    return values


@dataclass(frozen=True, slots=True)
class Ground:
    """A recipe, a run folder with its data prepared, and the end of the run that nothing disturbed."""

    recipe: Path
    prepared: Path
    whole: Path

    @classmethod
    def make(cls, folder: Path, server: ForkServer, *, rows: int = 60, **changes: dict[str, Any]) -> "Ground":
        """Model (if there is none yet), rows and recipe; data prepared; the run made once, undisturbed."""
        folder.mkdir(parents=True, exist_ok=True)
        model = folder / "base"
        if not model.exists():
            tiny.folder(model, "gpt2", attn_pdrop=0.1, embd_pdrop=0.1, resid_pdrop=0.1)
        data = tiny.jsonl(folder / "rows.jsonl", tiny.rows(rows, longest=8))
        recipe = folder / "recipe.yaml"
        recipe.write_text(json.dumps(tiny.recipe(model, data, **sections(**changes))), encoding="utf-8")
        ground = cls(recipe, folder / "prepared", folder / "whole")
        require(server.run(ground.job(ground.prepared, verb="prepare")), 0)
        ground.copy(ground.whole)
        require(server.run(ground.job(ground.whole), timeout=600), 0)
        return ground

    def copy(self, run: Path) -> Path:
        """A run folder that stands before its first update."""
        return copied(self.prepared, run)

    def job(self, run: Path, *faults: dict[str, Any], verb: str = "train", more: tuple[str, ...] = ()) -> Job:
        """The command, always the same; with faults in its way."""
        words = [verb, str(self.recipe), *more, "--out", str(run)]
        return Job("tests.faults.jobs:command", {"words": words, "faults": list(faults)})

    def boundaries(self, run: Path, server: ForkServer, verb: str = "train") -> list[str]:
        """Every write boundary of the command from where the folder stands to its end, in order."""
        seen = run.parent / f"{run.name}.seen"
        job = self.job(run, {"folder": str(run)}, verb=verb)
        require(server.run(Job(job.call, {**job.arguments, "seen": str(seen)})), 0)
        return seen.read_text().splitlines()

    def require_same_end(self, run: Path, what: str = "") -> None:
        """The run is done, and nothing in it tells that it was ever disturbed."""
        assert (run / "record.json").exists(), what
        assert digest(run) == digest(self.whole), what
        assert steps(run) == steps(self.whole), f"every update once, with the same loss: {what}"
        assert evaluations(run) == evaluations(self.whole), what
        assert finished(run / "report.html"), what
        assert drafts(run) == [], what


def copied(run: Path, to: Path) -> Path:
    """A run folder as it stands, to go on with and break."""
    shutil.copytree(run, to, symlinks=True)
    return to


def require(ended: Ended, *codes: int) -> Ended:
    """AssertionError with all that the process said, if it ended in another way."""
    assert ended.returncode in codes, f"ended with {ended.returncode}, not {codes}:\n{ended.stdout}\n{ended.stderr}"
    return ended


def checkpoints(run: Path) -> list[Path]:
    """Folders of checkpoints, the oldest first."""
    return sorted((run / "checkpoints").glob("step-*"))


def digest(run: Path) -> dict[str, str]:
    """Of the result's weights, and of all that the last checkpoint holds besides the time it took."""
    last = checkpoints(run)[-1]
    files = [run / "model/model.safetensors", *sorted(last.glob("*.safetensors")), last / "optimizer.json"]
    found = {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files}
    progress = json.loads((last / "progress.json").read_text(), object_hook=_timeless)
    return {**found, "step": last.name, "progress": json.dumps(progress, sort_keys=True)}


def _timeless(values: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if name != "seconds"}


def lines(run: Path, kind: str) -> list[dict[str, Any]]:
    """Lines of one kind in the journal; the last one may be torn, where its process was killed."""
    whole, _, _ = (run / "journal.jsonl").read_text(encoding="utf-8").rpartition("\n")
    return [line for line in map(json.loads, whole.splitlines()) if line["kind"] == kind]


def steps(run: Path) -> list[dict[str, Any]]:
    """Each update as the journal tells it, without the time it took."""
    return [_timeless(line) for line in lines(run, "step")]


def evaluations(run: Path) -> list[tuple[int, dict[str, float]]]:
    """Each evaluation as the journal tells it."""
    return [(line["step"], line["scores"]) for line in lines(run, "evaluation")]


def drafts(run: Path) -> list[str]:
    """What a killed process left half done."""
    return sorted(str(path.relative_to(run)) for path in run.rglob("*") if ".part" in path.name or ".old" in path.name)
