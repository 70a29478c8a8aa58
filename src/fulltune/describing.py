"""What a model card says of a run's weights: the run's own facts, as exporting/card.py wants them."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from fulltune.base.gate import GateVerdict
from fulltune.base.records import DataFacts, EvalReport, Plan, SourceFacts
from fulltune.exporting.card import Card, text
from fulltune.model.folder import base_folder
from fulltune.recipe.optim import PullSection
from fulltune.recipe.schema import Recipe
from fulltune.reporting.story import Evaluation, Story, read_story
from fulltune.reporting.transfer import change, summary, transfers
from fulltune.runs import RunFolder


@dataclass(frozen=True, slots=True)
class Mixture:
    """Weights that are no state of a run but a mixture of its result with other models."""

    said: str
    """How much of which model."""
    report: EvalReport


def model_card(
    run: RunFolder,
    facts: DataFacts,
    *,
    step: int,
    chat: bool,
    versions: Mapping[str, str],
    mixture: Mixture | None = None,
    verdict: GateVerdict | None = None,
) -> str:
    """The card of the weights after so many updates, by what was measured of them and of the base until now.

    `chat`: whether the result has a chat template. `mixture`: what the weights are in place of a state of the run.
    `verdict`: on these weights; by default that of the record, if they are the run's result.
    """
    story = read_story(run.path)
    if verdict is None and mixture is None and step == story.result_step:
        verdict = story.verdict
    after = next((report for report in story.evaluations if report.step == step > 0), None)
    return text(
        Card(
            name=story.name,
            base=run.recipe.model.path,
            base_folder=base_folder(run.recipe.model),
            step=step,
            mixed=None if mixture is None else mixture.said,
            sources=_taken(facts),
            before=_plain(story.baseline),
            after=_plain(after) if mixture is None else mixture.report,
            intervals=after.intervals if after is not None else {},
            **(_chained(story) if mixture is None and after is not None else {}),
            settings=_settings(run.recipe, run.plan(), facts),
            versions=versions,
            chat=chat,
            verdict=verdict,
        )
    )


def _chained(story: Story) -> dict[str, Any]:
    """What became of the tasks of the runs that the model comes from."""
    found = transfers(story)
    rows = [
        {
            "task": task.task,
            "score": score.name,
            "before": f"{score.before:.4g}",
            "after": f"{score.after:.4g}",
            "change": f"{moved:+.4g}",
        }
        for task in found
        for score in task.scores
        if (moved := change(score)) is not None
    ]
    lost = [f"Not measured again, {task.task}: {why}." for task in found for why in task.missing]
    return {"earlier": rows, "transfer": [*summary(story), *lost] if found else []}


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
        "what was trained": _trained(plan),
        "objective": train.objective,
        "examples": f"{facts.splits['train'].examples:,}",
        "how long": f"{train.epochs:g} epochs" if train.steps is None else f"{train.steps:,} updates",
        "an update": batch,
        "length at most": f"{recipe.data.max_length:,} tokens",
        "optimizer": f"{optim.name}, weight decay {optim.weight_decay:g}",
        "learning rate": f"{optim.lr:g} at the peak, {optim.schedule}",
        **({"pulls": ", ".join(map(_pull, optim.pulls))} if optim.pulls else {}),
        **({"held to the base": f"KL on replayed text, weight {train.kl_weight:g}"} if train.kl_weight else {}),
        "precision": plan.precision,
        "seed": str(train.seed),
        "chat template": f"sha256 {facts.template[:16]}",
    }


def _trained(plan: Plan) -> str:
    """Which weights moved, by the groups of the plan; without groups all of them did."""
    frozen = sum(group.parameters for group in plan.groups if not group.rate)
    if not frozen:
        return "all weights"
    whole = sum(group.parameters for group in plan.groups)
    return f"{whole - frozen:,} of {whole:,} parameters; the others stayed as they were"


def _pull(asked: PullSection) -> str:
    """A pull with what it was told."""
    told = ", ".join(f"{name} {value}" for name, value in asked.options.items())
    return f"{asked.use} ({told})" if told else asked.use
