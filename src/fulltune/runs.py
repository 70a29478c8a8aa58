"""A run is a folder: where each card lies, and whose folder it is."""

import itertools
import os
import shlex
from collections.abc import Collection, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fulltune.base.chain import EarlierTask
from fulltune.base.errors import CheckpointError, RecipeError
from fulltune.base.files import as_text, fingerprint, is_begun, is_draft, private_folder, read_record, write_whole
from fulltune.base.folder import MARK
from fulltune.base.folder import is_run_folder as is_run_folder
from fulltune.base.lock import NAME as LOCK
from fulltune.base.records import DataFacts, Plan, RunRecord
from fulltune.base.secrets import MASK, masked_tree
from fulltune.earlier import Recorded, continued
from fulltune.recipe.changes import Change, differences, leaves, require_accepted, require_known
from fulltune.recipe.load import Asked, load_recipe, recipe_of
from fulltune.recipe.schema import Recipe
from fulltune.recipe.write import as_values, as_yaml
from fulltune.training.manifest import Manifest, read_manifest, step_name


@dataclass(frozen=True, slots=True)
class RunFolder:
    """One run: its recipe and its folder. Nothing in it is ever deleted for the user."""

    recipe: Recipe
    path: Path
    accepted: frozenset[str] = frozenset()
    """What may have changed since the run began, by name."""
    recorded: Manifest | None = None
    """What the newest readable checkpoint says of the run."""
    chain: tuple[EarlierTask, ...] = ()
    """The runs that its model comes from."""

    @property
    def recipe_file(self) -> Path:
        """The recipe as resolved."""
        return self.path / "recipe.yaml"

    @property
    def data(self) -> Path:
        """The prepared splits."""
        return self.path / "data"

    @property
    def data_card(self) -> Path:
        """What the data stage found."""
        return self.path / "data.json"

    @property
    def plan_card(self) -> Path:
        """Every derived number."""
        return self.path / "plan.json"

    @property
    def journal(self) -> Path:
        """One JSON object a line: what happened, in order."""
        return self.path / "journal.jsonl"

    @property
    def model(self) -> Path:
        """The result, a Hugging Face folder."""
        return self.path / "model"

    @property
    def evaluations(self) -> Path:
        """What suites of questions gave, a folder for each time they were asked."""
        return self.path / "evaluations"

    @property
    def blend(self) -> Path:
        """Mixtures with other models, those of the last `fulltune blend`."""
        return self.path / "blend.json"

    @property
    def record(self) -> Path:
        """The one paper that explains the run; it stands when the run is done."""
        return self.path / "record.json"

    @property
    def report(self) -> Path:
        """All of it as a page for people."""
        return self.path / "report.html"

    @property
    def begun(self) -> bool:
        """Whether training left something to go on from. Before its first update was saved everything may change."""
        return any(path.name != step_name(0) for path in (self.path / "checkpoints").glob("step-*"))

    @property
    def changes(self) -> tuple[Change, ...]:
        """What differs from the recipe of the newest checkpoint; nothing before the first update was saved."""
        return () if self.recorded is None else differences(self.recorded.identity["recipe"], self.described)

    @property
    def described(self) -> dict[str, Any]:
        """The recipe as resolved, its secrets masked: what is written down of it, and compared."""
        values: dict[str, Any] = masked_tree(as_values(self.recipe))
        return values

    @property
    def identity(self) -> str:
        """Fingerprint of the recipe as resolved. A key that was exchanged makes no other recipe."""
        return fingerprint(masked_tree(as_values(self.recipe)))

    def begin(self) -> None:
        """Write the recipe into the folder, which makes it this run's."""
        private_folder(self.path)
        write_whole(self.recipe_file, MARK + as_yaml(self.recipe))

    def holds(self, plan: Plan) -> bool:
        """Whether this recipe and this plan stand in the folder already."""
        wanted = {self.recipe_file: MARK + as_yaml(self.recipe), self.plan_card: as_text(plan)}
        return all(path.exists() and path.read_text(encoding="utf-8") == text for path, text in wanted.items())

    def data_facts(self) -> DataFacts:
        """The card of the data stage."""
        return read_record(self.data_card, DataFacts)

    def plan(self) -> Plan:
        """The card of the plan stage."""
        return read_record(self.plan_card, Plan)

    def finished(self) -> RunRecord:
        """The record of a run that is done; RecipeError if it is not."""
        if not self.record.exists():
            raise RecipeError(
                "this run has no result yet", where=str(self.path), mend=f"fulltune train {shlex.quote(str(self.path))}"
            )
        return read_record(self.record, RunRecord)


def result_of(folder: str | os.PathLike[str]) -> Path:
    """The model of a run folder; any other folder is a model itself. RecipeError if the run has none yet."""
    path = Path(folder)
    if not is_run_folder(path):
        return path
    run = RunFolder(load_recipe(path / "recipe.yaml"), path)
    run.finished()
    return run.model


def open_run(
    asked: Asked,
    overrides: Mapping[str, Any],
    *,
    out: str | os.PathLike[str] | None = None,
    fresh: bool = False,
    accept: Collection[str] = (),
    whole: bool = True,
) -> RunFolder:
    """The run of a recipe, or of a run folder; CheckpointError if the folder trained by another recipe.

    Some changes can be honoured (recipe/changes.py); others must be named in `accept`.
    `whole`: every setting is wanted; RecipeError if the recipe is a run folder's, in which secrets are masked.

    The folder is `out`, or the run folder itself, or `runs/<stem of the recipe's file>`; with `fresh` the next free
    name after it (`-2`, `-3`).
    """
    path = Path(asked) if isinstance(asked, str | os.PathLike) else None
    is_run = path is not None and is_run_folder(path)
    recipe = recipe_of(asked, overrides)
    if out is not None:
        folder = Path(out)
    elif path is not None:
        folder = path if is_run else Path("runs") / path.stem
    else:
        folder = Path("runs/run")
    if fresh:
        folder = next(name for name in _names(folder) if not name.exists())
    if is_run and whole:
        _require_whole(recipe, folder)
    _require_place(folder)
    require_known(accept, as_values(recipe))
    recorded = _recorded(folder / "checkpoints")
    recipe, chain = continued(recipe, _before(folder / "plan.json", recorded))
    run = RunFolder(recipe, folder, frozenset(accept), recorded, chain)
    _require_same(run)
    return run


def _require_whole(recipe: Recipe, folder: Path) -> None:
    hidden = [key for key, value in leaves(as_values(recipe)) if MASK in str(value)]
    if hidden:
        raise RecipeError(
            f"the recipe in a run folder has no secrets: {', '.join(hidden)} cannot be read from it",
            where=str(folder / "recipe.yaml"),
            mend=f"run the recipe that it was written from, with --out {shlex.quote(str(folder))}",
        )


def _names(folder: Path) -> Iterator[Path]:
    yield folder
    if folder.name in ("", ".."):  # such as `.`, whose own name is not written there
        folder = folder.resolve()
    for number in itertools.count(2):
        yield folder.parent / f"{folder.name}-{number}"


def _require_place(folder: Path) -> None:
    """What stands at a run's folder, or nearest above it, must be a folder: found here, before any work is done."""
    nearest = next(place for place in (folder, *folder.parents) if place.exists() or place.is_symlink())
    if not nearest.is_dir():
        raise RecipeError(
            f"the run's folder cannot be made: {nearest} is no folder",
            where=str(folder),
            mend="name another with --out",
        )


def _require_same(run: RunFolder) -> None:
    """Before training began a recipe may change; afterwards the folder's weights belong to the one it began with."""
    if not is_run_folder(run.path):
        if run.path.exists() and not all(map(_is_left_over, run.path.iterdir())):
            raise RecipeError(
                "the folder is not empty and is no run",
                where=str(run.path),
                mend="name another with --out, or say --fresh",
            )
        return
    written = {run.data: (run.data / "train" / "examples.bin").exists(), run.model: run.begun}
    for place, ours in written.items():
        if place.exists() and not ours:  # a copied recipe.yaml does not make somebody's data ours to replace
            raise RecipeError(
                "fulltune did not write this, and would have to replace it",
                where=str(place),
                mend="name another folder for the run with --out, or say --fresh",
            )
    if (run.path / "checkpoints").is_symlink():
        raise RecipeError(
            "this is a link, and old checkpoints would be removed where it leads",
            where=str(run.path / "checkpoints"),
            mend="for another disk make the whole run there with --out",
        )
    require_accepted(run.changes, run.accepted, folder=str(run.path))


def _recorded(checkpoints: Path) -> Manifest | None:
    """The newest manifest that can be read, of a state in which something was learned."""
    for place in sorted(checkpoints.glob("step-*"), reverse=True):
        with suppress(CheckpointError):  # it is named, and put away, by who needs the state itself
            manifest = read_manifest(place)
            return manifest if manifest.step > 0 else None
    return None


def _before(plan: Path, recorded: Manifest | None) -> Recorded | None:
    """What a run that has begun said of those before it."""
    if recorded is None or not plan.exists():
        return None
    return Recorded(read_record(plan, Plan).chain, recorded.identity["recipe"])


def _is_left_over(path: Path) -> bool:
    """Whether this is what a process leaves that was killed before its run began."""
    return is_draft(path) or is_begun(path) or path.name in (LOCK, "recipe.yaml.part")
