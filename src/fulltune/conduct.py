"""Conducts a training run: load, ask, rehearse the save, begin or go on, loop, write the result, keep the record."""

import platform
import resource
import tempfile
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy
import tokenizers
import torch
import transformers

from fulltune.assemble import (
    Prepared,
    Site,
    Training,
    engine_for,
    measuring,
    objective_for,
    require_layout,
    target,
    template,
    training,
)
from fulltune.base.errors import CheckpointError, DivergedError, MachineError, RecipeError
from fulltune.base.files import sweep, to_json, whole_folder, write_record, writing
from fulltune.base.log import LOGGER
from fulltune.base.records import EvalReport, ModelFacts, Plan, Progress, RunRecord, Sample
from fulltune.base.version import __version__
from fulltune.engine.launch import machine, world
from fulltune.evaluation.generate import greedy
from fulltune.exporting.targets import write
from fulltune.exporting.verify import probe_ids, verify
from fulltune.model.load import load_model, load_tokenizer, require_rows
from fulltune.model.trust import exported
from fulltune.recipe.schema import ExportSection, ModelSection, Recipe
from fulltune.runs import RunFolder
from fulltune.training.acts import require_finite
from fulltune.training.journal import Journal, Sink, read
from fulltune.training.loop import train


@contextmanager
def _fitting(plan: Plan) -> Iterator[None]:
    """Says what would help where memory runs out."""
    try:
        yield
    except RuntimeError as fault:  # torch.OutOfMemoryError is one; on a CPU there is only the text
        if not isinstance(fault, torch.OutOfMemoryError) and "can't allocate memory" not in str(fault):
            raise
        size = f"{plan.micro_examples} examples and {plan.micro_tokens:,} tokens"
        raise MachineError(
            f"out of memory with micro-batches of up to {size}: {str(fault).splitlines()[0]}",
            where="train.micro_tokens",
            mend="lower train.micro_tokens (the losses stay the same), or memory.checkpointing=full",
        ) from fault


def conduct(run: RunFolder, plan: Plan, data: Prepared, model: ModelFacts, sinks: Sequence[Sink]) -> RunRecord:
    """The training stage, from prepared data and a plan to a verified model folder and the record."""
    for folder in (run.path, run.path / "checkpoints"):
        sweep(folder)
    with _fitting(plan), Journal(run.journal, sinks) as journal:
        work = _Work.begin(run, plan, data, model, run.path, journal)
        begun = work.go_on() or work.start()
        states = deque(train(work.built.loop(begun)), maxlen=1)  # runs the loop; only where it ends matters here
        return work.finish(states[0] if states else begun)


def rehearse(run: RunFolder, plan: Plan, data: Prepared, model: ModelFacts) -> dict[str, float]:
    """The training stage up to one update, one checkpoint and one export, all in a folder that is then removed."""
    with _fitting(plan), tempfile.TemporaryDirectory(dir=run.path, prefix=".dry-run.part-") as scratch:
        with Journal(Path(scratch) / "journal.jsonl") as journal:
            work = _Work.begin(run, plan, data, model, Path(scratch), journal)
            loop = work.built.loop(work.start())
            progress = loop.save(loop.update(loop.progress))
        losses = [line["loss"] for line in read(journal.path, "step")]
        size = sum(path.stat().st_size for path in Path(scratch).rglob("*") if path.is_file())
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
        "peak_bytes": float(_peak_bytes()),
    }


def score(recipe: Recipe, plan: Plan, data: Prepared, section: ModelSection) -> EvalReport:
    """Losses of any model on held-out, test and retention data."""
    with _fitting(plan):
        model = load_model(section).to(world().device)
        require_rows(model, load_tokenizer(section), section.path)
        objective = objective_for(recipe.train, model)
        engine = engine_for(recipe, plan, model, objective, world())
        splits = [split for split in data.stores if split != "train"]
        report = measuring(data, splits, plan, engine, objective)(0)
    if report is None:
        raise RecipeError("nothing to measure on", where="data", mend="give data.heldout, data.test or data.retention")
    require_finite(report)
    return report


def write_checkpoint(
    run: RunFolder, data: Prepared, model: ModelFacts, folder: Path, step: int | None, section: ExportSection
) -> None:
    """Export one checkpoint of a run: that of `step`, else the best, else the last."""
    with tempfile.TemporaryDirectory() as scratch, Journal(Path(scratch) / "journal.jsonl") as journal:
        work = _Work.begin(run, run.plan(), data, model, run.path, journal)
        newest = work.built.checkpoints.newest()
        if newest is None:
            raise CheckpointError("there is no checkpoint", where=str(run.path), mend=f"fulltune train {run.path}")
        progress, _, _ = work.built.checkpoints.load(newest, work.built.engine, weights_only=True)
        best = newest if progress.best_update is None else progress.best_update
        work.built.checkpoints.load(best if step is None else step, work.built.engine, weights_only=True)
        with whole_folder(folder) as draft:
            work.write_model(draft, section)


@dataclass(frozen=True, slots=True)
class _Work:
    """One training run in this process: what is known, and what was built from it."""

    run: RunFolder
    plan: Plan
    data: Prepared
    model: ModelFacts
    tokenizer: Any
    journal: Journal
    built: Training

    @classmethod
    def begin(
        cls, run: RunFolder, plan: Plan, data: Prepared, model: ModelFacts, folder: Path, journal: Journal
    ) -> "_Work":
        """Load model and tokenizer, ask what could forbid the run, and build all that it needs."""
        section = run.recipe.model
        tokenizer = load_tokenizer(section)
        loaded = load_model(section).to(world().device)
        require_rows(loaded, tokenizer, section.path)
        require_layout(plan, loaded)
        identity = {"recipe": run.identity, "data": data.facts.fingerprint}
        site = Site(folder=folder, journal=journal, world=world(), identity=identity)
        return cls(run, plan, data, model, tokenizer, journal, training(run.recipe, plan, loaded, data, site))

    def go_on(self) -> Progress | None:
        """Where the newest checkpoint stands, the journal cut back to it; None if there is none."""
        newest = self.built.checkpoints.newest()
        if newest is None:
            self.journal.cut(0)
            return None
        progress, size, _ = self.built.checkpoints.load(newest, self.built.engine)
        self.journal.cut(size)
        self.journal.write("checkpoint", {"step": newest, "score": progress.best_score})
        self.journal.write("start", {"resumed_at": newest, "updates": self.plan.updates, **_versions()})
        LOGGER.info(f"going on after update {newest}")
        return progress

    def start(self) -> Progress:
        """Save once before training, so that nothing can fail at the end; then measure what is to be improved."""
        facts = {
            "recipe": self.run.identity,
            "data": self.data.facts.fingerprint,
            "updates": self.plan.updates,
        }
        self.journal.write("start", {**facts, **_versions()})
        with tempfile.TemporaryDirectory(dir=self.run.path, prefix=".rehearsal.part-") as scratch:
            self.write_model(Path(scratch), self.run.recipe.export)
        report = self.built.evaluating.measure(0)
        if report is not None:
            self.journal.write("evaluation", {**to_json(report), "answers": self._answers()})
            require_finite(report)
        return Progress()

    def finish(self, progress: Progress) -> RunRecord:
        """The best checkpoint if anything chose one, else the last, as a model folder; then the record."""
        if progress.update == 0:
            raise DivergedError(
                f"nothing was learned: all {progress.skipped} updates were skipped",
                where=str(self.run.journal),
                mend="its warnings name the rows; lower optim.lr, or train.precision=float32",
            )
        chosen = progress.update if progress.best_update is None else progress.best_update
        self.built.checkpoints.load(chosen, self.built.engine, weights_only=True)
        with whole_folder(self.run.model) as draft:
            difference = self.write_model(draft, self.run.recipe.export)
        lines = list(read(self.journal.path, "evaluation"))
        before: list[str] = next((line["answers"] for line in lines if "answers" in line), [])
        evaluations = [EvalReport(**_scores(line)) for line in lines]
        record = RunRecord(
            recipe=self.run.identity,
            versions=_versions(),
            data=self.data.facts,
            model=self.model,
            machine=machine(),
            plan=self.plan,
            progress=progress,
            baseline=next((report for report in evaluations if report.step == 0), None),
            evaluations=tuple(report for report in evaluations if report.step > 0),
            result_step=chosen,
            result=str(self.run.model),
            largest_logit_difference=difference,
            samples=tuple(self._samples(before, self._answers())),
            peak_bytes=_peak_bytes(),
        )
        self.journal.write("end", {"step": progress.update, "result_step": chosen, "seconds": progress.seconds})
        write_record(self.run.record, record)
        return record

    def write_model(self, folder: Path, section: ExportSection) -> float:
        """Write the weights as they are now, and verify the folder; returns the largest difference of logits."""
        recipe = self.run.recipe
        shipped = template(recipe.model, self.tokenizer)
        goal = target(recipe.model, section, self.data.facts, shipped, self.model.dtype)
        with writing(folder):
            write(self.built.model, goal, folder)
        asked = self.data.stores["heldout" if "heldout" in self.data.stores else "train"][0]
        code = exported(recipe.model)
        return verify(folder, self.built.model, goal, probe_ids(asked.ids), self.tokenizer, code=code)

    def _answers(self) -> list[str]:
        """Greedy answers to the first held-out prompts."""
        if "heldout" not in self.data.stores:
            return []
        store, wanted = self.data.stores["heldout"], self.run.recipe.evaluate
        prompts = [store.prompt_and_answer(i)[0] for i in range(min(wanted.samples, len(store)))]
        stops = self.data.facts.stop_ids
        made = greedy(self.built.model, prompts, stop_ids=stops, tokens=wanted.sample_tokens)
        return [str(self.tokenizer.decode(answer)) for answer in made]

    def _samples(self, before: Sequence[str], after: Sequence[str]) -> Iterator[Sample]:
        for index, (old, new) in enumerate(zip(before, after, strict=True)):
            prompt, expected = self.data.stores["heldout"].prompt_and_answer(index)
            wanted = [token for token in expected if token not in self.data.facts.stop_ids]
            asked, answer = str(self.tokenizer.decode(prompt)), str(self.tokenizer.decode(wanted))
            yield Sample(prompt=asked, expected=answer, before=old, after=new)


def _scores(line: Mapping[str, Any]) -> dict[str, Any]:
    """A journal line's evaluation; numbers that are not finite were written by name."""
    scores = {name: float(score) for name, score in line["scores"].items()}
    return {"step": line["step"], "scores": scores, "counts": line["counts"]}


def _versions() -> dict[str, str]:
    return {
        "fulltune": __version__,
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "transformers": str(transformers.__version__),
        "tokenizers": str(tokenizers.__version__),
        "numpy": numpy.__version__,
    }


def _peak_bytes() -> int:
    if torch.cuda.is_available():
        return int(torch.cuda.max_memory_allocated())
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # Linux counts in KiB
