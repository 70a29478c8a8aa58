"""A sweep: one recipe, some of its fields varied, the runs ranked by what was held out, and the best written down."""

import json
import os
import shutil
import signal
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from fulltune.base.errors import CheckpointError, DivergedError, RecipeError
from fulltune.base.files import is_draft, whole_folder, write_whole
from fulltune.base.lock import NAME as LOCK
from fulltune.base.lock import locked
from fulltune.base.log import LOGGER
from fulltune.base.place import place
from fulltune.base.stop import listening
from fulltune.base.sweeps import Axis, Sweep
from fulltune.planning.make import require_names
from fulltune.preparing import prepared
from fulltune.ready import facts_of, planned
from fulltune.recipe.changes import differences
from fulltune.recipe.chosen import rewritten
from fulltune.recipe.load import Asked, flat, recipe_of
from fulltune.recipe.schema import Recipe
from fulltune.runs import RunFolder, is_run_folder, open_run
from fulltune.standings import Standings, said
from fulltune.sweeping.proxy import compressed, share_of, tokens_of
from fulltune.sweeping.space import axes_of, corners
from fulltune.sweeping.study import Prune, Study
from fulltune.terms import LENGTHS, LOSSES, Keep, Terms, ranked_by, require_terms
from fulltune.trying import Bench, Job, Trying

_CARD, _PREPARED = "sweep.json", "prepared"


def sweep(
    recipe: Asked,
    *,
    over: Sequence[str],
    budget: int,
    tokens: int | None = None,
    by: str | None = None,
    prune: Prune = "median",
    jobs: int = 1,
    keep: Keep = "all",
    out: str | os.PathLike[str] | None = None,
    **overrides: Any,
) -> Sweep:
    """Train with other values in some fields, and rank the runs by what was held out; goes on where it stopped.

    `over`: `optim.lr=1e-6:1e-4:log`, `train.epochs=1,2,3`. `budget`: trials in all. `tokens`: of each, its schedule
    compressed into them; by default the whole run. `by`: the score, by default that of `checkpoint.best_by`. `prune`:
    how trials that lie behind are ended early. `jobs`: trials at a time. `keep`: whose weights stay on disk. Writes
    `best.yaml` and `sweep.html`. `data.test` is not looked at.

    >>> fulltune.sweep("recipe.yaml", over=["optim.lr=1e-6:1e-4:log"], budget=12).trials[0].values
    """
    terms = Terms(over=over, budget=budget, tokens=tokens, by=by, prune=prune, jobs=jobs, keep=keep)
    return _try_out(recipe, overrides, terms, out)


def _try_out(asked: Asked, overrides: Mapping[str, Any], terms: Terms, out: str | os.PathLike[str] | None) -> Sweep:
    if place().launched:
        raise RecipeError("a launcher started this process", where="sweep", mend="start one; it starts its trials")
    if isinstance(asked, Recipe):
        asked = asked.model_dump(exclude_unset=True, mode="json")
    fixed = dict(flat(overrides))
    recipe = recipe_of(asked, fixed)
    source = Path(asked) if isinstance(asked, str | os.PathLike) else None
    file = source / "recipe.yaml" if source is not None and is_run_folder(source) else source
    axes = axes_of(terms.over, asked if file is None else file, fixed)
    for values in corners(axes):
        require_names(recipe_of(asked, {**fixed, **values}))
    require_terms(recipe, axes, terms)
    folder = Path("runs") / f"{'run' if source is None else source.stem}-sweep" if out is None else Path(out)
    _require_place(folder)
    with listening(recipe.checkpoint.signals), locked(folder):
        return _Ground.made(_Asked(asked, fixed, file), axes, terms, folder).swept()


@dataclass(frozen=True, slots=True)
class _Asked:
    """The recipe that is swept."""

    recipe: Asked
    overrides: Mapping[str, Any]
    file: Path | None

    def with_values(self, values: Mapping[str, Any]) -> Recipe:
        """It with other values in some fields."""
        return recipe_of(self.recipe, {**self.overrides, **values})


@dataclass(frozen=True, slots=True, kw_only=True)
class _Ground:
    """What all trials of a sweep begin with."""

    asked: _Asked
    terms: Terms
    base: RunFolder
    """The recipe itself. Its data are prepared here, once for all trials that have the same."""
    standings: Standings
    share: float | None
    """The part of a whole run that a trial is; None if it is a whole one."""

    @classmethod
    def made(cls, asked: _Asked, axes: tuple[Axis, ...], terms: Terms, folder: Path) -> "_Ground":
        """Prepare the data, and see that the folder is this sweep's."""
        base = open_run(asked.recipe, asked.overrides, out=folder / _PREPARED)
        data = prepared(base)
        plan = planned(base, data, facts_of(base.recipe.model), judged=None).plan
        by, down = ranked_by(base.recipe, data.facts, terms.by or base.recipe.checkpoint.best_by.score)
        notes = []
        share = None
        if terms.tokens is not None:
            whole = tokens_of(plan, data.facts)
            share = share_of(terms.tokens, whole)
            notes.append(
                f"each trial sees about {terms.tokens:,} of the {whole:,.0f} tokens of a whole run ({share:.1%}), its "
                "schedule compressed into them and not cut off; longer runs often want a somewhat lower rate"
            )
        if terms.prune != "none" and by.partition(".")[0] not in LOSSES:
            notes.append(f"no trial ends early: {by} is not known before its end")
        made = cls(
            asked=asked,
            terms=terms,
            base=base,
            standings=Standings(folder=folder, axes=axes, by=by, falls=down, notes=tuple(notes)),
            share=share,
        )
        made._begin(data.facts.fingerprint)
        for note in notes:
            LOGGER.info(f"note: {note}")
        return made

    def swept(self) -> Sweep:
        """Run the trials, and write down what came of them."""
        on, terms = self.standings, self.terms
        seed = self.base.recipe.train.seed
        study = Study(on.folder / "trials.db", on.axes, falls=on.falls, prune=terms.prune, seed=seed)
        uneven = {*LENGTHS, "evaluate.every"} & {axis.field for axis in on.axes}
        bench = Bench(
            recipe=self.asked.recipe if isinstance(self.asked.recipe, Mapping) else os.fspath(self.asked.recipe),  # type: ignore[arg-type]
            by=on.by,
            prunes=terms.prune != "none" and on.by.partition(".")[0] in LOSSES,
            jobs=terms.jobs,
            by_share=bool(uneven) or self.base.recipe.evaluate.every.unit == "minutes",
            job=partial(self._job, study),
            score=on.score,
            tell=lambda: self._write(on.now(study)),
        )
        Trying(bench, study)(terms.budget)
        made = on.now(study)
        self._write(made)
        if made.best is None:
            raise DivergedError(
                f"none of {len(made.trials)} trials came to an end; the first: {made.trials[0].reason}",
                where=str(on.folder),
                mend="result.json and logs/ say why each failed; vary something else, with --out for a new folder",
            )
        return made

    def _job(self, study: Study, number: int) -> Job:
        values = study.values(number)
        changes = self._changes(values)
        run = RunFolder(self.asked.with_values(changes), self.standings.place(number))
        self._lend(run)
        signals = run.recipe.checkpoint.signals
        return Job(
            values=json.loads(json.dumps({**self.asked.overrides, **changes}, default=str)),
            told=values,
            folder=run.path,
            updates=lambda: run.plan().updates,
            number=signal.Signals[signals[0]] if signals else signal.SIGTERM,
        )

    def _changes(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Fields of a trial: those that are varied, and a proxy's; suites only if one of them decides, no test data."""
        recipe = self.asked.with_values(values)
        made = {**values, "evaluate.test": False, "evaluate.gate": None}
        if self.share is not None:
            made |= compressed(recipe, self.share)
        floors = recipe.checkpoint.best_by.floors
        if self.standings.by.partition(".")[0] in LOSSES and recipe.evaluate.suites and not floors:
            made |= {"evaluate.suites": [], "evaluate.suites_every": None, "evaluate.batch_tokens": None}
        return made

    def _lend(self, run: RunFolder) -> None:
        """Give a trial the data that is prepared already; its files are linked, since nobody changes them."""
        if run.path.exists() or any(axis.field.startswith(("data.", "model.")) for axis in self.standings.axes):
            return
        run.begin()
        with whole_folder(run.data) as draft:
            shutil.copytree(self.base.data, draft, copy_function=_linked, dirs_exist_ok=True)
        write_whole(run.data_card, self.base.data_card.read_text(encoding="utf-8"))

    def _begin(self, data: str) -> None:
        """Write down what this sweep is; CheckpointError if the folder is that of another."""
        card, terms, on = self.standings.folder / _CARD, self.terms, self.standings
        identity = {
            "recipe": self.base.described,
            "data": data,
            "over": {axis.field: asdict(axis) for axis in on.axes},
            "--tokens": terms.tokens,
            "--by": on.by,
            "--prune": terms.prune,
        }
        text = json.dumps(identity, indent=2, ensure_ascii=False) + "\n"
        if not card.exists():
            write_whole(card, text)
            return
        changed = differences(json.loads(card.read_text(encoding="utf-8")), json.loads(text), settings=False)
        if changed:
            raise CheckpointError(
                f"this folder holds another sweep: {'; '.join(map(str, changed[:8]))}",
                where=str(on.folder),
                mend="name a new folder with --out, or ask for the same sweep",
            )

    def _write(self, made: Sweep) -> None:
        self.standings.write(made)
        if made.best is None:
            return
        values = made.trials[0].values
        changes = dict(flat({**self.asked.overrides, **values}))  # with paths that hold from anywhere
        text = rewritten(self.asked.file, changes, self.asked.with_values(values))
        note = f"Set: {said(self.asked.overrides)}" if self.asked.overrides else ""
        if self.share is not None:
            note += f"{' - ' if note else ''}Its trial saw {self.terms.tokens:,} tokens; this trains the full length."
        self.standings.write_best(made, text, note)
        if self.terms.keep == "best":
            self.standings.clear(made)


def _linked(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:  # of a file system that has no links
        shutil.copyfile(source, target)


def _require_place(folder: Path) -> None:
    ours = (_CARD, _PREPARED, LOCK)
    if (folder / _CARD).is_file() or not folder.is_dir():
        return
    if not all(path.name in ours or is_draft(path) for path in folder.iterdir()):
        raise RecipeError("the folder is not empty and is no sweep", where=str(folder), mend="name another with --out")
