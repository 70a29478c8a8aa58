"""Losses of any model on a run's data; and what is said where memory runs out."""

from collections.abc import Iterator
from contextlib import contextmanager

from fulltune.assemble import Prepared, measuring, objective_for
from fulltune.base.errors import MachineError, RecipeError
from fulltune.base.records import EvalReport, Plan
from fulltune.engine.launch import alone
from fulltune.engine.room import first_line, out_of_memory
from fulltune.engines import By, engine_for
from fulltune.model.load import load_model, load_tokenizer, require_rows
from fulltune.model.probe import ask
from fulltune.recipe.schema import ModelSection, Recipe
from fulltune.training.acts import require_finite


def score(recipe: Recipe, plan: Plan, data: Prepared, section: ModelSection) -> EvalReport:
    """Losses of any model on held-out, test and retention data."""
    with fitting(plan):
        model = load_model(section).to(alone().world.device)
        require_rows(model, load_tokenizer(section), section.path)
        objective = objective_for(recipe.train, model, ask(model, packed=False))
        engine = engine_for(recipe, plan, model, objective, alone(), By("single"))
        splits = [split for split in data.stores if split != "train"]
        report = measuring(data, splits, plan, engine, objective)(0)
    if report is None:
        raise RecipeError("nothing to measure on", where="data", mend="give data.heldout, data.test or data.retention")
    require_finite(report)
    return report


@contextmanager
def fitting(plan: Plan) -> Iterator[None]:
    """Says what would help where memory runs out."""
    try:
        yield
    except (RuntimeError, MemoryError) as fault:
        if not out_of_memory(fault):
            raise
        size = f"{plan.micro_examples} examples and {plan.micro_tokens:,} tokens"
        raise MachineError(
            f"out of memory with micro-batches of up to {size}: {first_line(fault)}",
            where="train.micro_tokens",
            mend="lower train.micro_tokens (the losses stay the same), or memory.checkpointing=full",
        ) from fault
