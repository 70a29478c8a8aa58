"""What a model card says of a run's weights: the run's own facts, as exporting/card.py wants them."""

from collections.abc import Mapping
from dataclasses import replace

from fulltune.base.records import DataFacts, EvalReport, Plan, SourceFacts
from fulltune.exporting.card import Card, text
from fulltune.model.load import base_folder
from fulltune.recipe.schema import Recipe
from fulltune.reporting.story import Evaluation, read_story
from fulltune.runs import RunFolder


def model_card(run: RunFolder, facts: DataFacts, *, step: int, chat: bool, versions: Mapping[str, str]) -> str:
    """The card of the weights after so many updates, by what was measured of them and of the base until now.

    `chat`: whether the result has a chat template.
    """
    story = read_story(run.path)
    after = next((report for report in story.evaluations if report.step == step > 0), None)
    return text(
        Card(
            name=story.name,
            base=run.recipe.model.path,
            base_folder=base_folder(run.recipe.model),
            step=step,
            sources=_taken(facts),
            before=_plain(story.baseline),
            after=_plain(after),
            intervals=after.intervals if after is not None else {},
            settings=_settings(run.recipe, run.plan(), facts),
            versions=versions,
            chat=chat,
        )
    )


def _taken(facts: DataFacts) -> dict[str, list[SourceFacts]]:
    """The sources of each split with the examples that they gave it: one may give to several."""
    return {
        split: [
            replace(source, examples=count)
            for source, count in zip(sources, facts.splits[split].by_source, strict=False)
        ]
        for split, sources in facts.sources.items()
        if facts.splits[split].examples
    }


def _plain(report: Evaluation | None) -> EvalReport | None:
    if report is None:
        return None
    return EvalReport(step=report.step, scores=dict(report.scores), counts=dict(report.counts))


def _settings(recipe: Recipe, plan: Plan, facts: DataFacts) -> dict[str, str]:
    """How a model is trained, by name."""
    train, optim = recipe.train, recipe.optim
    batch = f"{train.batch_examples} examples" if train.batch_tokens is None else f"{train.batch_tokens:,} tokens"
    return {
        "what was trained": "all weights",
        "objective": train.objective,
        "examples": f"{facts.splits['train'].examples:,}",
        "how long": f"{train.epochs:g} epochs" if train.steps is None else f"{train.steps:,} updates",
        "an update": batch,
        "length at most": f"{recipe.data.max_length:,} tokens",
        "optimizer": f"{optim.name}, weight decay {optim.weight_decay:g}",
        "learning rate": f"{optim.lr:g} at the peak, {optim.schedule}",
        "precision": plan.precision,
        "seed": str(train.seed),
        "chat template": f"sha256 {facts.template[:16]}",
    }
