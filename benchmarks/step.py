"""Time of an update in one process: fulltune's own beside a plain loop over the transformers model, step by step.

Both learn the same examples, from the same weights. They take turns, one update each, so that a slow minute of the
machine meets both. What a process pays once (start-up, data, saving) is not here: benchmarks.train has it.
"""

import argparse
import os
import resource
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from benchmarks import models, options, report, tokenised
from benchmarks.contestants.dump import IGNORE
from benchmarks.machine import occasion
from benchmarks.summary import ratios, spread
from fulltune.assemble import Site, Training, training
from fulltune.base.records import Plan, Progress
from fulltune.engine.launch import alone
from fulltune.engines import By, reusing
from fulltune.material import Prepared
from fulltune.preparing import prepared
from fulltune.ready import facts_of, planned
from fulltune.recipe.schema import Recipe
from fulltune.runs import open_run
from fulltune.starting import start
from fulltune.training.checkpoint import Belonging
from fulltune.training.journal import Journal

LOOPS = ("fulltune", "plain", "plain-grouped")
_RATE, _CLIP = 2e-4, 1.0
_SAID = {"true": True, "false": False, "null": None}
_SHOWN = 30
"""Lines of a profile."""


class Loop(Protocol):
    """Makes updates from a cycle of them."""

    def update(self, number: int) -> float:
        """Learn update `number` of the cycle; its loss."""


class Ours:
    """The parts of a run, assembled as a run assembles them."""

    def __init__(self, folder: Path, recipe: Mapping[str, Any]) -> None:
        asked, data, plan = self.plan(folder, recipe)
        meeting = alone()
        begun = start(asked.model, meeting, "single", replicas=1, packed=plan.layout == "packed")
        journal = Journal(folder / "journal.jsonl")
        site = Site(folder, journal, meeting, Belonging({}, {}, 1), By("single"), lambda *_: (), {})
        self.built: Training = training(asked, plan, begun.model, begun.answers, data, site)
        self._batch = asked.train.batch_examples

    @staticmethod
    def plan(folder: Path, recipe: Mapping[str, Any]) -> tuple[Recipe, Prepared, Plan]:
        """What is known before a model is loaded."""
        run = open_run(dict(recipe), {}, out=folder)
        data = prepared(run)
        return run.recipe, data, planned(run, data, facts_of(run.recipe.model), trains=True).plan

    def update(self, number: int) -> float:
        after = self.built.updating(replace(Progress(), position=number * self._batch))
        return after.losses[-1]


class Plain:
    """A loop as a script has it: padded batches with a mask, all logits, the model's own loss, fused AdamW."""

    def __init__(self, model: Path, updates: Sequence[Sequence[Mapping[str, list[int]]]], precision: str) -> None:
        self._model = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).train()
        self._optimizer = torch.optim.AdamW(self._model.parameters(), lr=_RATE, weight_decay=0.0, fused=True)
        self._updates, self._mixed = updates, precision == "bf16-mixed"

    def update(self, number: int) -> float:
        batch = collate(self._updates[number])
        mixed: AbstractContextManager[Any] = torch.autocast("cpu", torch.bfloat16) if self._mixed else nullcontext()
        with mixed:
            loss = self._model(**batch, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self._model.parameters(), _CLIP)
        self._optimizer.step()
        self._optimizer.zero_grad()
        return float(loss.detach())


def collate(examples: Sequence[Mapping[str, list[int]]]) -> dict[str, Tensor]:
    """As collators do: padded to the longest, with a mask."""
    width = max(len(example["input_ids"]) for example in examples)

    def padded(lists: Iterator[list[int]], value: int) -> Tensor:
        return torch.tensor([given + [value] * (width - len(given)) for given in lists])

    return {
        "input_ids": padded((example["input_ids"] for example in examples), 0),
        "attention_mask": padded(([1] * len(example["input_ids"]) for example in examples), 0),
        "labels": padded((example["labels"] for example in examples), IGNORE),
    }


@dataclass(frozen=True, slots=True, kw_only=True)
class Took:
    """What the updates of one cycle took together."""

    wall: float
    cpu: float
    """Of all threads, in user and system mode."""
    system: float
    faults: int
    """Pages that the kernel had to provide."""


@dataclass(slots=True)
class Measured:
    """One contestant with one model."""

    name: str
    first: list[float]
    """Losses of the first cycle, in which both have seen the same."""
    took: list[Took]


def main(words: Sequence[str] | None = None) -> int:
    """Measure and show; with --write the result is kept too."""
    words = sys.argv[1:] if words is None else words
    asked = _asked(words)
    when = occasion("benchmarks.step", words)
    torch.set_num_threads(asked.threads)
    parts = ["# Time of an update, in one process", report.facts(dict(report.heading(when)))]
    record: dict[str, Any] = {"benchmark": "step", "occasion": when, "asked": vars(asked), "models": {}}
    for shape in asked.models:
        with reusing(alone().world, By("single"), 0), tempfile.TemporaryDirectory(prefix="fulltune-bench-") as folder:
            loops, lesson = prepare(asked, shape, Path(folder))
            if asked.profile:
                profiles(loops, asked.updates)
                continue
            found = ladder(loops, asked.updates, asked.rounds, asked.warm)
        parts += [f"## {shape}, {asked.precision}, {asked.threads} threads", _table(found, lesson, asked)]
        record["models"][shape] = {"lesson": lesson, "measured": found}
        print(parts[-2], parts[-1], sep="\n\n", flush=True)
    if asked.write and not asked.profile:
        places = report.write(asked.results, "step", "\n\n".join(parts), record)
        print(f"written: {', '.join(place.name for place in places)} in {asked.results.name}/", file=sys.stderr)
    return 0


def _asked(words: Sequence[str]) -> argparse.Namespace:
    about = __doc__.partition("\n")[0] if __doc__ else None
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=list(models.SHAPES), default=["S", "M", "L"])
    parser.add_argument("--precision", choices=["bf16-mixed", "float32"], default="bf16-mixed")
    parser.add_argument("--threads", type=options.positive, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--rounds", type=options.positive, default=5, help="cycles that are counted")
    parser.add_argument("--warm", type=int, default=1, help="cycles before them, that are not")
    parser.add_argument("--updates", type=options.positive, default=4, help="updates of one cycle")
    parser.add_argument("--batch", type=options.positive, default=8, help="examples of one update")
    parser.add_argument("--data", choices=list(tokenised.SOURCES), default="gsm8k")
    parser.add_argument("--loops", nargs="+", choices=LOOPS, default=list(LOOPS), help="who takes part")
    parser.add_argument("--set", nargs="*", default=[], metavar="SECTION.FIELD=VALUE", help="of fulltune's recipe")
    parser.add_argument(
        "--beside", nargs="*", default=[], metavar="SECTION.FIELD=VALUE", help="for each fulltune once more, with it"
    )
    parser.add_argument("--profile", action="store_true", help="show what each spends its time on, and no more")
    parser.add_argument("--write", action="store_true", help="keep the result in --results")
    parser.add_argument("--results", type=Path, default=report.RESULTS)
    return parser.parse_args(words)


def recipe(model: Path, rows: Path, precision: str, batch: int, given: Sequence[str] = ()) -> dict[str, Any]:
    """Of fulltune: what a user would write to train as the others do, and what was given besides."""
    made: dict[str, Any] = {
        "model": {"path": str(model)},
        "data": {"train": str(rows), "heldout": 0, "duplicates": "keep"},
        "train": {"batch_examples": batch, "precision": precision},
        "optim": {"lr": _RATE, "schedule": "constant", "warmup": 0, "weight_decay": 0.0, "clip": _CLIP},
    }
    for word in given:
        path, _, value = word.partition("=")
        section, _, field = path.partition(".")
        made.setdefault(section, {})[field] = _SAID.get(value, int(value) if value.isdecimal() else value)
    return made


def prepare(asked: argparse.Namespace, shape: str, folder: Path) -> tuple[dict[str, Loop], tokenised.Lesson]:
    """The contestants, before their first update."""
    model, all_rows, count = folder / "model", folder / "examples.jsonl", asked.updates * asked.batch
    models.save(model, shape)
    lesson = tokenised.write(tokenised.SOURCES[asked.data][0], model, all_rows, count=count, max_length=512)
    if lesson.examples < count:
        raise SystemExit(f"{asked.data} gives {lesson.examples} examples, and {count} are asked for")
    seen = tokenised.read(all_rows, tokenised.order(count, count, seed=0))
    made: dict[str, Loop] = {}
    for number, setting in enumerate([None, *asked.beside] if "fulltune" in asked.loops else []):
        given = [*asked.set, *([] if setting is None else [setting])]
        ours = Ours(folder / f"run-{number}", recipe(model, all_rows, asked.precision, asked.batch, given))
        made["fulltune" if setting is None else setting] = ours
    for name in asked.loops:
        if name == "fulltune":
            continue
        if name == "plain-grouped":
            seen = sorted(seen, key=lambda example: -len(example["input_ids"]))
        made[name] = Plain(model, [seen[at : at + asked.batch] for at in range(0, count, asked.batch)], asked.precision)
    return made, lesson


def ladder(loops: Mapping[str, Loop], updates: int, rounds: int, warm: int) -> list[Measured]:
    """One update each in turn, cycle by cycle."""
    found = {name: Measured(name, [], []) for name in loops}
    for cycle in range(warm + rounds):
        took: dict[str, list[Took]] = {name: [] for name in loops}
        for number in range(updates):
            for name, loop in loops.items():
                loss, one = timed(loop, number)
                took[name].append(one)
                if cycle == 0:
                    found[name].first.append(loss)
        for name, parts in took.items() if cycle >= warm else ():
            found[name].took.append(total(parts))
    return list(found.values())


def timed(loop: Loop, number: int) -> tuple[float, Took]:
    """One update, and what it took."""
    before, begun = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter()
    loss = loop.update(number)
    wall, after = time.perf_counter() - begun, resource.getrusage(resource.RUSAGE_SELF)
    user, system = after.ru_utime - before.ru_utime, after.ru_stime - before.ru_stime
    return loss, Took(wall=wall, cpu=user + system, system=system, faults=after.ru_minflt - before.ru_minflt)


def total(parts: Sequence[Took]) -> Took:
    """Of several updates."""
    return Took(
        wall=sum(part.wall for part in parts),
        cpu=sum(part.cpu for part in parts),
        system=sum(part.system for part in parts),
        faults=sum(part.faults for part in parts),
    )


def _table(found: Sequence[Measured], lesson: tokenised.Lesson, asked: argparse.Namespace) -> str:
    """Medians over cycles; ratios are those within cycles."""
    lines = []
    ours = found[0]
    for one in found:
        cpu, wall = spread([took.cpu for took in one.took]), spread([took.wall for took in one.took])
        slower = ratios([took.cpu for took in one.took], [took.cpu for took in ours.took])
        lines.append(
            [
                one.name,
                f"{lesson.tokens / wall.median:,.0f}",
                f"{lesson.tokens / cpu.median:,.0f}",
                f"{wall.median / asked.updates * 1000:,.0f}",
                f"{cpu.median / asked.updates * 1000:,.0f}",
                "1" if one is ours else f"{slower.median:.2f} ({slower.low:.2f} to {slower.high:.2f})",
                f"{spread([took.system / took.cpu for took in one.took]).median:.0%}",
                f"{spread([took.faults / asked.updates for took in one.took]).median:,.0f}",
                f"{spread([took.cpu / took.wall / asked.threads for took in one.took]).median:.2f}",
                f"{one.first[0]:.4f}",
            ]
        )
    head = ["loop", "tokens/s", "tokens/CPU-s", "ms", "CPU ms", f"CPU, times {ours.name}"]
    return report.table([*head, "system", "faults", "CPU share", "first loss"], lines)


def profiles(loops: Mapping[str, Loop], updates: int) -> None:
    """What each spends its CPU time on, in the second cycle."""
    for name, loop in loops.items():
        for number in range(updates):
            loop.update(number)
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as seen:
            for number in range(updates):
                loop.update(number)
        print(f"{name}:", seen.key_averages().table("self_cpu_time_total", row_limit=_SHOWN), sep="\n", flush=True)


if __name__ == "__main__":
    sys.exit(main())
