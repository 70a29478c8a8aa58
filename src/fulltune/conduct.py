"""Conducts a training run: load, ask, rehearse the save, begin or go on, loop, write the result, keep the record."""

import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from fulltune.account import reported
from fulltune.assemble import Site, Training, training
from fulltune.base.errors import CheckpointError, DivergedError
from fulltune.base.files import from_json, require_room, sweep, to_json, whole_folder, write_record
from fulltune.base.log import LOGGER
from fulltune.base.records import CheckpointInfo, EngineName, EvalReport, ModelFacts, Plan, Progress, RunRecord
from fulltune.engine.launch import Meeting, alone, deterministic
from fulltune.engines import By
from fulltune.examining import directions, examining_of
from fulltune.losses import fitting
from fulltune.material import Prepared
from fulltune.model.folder import load_tokenizer, require_rows
from fulltune.outcome import Outcome, merged, peak_bytes, scores_of, versions
from fulltune.recipe.changes import Change, differences
from fulltune.recipe.schema import ExportSection
from fulltune.runs import RunFolder
from fulltune.shipping import judged
from fulltune.starting import Start, require_layout, start
from fulltune.training.acts import require_finite
from fulltune.training.checkpoint import Belonging
from fulltune.training.choosing import choose_anew, fallen_back
from fulltune.training.journal import Journal, Sink, read, standing
from fulltune.training.loop import train
from fulltune.training.manifest import Manifest, step_name

_AT_ONCE = 2
"""Checkpoints besides the newest ones: the best, and the one that is being written."""

_MOMENTS = 8
"""Bytes of optimizer state for each parameter: two float32 moments, which no optimizer of ours exceeds."""

_SINGLE = By("single")


def conduct(
    run: RunFolder, plan: Plan, data: Prepared, model: ModelFacts, sinks: Sequence[Sink], meeting: Meeting, by: By
) -> RunRecord:
    """The training stage, from prepared data and a plan to a verified model folder and the record.

    All processes of the meeting run it, in step, each by the same engine.
    """
    for folder in (run.path, run.path / "checkpoints"):
        meeting.crew.told(partial(sweep, folder))
    muted = meeting.crew.rank > 0
    fixed, told = deterministic(run.recipe.train.deterministic), reported(run, mute=muted)
    with fixed, told, fitting(plan, model, meeting.world, by), Journal(run.journal, sinks, mute=muted) as journal:
        work = _Work.begin(run, plan, data, model, Workplace(run.path, journal, meeting, by))
        with work.built.checkpoints as checkpoints:
            progress = work.go_on() or work.start()
            for state in train(work.built.loop(progress)):
                progress = state
                work.built.saving.tell(checkpoints.settled())  # or raise what the last one failed of
            work.built.saving.tell(checkpoints.wait())
            return work.finish(progress)


def rehearse(run: RunFolder, plan: Plan, data: Prepared, model: ModelFacts) -> dict[str, float]:
    """The training stage up to one update, one checkpoint and one export, all in a folder that is then removed."""
    with fitting(plan, model), tempfile.TemporaryDirectory(dir=run.path, prefix=".dry-run.part-") as scratch:
        with Journal(Path(scratch) / "journal.jsonl") as journal:
            work = _Work.begin(run, plan, data, model, Workplace(Path(scratch), journal))
            with work.built.checkpoints:
                loop = work.built.loop(work.start())
                progress = loop.save(loop.update(loop.progress))
        losses = [line["loss"] for line in read(journal.path, "step")]
        saved = Path(scratch, "checkpoints", step_name(progress.update))
        size = sum(path.stat().st_size for path in saved.iterdir())
    if not losses:
        raise DivergedError(
            "the first update was skipped: its loss or gradient is not finite",
            where=str(run.path),
            mend="train.precision=float32 tells whether it is the arithmetic; else look at model and data",
        )
    return {
        "loss": losses[0],
        "seconds_per_update": progress.seconds,
        "hours": progress.seconds * plan.updates / 3600,
        "checkpoint_bytes": float(size),
        "peak_bytes": float(peak_bytes()),
    }


def write_checkpoint(
    run: RunFolder, data: Prepared, model: ModelFacts, folder: Path, step: int | None, section: ExportSection
) -> None:
    """Export one checkpoint of a run: that of `step`, else the best, else the last."""
    with tempfile.TemporaryDirectory() as scratch, Journal(Path(scratch) / "journal.jsonl") as journal:
        work = _Work.begin(run, run.plan(), data, model, Workplace(run.path, journal))
        newest = work.built.checkpoints.newest()
        if newest is None:
            raise CheckpointError("there is no checkpoint", where=str(run.path), mend=f"fulltune train {run.path}")
        progress = work.take(newest)
        best = newest if progress.chosen is None else progress.chosen
        chosen = best if step is None else step
        work.take(chosen)
        work.built.pulling.instead(
            lambda: work.outcome.write_model(partial(whole_folder, folder), section, step=chosen)
        )


@dataclass(frozen=True, slots=True)
class Workplace:
    """Where a run is worked on: the folder of its checkpoints, its journal, and who works on it.

    Without a meeting one process has all of it, whatever engine the run trains by.
    """

    folder: Path
    journal: Journal
    meeting: Meeting | None = None
    by: By = _SINGLE


@dataclass(frozen=True, slots=True)
class _Work:
    """One training run in this process: what is known, and what was built from it."""

    run: RunFolder
    plan: Plan
    data: Prepared
    journal: Journal
    built: Training
    outcome: Outcome
    begun: Start
    engine: EngineName
    bytes: tuple[int, int]
    """Of the weights, and of weights and moments: what the disk must have room for."""

    @classmethod
    def begin(cls, run: RunFolder, plan: Plan, data: Prepared, model: ModelFacts, place: Workplace) -> "_Work":
        """Load model and tokenizer, ask what could forbid the run, and build all that it needs."""
        section = run.recipe.model
        tokenizer = load_tokenizer(section)
        meeting, name = place.meeting or alone(), place.by.name
        replicas, packed = run.recipe.engine.replicas, plan.layout == "packed"
        begun = start(section, meeting, name, replicas=replicas, packed=packed)
        require_rows(begun.model, tokenizer, section.path)
        require_layout(plan, begun.model, begun.answers)
        weights = sum(parameter.nbytes for parameter in begun.model.parameters())
        each = int(_MOMENTS + plan.dtypes.bytes.get("pulls", 0))
        state = weights + each * sum(parameter.numel() for parameter in begun.model.parameters())
        suites = directions(run.recipe.evaluate.suites)
        identity = {"recipe": run.described, "depends": data.depends}
        belonging = Belonging(identity, versions(), meeting.crew.size)
        # A rehearsal and an export are of no account: they ask nothing, which might take hours.
        examining = examining_of(run, plan, data, tokenizer, place.meeting)
        site = Site(place.folder, place.journal, meeting, belonging, place.by, examining, suites)
        built = training(run.recipe, plan, begun.model, begun.answers, data, site)
        outcome = Outcome(run, data, model, begun.model, tokenizer, built.engine, meeting.crew)
        return cls(run, plan, data, place.journal, built, outcome, begun, name, (weights, state))

    def go_on(self) -> Progress | None:
        """Where the newest whole checkpoint stands, the journal cut back to it; None if there is nothing to keep."""
        checkpoints = self.built.checkpoints
        newest = checkpoints.newest()
        if newest is None or (newest == 0 and self._differs(checkpoints.manifest(0))):
            checkpoints.clear()  # before the first update was saved everything may change
            self.journal.cut(0)
            return None
        # The last moment at which the engine has the base's weights, or can have them.
        self._compare(anew=False)
        progress, manifest, extra = checkpoints.load(newest, self.built.engine)
        self.begun.forgo()
        self.built.pulling.recall(extra)
        self.journal.cut(manifest.journal)
        self.built.saving.tell(CheckpointInfo(step=newest, score=progress.best_score))
        self.journal.write("start", {"resumed_at": newest, "updates": self.plan.updates, **self._who()})
        for change in self._differs(manifest):
            self.journal.write("change", {"step": newest, **to_json(change)})
            LOGGER.info(f"changed: {change}")
        if manifest.versions != versions():
            LOGGER.warning(f"the checkpoint was written with other versions: {dict(manifest.versions)}")
        self.outcome.crew.told(lambda: self._put_away(newest))
        if progress.best_by != str(self.built.evaluating.rule):  # among the states that are there another may be best
            anew = partial(choose_anew, progress, self.built.evaluating.rule, self.run.journal, checkpoints.steps())
            progress = from_json(self.outcome.crew.told(lambda: to_json(anew())), Progress)
        LOGGER.info(f"going on after update {newest}")
        return progress

    def _put_away(self, newest: int) -> None:
        """The record of a run that is done, and was asked for more."""
        if self.run.record.exists():
            self.run.record.replace(self.run.record.with_name(f"record-{newest:08d}.json"))

    def _differs(self, manifest: Manifest) -> tuple[Change, ...]:
        before, now = manifest.identity, {"recipe": self.run.described, "depends": self.data.depends}
        return tuple(
            change for part in now for change in differences(before[part], now[part], settings=part == "recipe")
        )

    def start(self) -> Progress:
        """Try everything once before training, so that nothing can fail at the end; measure what is to be improved."""
        facts = {
            "recipe": self.run.identity,
            "data": self.data.facts.fingerprint,
            "updates": self.plan.updates,
        }
        self.begun.fill(self.built.engine)
        self.journal.write("start", {**facts, **self._who()})
        self.outcome.crew.told(self._require_room)
        self._compare(anew=True)
        self.built.pulling.begin()
        self.outcome.write_model(self._scratch, self.run.recipe.export, step=0)
        report = merged(self.built.evaluating.measure(0), self.built.testing(0))
        if report is not None:
            self.journal.write("evaluation", {**to_json(report), "answers": self.outcome.answers()})
            require_finite(report)
        self.built.evaluating.examined(0)
        begun = Progress(base={} if report is None else report.scores)
        progress = self.built.saving(self.built.updating.rehearse(begun))
        self.built.saving.tell(self.built.checkpoints.wait())
        return progress

    def _compare(self, *, anew: bool) -> None:
        """Ask the base what it predicts, where that is not kept already; the engine has its weights, or takes them."""
        built, ready = self.built, partial(self.begun.fill, self.built.engine)
        built.comparing.make(built.engine, built.updating.objective, self.outcome.crew, anew=anew, ready=ready)

    def _who(self) -> dict[str, Any]:
        """Who trains, by what."""
        return {"pid": os.getpid(), "processes": self.outcome.crew.size, "engine": self.engine, **versions()}

    @contextmanager
    def _scratch(self) -> Iterator[Path]:
        with tempfile.TemporaryDirectory(dir=self.run.path, prefix=".rehearsal.part-") as folder:
            yield Path(folder)

    def _require_room(self) -> None:
        """For all checkpoints that are kept at once, and the result."""
        kept = self.run.recipe.checkpoint.keep + _AT_ONCE
        weights, state = self.bytes
        beside = (weights if self.built.pulling.estimates else 0) + self.built.comparing.bytes  # from the start
        require_room(self.run.path, kept * state + weights + beside, f"{kept} checkpoints and the result")

    def finish(self, progress: Progress) -> RunRecord:
        """The best checkpoint if anything chose one, else the last, as a model folder; then the record."""
        if progress.update == 0:
            raise DivergedError(
                f"nothing was learned: all {progress.skipped} updates were skipped",
                where=str(self.run.journal),
                mend="its warnings name the rows; lower optim.lr, or train.precision=float32",
            )
        chosen = progress.update if progress.chosen is None else progress.chosen
        self.take(chosen)
        difference, answers = self.built.pulling.instead(partial(self._result, chosen))
        tested = self.built.testing(chosen)
        if not self.outcome.crew.told(lambda: self._was_examined(chosen)):
            self.built.evaluating.examined(chosen)
        self.outcome.crew.told(lambda: self._tell(progress, chosen, tested))
        self.outcome.crew.told(lambda: self._close(progress, chosen, difference, answers))
        return self.run.finished()

    def take(self, step: int) -> Progress:
        """The weights of a checkpoint, and what pulls remembered then."""
        progress, _, extra = self.built.checkpoints.load(step, self.built.engine, weights_only=True)
        self.built.pulling.recall(extra)
        return progress

    def _result(self, step: int) -> tuple[float, list[str]]:
        place = partial(whole_folder, self.run.model)
        return self.outcome.write_model(place, self.run.recipe.export, step=step), self.outcome.answers()

    def _was_examined(self, step: int) -> bool:
        """Whether all suites were put to this very state while it was trained."""
        asked = {line["suite"] for line in standing(self.run.journal, "suite") if line["step"] == step}
        return asked.issuperset(suite.called for suite in self.run.recipe.evaluate.suites)

    def _tell(self, progress: Progress, chosen: int, tested: EvalReport | None) -> None:
        """What was measured of the result alone, and whether it breaks the rule that it was chosen by."""
        if tested is not None:
            lines = [line for line in standing(self.run.journal, "evaluation") if line["step"] == chosen]
            before = scores_of(lines[-1]) if lines else None
            self.journal.write("evaluation", to_json(merged(before, tested)))
            require_finite(tested)
        if what := fallen_back(progress, self.built.evaluating.rule, asked=self.run.recipe.chooses):
            self.journal.write("warning", {"what": what, "step": chosen})

    def _close(self, progress: Progress, chosen: int, difference: float, answers: Sequence[str]) -> None:
        plain = self.outcome.record(self.plan, progress, chosen, difference, answers)
        record = judged(self.run, plain, progress, self.built.evaluating.rule)
        self.outcome.describe(self.run.model, chosen, record.verdict)  # with all that was measured since it was written
        self.journal.write("end", {"step": progress.update, "result_step": chosen, "seconds": progress.seconds})
        write_record(self.run.record, record)
