"""Trials: one cure on one lesson with one seed, as an ordinary run of fulltune; what is done is not done again."""

import shutil
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.cures import Cure
from benchmarks.lessons import LENGTH, Material
from fulltune.base.blend import Blend
from fulltune.base.files import fingerprint, read_record, write_record
from fulltune.base.records import RunRecord

Recipe = dict[str, dict[str, Any]]
NEVER = 1_000_000
"""Updates between two evaluations: there are those at the begin and at the end."""

_FISHER = 128
"""Examples that Fisher information is estimated from."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Losses:
    """Of a model, in nats for each token."""

    target: float
    """On held-out rows of what was taught."""
    stories: float
    """On stories that nothing learned from."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """One trial."""

    lesson: str
    seed: int
    cure: str
    before: Losses
    after: Losses
    updates: int
    """0 of a blend."""
    cpu: float
    """Seconds of processor time: preparing, training, both evaluations, writing and verifying the result.

    Of a run that was interrupted, since it went on.
    """
    seconds: float
    """On the clock; others were at work on the machine."""


@dataclass(frozen=True, slots=True)
class Setting:
    """The plain recipe's numbers, and where things lie."""

    model: Path
    work: Path
    lr: float
    epochs: float
    batch: int


@dataclass(frozen=True, slots=True)
class Trial:
    """Something to be run, described by values so that another process can run it."""

    lesson: str
    seed: int
    cures: tuple[str, ...]
    """One, or of the plain run the blends that are made of it."""
    recipe: Recipe
    folder: Path
    parts: tuple[float, ...] = ()
    """Of the blends: how much of the run's result."""


def trial(setting: Setting, lesson: str, seed: int, material: Material, cure: Cure) -> Trial:
    """A run. Its folder is named by all that it depends on, so that what has changed is run anew."""
    recipe: Recipe = {
        "model": {"path": str(setting.model)},
        "data": {
            "train": str(material.train),
            "heldout": [str(material.heldout)],
            "retention": str(material.kept),
            "max_length": LENGTH,
            "over_length": "split",
            "processes": 1,
        },
        "train": {
            "epochs": setting.epochs * cure.factors.get("epochs", 1.0),
            "batch_examples": setting.batch,
            "precision": "float32",
            "seed": seed,
        },
        "optim": {"lr": setting.lr * cure.factors.get("lr", 1.0)},
        "evaluate": {"every": NEVER, "samples": 0},
        "checkpoint": {"every": NEVER},
    }
    for name, values in cure.sections.items():
        recipe[name] |= values
    if cure.replay:
        recipe["data"]["replay"] = {"sources": str(material.replayed), "share": cure.replay}
    if cure.needs_fisher:
        estimated = fisher(setting, lesson, seed, material).folder / "fisher.safetensors"
        recipe["optim"]["pulls"] = {**recipe["optim"]["pulls"], "file": str(estimated)}
    return Trial(lesson, seed, (cure.name,), recipe, _folder(setting, f"{lesson}-{seed}-{cure.name}", recipe))


def fisher(setting: Setting, lesson: str, seed: int, material: Material) -> Trial:
    """A run of one update that estimates Fisher information, on the stories of replay and on no others."""
    made = trial(setting, lesson, seed, material, Cure("fisher"))
    recipe = {name: dict(section) for name, section in made.recipe.items()}
    del recipe["train"]["epochs"]
    recipe["train"]["steps"] = 1
    recipe["data"]["retention"] = str(material.replayed)
    recipe["optim"]["pulls"] = {"use": "ewc", "options": {"strength": 1.0, "examples": _FISHER}}
    return Trial(lesson, seed, ("fisher",), recipe, _folder(setting, f"{lesson}-{seed}-fisher", recipe))


def blends(plain: Trial, cures: Iterable[Cure]) -> Trial:
    """Mixtures of a plain run's result and its base."""
    found = [(cure.name, cure.blended) for cure in cures if cure.blended is not None]
    names, parts = tuple(name for name, _ in found), tuple(part for _, part in found)
    return Trial(plain.lesson, plain.seed, names, plain.recipe, plain.folder, parts)


def _folder(setting: Setting, name: str, recipe: Recipe) -> Path:
    plain = "".join(letter if letter.isalnum() or letter in ".-" else "_" for letter in name)
    return setting.work / "runs" / f"{plain}-{fingerprint(recipe)[:10]}"


def done(one: Trial) -> list[Measured]:
    """What stands there already of it; empty if it is to be run."""
    places = [_place(one, cure) for cure in one.cures]
    return [read_record(place, Measured) for place in places] if all(place.exists() for place in places) else []


def remove(one: Trial) -> None:
    """What stands there of it, so that it is run again. Of blends the run stays, which is a trial of its own."""
    if one.folder.exists() and not one.parts:
        shutil.rmtree(one.folder)
    for cure in one.cures:
        _place(one, cure).unlink(missing_ok=True)


def _place(one: Trial, cure: str) -> Path:
    return one.folder.parent / "measured" / f"{one.folder.name} {cure}.json"


def run(one: Trial) -> list[Measured]:
    """Train, or blend; a run that was interrupted goes on. In a process of one thread. FulltuneError if it fails."""
    from fulltune import stages  # in the process that runs it, before its clock runs

    clock, cpu = time.perf_counter(), time.process_time()
    found = _blended(one, stages.blend) if one.parts else _trained(one, stages.train)
    spent, passed = time.process_time() - cpu, time.perf_counter() - clock
    made = [
        Measured(
            lesson=one.lesson,
            seed=one.seed,
            cure=cure,
            before=before,
            after=after,
            updates=updates,
            cpu=round(spent / len(one.cures), 2),
            seconds=round(passed / len(one.cures), 2),
        )
        for cure, (before, after, updates) in zip(one.cures, found, strict=True)
    ]
    for each in made:
        write_record(_place(one, each.cure), each)
    return made


def _trained(one: Trial, train: Callable[..., RunRecord]) -> list[tuple[Losses, Losses, int]]:
    record = train(one.recipe, out=one.folder)
    assert record.baseline is not None
    (last,) = [report for report in record.evaluations if report.step == record.result_step]
    return [(_losses(record.baseline.scores), _losses(last.scores), record.progress.update)]


def _blended(one: Trial, blend: Callable[..., Blend]) -> list[tuple[Losses, Losses, int]]:
    # The base is scored among them, so that all is of one evaluation.
    at = ",".join(f"{part:g}" for part in (0.0, *one.parts))
    base, *mixed = blend(one.folder, at=at).points
    return [(_losses(base.scores), _losses(point.scores), 0) for point in mixed]


def _losses(scores: Mapping[str, float]) -> Losses:
    return Losses(target=scores["heldout.loss"], stories=scores["retention.loss"])
