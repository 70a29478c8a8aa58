"""Mixtures of models: weights read from the files of several, tensor by tensor, scored, and one of them written."""

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from torch import Tensor

from fulltune import account
from fulltune.assemble import measuring, objective_for
from fulltune.base.blend import Blend, BlendPoint
from fulltune.base.errors import RecipeError
from fulltune.base.files import whole_folder, write_record
from fulltune.base.lock import locked
from fulltune.base.log import LOGGER
from fulltune.base.records import EvalReport, ModelFacts, Plan
from fulltune.base.stop import listening
from fulltune.describing import Mixture
from fulltune.engine.contract import Engine, Read
from fulltune.engine.launch import alone
from fulltune.engine.native import unique_state
from fulltune.engines import By, engine_for
from fulltune.losses import fitting
from fulltune.material import Prepared
from fulltune.model.folder import load_tokenizer, section_of
from fulltune.model.load import empty_model, load_model, outline_model, unfit
from fulltune.model.probe import ask
from fulltune.model.stored import Stored, locate
from fulltune.outcome import Outcome
from fulltune.preparing import opened
from fulltune.ready import facts_of, require_tokenizer
from fulltune.recipe.schema import ModelSection
from fulltune.references import comparing
from fulltune.runs import RunFolder, open_run, result_of

Parts = tuple[float, ...]
"""Of each model; they add up to 1."""

Measure = Callable[[int], EvalReport | None]

_MOST = 1000
"""Mixtures of one call."""


def blend(
    run: str | os.PathLike[str],
    *,
    others: Sequence[str | os.PathLike[str]] = ("base",),
    at: str = "0:1:0.1",
    write: float | None = None,
    to: str | os.PathLike[str] | None = None,
) -> Blend:
    """Mix the weights of a run's result with those of its base, or average several runs; nothing is trained.

    `others`: `base`, run folders, model folders. One of them: mixtures that have the parts `at` of the run's weights,
    `first:last:step` or `0.2,0.5`. Several: the average of all. The losses of each go into `blend.json`; that of the
    part `write`, or the average, is written to the folder `to`, and verified. The run's report shows them all.

    >>> fulltune.blend("runs/recipe", at="0:1:0.25").points[2].scores["retention.loss"]
    """
    trained = open_run(run, {}, whole=False)
    trained.finished()
    folder = None if to is None else Path(to)
    if folder is not None and folder.exists():
        raise RecipeError("the folder exists", where=str(folder), mend="name another; nothing is overwritten")
    chosen = mixtures(at, len(others), write, writes=folder is not None)
    with listening(trained.recipe.checkpoint.signals), locked(trained.path):
        base = trained.recipe.model
        names = {str(one): base if one == "base" else section_of(result_of(one), base) for one in others}
        names[str(trained.model)] = section_of(trained.model, base)
        if len(names) <= len(others):
            raise RecipeError(
                "a model is mixed with itself",
                where="--with",
                mend="name each model once, and not the run's own model",
            )
        require_tokenizer(base, names)
        data = opened(trained, trained.data_facts(), {})
        made = blended(trained, data, facts_of(base), names, chosen, folder)
        write_record(trained.blend, made)
        account.write(trained)
    return made


@dataclass(frozen=True, slots=True)
class Mixtures:
    """Which are scored, and which is written."""

    scored: tuple[Parts, ...]
    written: Parts | None


def mixtures(at: str, others: int, write: float | None, *, writes: bool) -> Mixtures:
    """Of the run's weights and those of `others` models; `writes`: whether there is a folder to write to."""
    if others > 1:
        if write is not None:
            raise RecipeError(
                "several models are averaged, which gives one mixture",
                where="--write",
                mend="leave --write out: --to writes the average",
            )
        average = (1 / (others + 1),) * (others + 1)
        return Mixtures((average,), average if writes else None)
    if (write is None) == writes:
        raise RecipeError(
            "which mixture is to be written, and where?",
            where="--write",
            mend="give both, such as --write 0.6 --to DIR",
        )
    scored = tuple((round(1 - part, 10), part) for part in _parts(at))
    return Mixtures(scored, None if write is None else (round(1 - _part(write), 10), _part(write)))


def _parts(at: str) -> list[float]:
    """`0:1:0.1` or `0.2,0.5`."""
    try:
        if ":" not in at:
            return [_part(float(text)) for text in at.split(",")]
        first, last, step = (float(text) for text in at.split(":"))
        count = int((last - first) / step + 1e-9) + 1
        if not 1 <= count <= _MOST:
            raise ValueError(at)
    except (ValueError, ZeroDivisionError, OverflowError) as fault:
        raise RecipeError(f"{at!r} are no parts", where="--at", mend="first:last:step, or 0.2,0.5,0.8") from fault
    return [_part(round(first + step * number, 10)) for number in range(count)]


def _part(value: float) -> float:
    if not 0 <= value <= 1:
        raise RecipeError(f"{value:g} is no part of the weights", where="--at", mend="numbers from 0 to 1")
    return value


def blended(
    run: RunFolder,
    data: Prepared,
    facts: ModelFacts,
    models: Mapping[str, ModelSection],
    wanted: Mixtures,
    folder: Path | None,
) -> Blend:
    """Score mixtures of these models, and write one into `folder`; the run's own result is the last of them.

    In memory is one model, and of the others a tensor at a time. A model of which the part is 1 is itself, to the bit.
    Interpolation: Wortsman et al. 2022, arXiv 2109.01903 (WiSE-FT); averages: arXiv 2203.05482 (model soups).
    """
    splits = [split for split in ("heldout", "retention") if split in data.stores]
    if not splits:
        raise RecipeError("nothing to measure on", where="data", mend="give data.heldout or data.retention")
    plan = _unrounded(run.plan())
    with fitting(plan):
        section = list(models.values())[-1]
        model = load_model(section).to(alone().world.device)
        reads = [_reader(name, one, section) for name, one in models.items()]
        objective = objective_for(run.recipe.train, model, ask(model, packed=False))
        engine = engine_for(run.recipe, plan, model, objective, alone(), By("single"))
        # The base may be none of these models, so that what it predicts cannot be made here.
        base = comparing(run.recipe, plan, data.facts, data.stores, run.path).measured
        compared = base if base is not None and base.references.stand(alone().crew) else None
        measure = measuring(data, splits, plan, engine, objective, compared)
        points = tuple(
            BlendPoint(parts=parts, scores=_measured(engine, reads, parts, measure).scores) for parts in wanted.scored
        )
        if folder is not None and wanted.written is not None:
            report = _measured(engine, reads, wanted.written, measure)
            mixture = Mixture(_said(models, wanted.written, run), report)
            outcome = Outcome(run, data, facts, model, load_tokenizer(section), engine, alone().crew, mixture)
            outcome.write_model(partial(whole_folder, folder), run.recipe.export, step=0)
    return Blend(models=tuple(models), points=points, written=None if folder is None else str(folder))


def _unrounded(plan: Plan) -> Plan:
    """Weights are held in float32 here, also those of a run that rounds them: a mixture is rounded once."""
    return replace(plan, dtypes=replace(plan.dtypes, weights="float32", gradients="float32"))


def _measured(engine: Engine, reads: Sequence[Read], parts: Parts, measure: Measure) -> EvalReport:
    engine.fill(partial(mixed, reads, parts))
    report = measure(0)
    assert report is not None  # there is something to measure on
    return report


def _said(models: Iterable[str], parts: Parts, run: RunFolder) -> str:
    """How much of which model, by names without the folders above them: it is published."""
    *others, _ = models
    names = [*("the base" if name == "base" else Path(name).name for name in others), run.path.resolve().name]
    return ", ".join(f"{part:.4g} of {name}" for part, name in zip(parts, names, strict=True))


def mixed(reads: Sequence[Read], parts: Parts, name: str, rows: slice | None) -> Tensor:
    """Rows of a weight of the mixture, in float32. What is no floating number is that of the last model."""
    found: Tensor | None = None
    for read, part in zip(reads, parts, strict=True):
        if part == 0:
            continue
        own = read(name, rows)
        if not own.is_floating_point():
            return reads[-1](name, rows)
        if part == 1:
            return own.float()
        found = own.float() * part if found is None else found.add_(own.float(), alpha=part)
    assert found is not None
    return found


def _reader(name: str, section: ModelSection, like: ModelSection) -> Read:
    """Reads weights where they lie in files; those that cannot be had one by one, from the whole model.

    DataError if they have other names or shapes than those of the model `like`.
    """
    why = "it brings code of its own"
    if not like.trust_remote_code:
        found = locate(section, outline_model(like))
        apart = found if isinstance(found, str) else found.apart()
        if isinstance(found, Stored) and apart is None:
            return found.read
        why = str(apart) if isinstance(found, str) else f"its config ties {apart}, and its files have two values for it"
    LOGGER.info(f"{name} is loaded whole: {why}")
    state, wanted = unique_state(load_model(section)), unique_state(empty_model(like))
    others = {key for key in state.keys() | wanted.keys() if key not in state or key not in wanted}
    others |= {key for key in state.keys() & wanted.keys() if state[key].shape != wanted[key].shape}
    if others:
        raise unfit([f"{key}: the run's model has it otherwise" for key in sorted(others)[:8]], section.path)

    def read(weight: str, rows: slice | None) -> Tensor:
        return state[weight] if rows is None else state[weight][rows]

    return read
