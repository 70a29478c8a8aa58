"""Losses of any model on a run's data; and what is said where memory runs out."""

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path

from fulltune.assemble import measuring, objective_for
from fulltune.base.errors import RecipeError
from fulltune.base.formats import BYTES
from fulltune.base.records import EvalReport, ModelFacts, Plan
from fulltune.engine.contract import World
from fulltune.engine.launch import alone
from fulltune.engine.room import explained
from fulltune.engines import By, engine_for, reusing
from fulltune.material import Prepared
from fulltune.model.folder import load_tokenizer, require_rows
from fulltune.model.load import load_model
from fulltune.model.probe import ask
from fulltune.recipe.schema import ModelSection, Recipe
from fulltune.references import Compared, comparing
from fulltune.training.acts import require_finite

_SINGLE = By("single")


def score(
    recipe: Recipe, plan: Plan, data: Prepared, models: Mapping[str, ModelSection], folder: Path
) -> dict[str, EvalReport]:
    """Losses of models on held-out, test and retention data, one model in memory at a time. The first is the base.

    `folder`: the run's, with what the base predicts; if it is not there, the base that is scored is asked.
    """
    crew = alone().crew
    with fitting(plan), tempfile.TemporaryDirectory() as scratch:
        known, fresh = (comparing(recipe, plan, data.facts, data.stores, at).measured for at in (folder, Path(scratch)))
        stands = known is None or known.references.stand(crew)
        compared = known if stands else fresh
        reports = {}
        for name, section in models.items():
            reports[name] = _scored(recipe, plan, data, section, compared, makes=not stands)
            stands = True
    return reports


def _scored(
    recipe: Recipe, plan: Plan, data: Prepared, section: ModelSection, compared: Compared | None, *, makes: bool
) -> EvalReport:
    """Of one model; `makes`: it is the base, and what it predicts is kept."""
    model = load_model(section).to(alone().world.device)
    require_rows(model, load_tokenizer(section), section.path)
    objective = objective_for(recipe.train, model, ask(model, packed=False))
    engine = engine_for(recipe, plan, model, objective, alone(), _SINGLE)
    if makes and compared is not None:
        compared.make(engine, objective, alone().crew)
    splits = [split for split in data.stores if split != "train"]
    report = measuring(data, splits, plan, engine, objective, compared)(0)
    if report is None:
        raise RecipeError("nothing to measure on", where="data", mend="give data.heldout, data.test or data.retention")
    require_finite(report)
    return report


@contextmanager
def fitting(
    plan: Plan, trained: ModelFacts | None = None, world: World | None = None, by: By = _SINGLE
) -> Iterator[None]:
    """Around the passes of a run: where memory runs out is said what would help.

    Of a model that is `trained` memory is used again as suits its passes. `world`: that of a process alone by default.
    """
    size = f"{plan.micro_examples} examples and {plan.micro_tokens:,} tokens"
    told = explained(
        f"with micro-batches of up to {size}",
        where="train.micro_tokens",
        mend="lower train.micro_tokens (the losses stay the same), or memory.checkpointing=full",
    )
    widest = 0 if trained is None else plan.micro_tokens * trained.shape.widest * BYTES[plan.dtypes.compute]
    frugal = not plan.dtypes.bytes["gradients"]
    with told, nullcontext() if trained is None else reusing(world or alone().world, by, widest, frugal=frugal):
        yield
