"""What a recipe says of choosing and shipping: the rule for the best checkpoint, and the gate of the result."""

from typing import Annotated, Any, Self

from pydantic import BeforeValidator, Field, PlainSerializer, model_validator

from fulltune.recipe.kinds import MOST, Section

Amount = Annotated[float, Field(ge=-MOST, le=MOST)]
Floors = dict[str, Amount]


class RetentionLimits(Section):
    """How far a model may move away from the base, on `data.retention`."""

    max_loss_increase: Annotated[float, Field(ge=0, le=MOST)] | None = None
    """Most that retention loss may lie above the base's, in nats per token; the base's is measured before the first
    update.
    """
    max_kl: Annotated[float, Field(ge=0, le=MOST)] | None = None
    """Most that `retention.kl` may be: how far what the model predicts lies from the base's prediction, in nats per
    token.
    """

    @model_validator(mode="after")
    def _something_is_limited(self) -> Self:
        if self.max_loss_increase is None and self.max_kl is None:
            raise ValueError("nothing is limited; give max_loss_increase, max_kl, or both")
        return self


class BestBy(Section):
    """Which checkpoint is the best: the best score among those that keep what is asked besides."""

    score: str = "heldout.loss"
    """A loss or perplexity of held-out or retention data, such as `heldout.chat.loss` of one source; or `SUITE.METRIC`
    where `evaluate.suites_every` asks suites while training. Which way is up the metric says.
    """
    retention: RetentionLimits | None = None
    """What may be forgotten, such as `{max_loss_increase: 0.05}`."""
    floors: Floors = Field(default_factory=dict)
    """How good scores must be at least (at most, where less is better), such as `{gsm8k.numeric: 0.4}`."""

    def __str__(self) -> str:
        return str(_short(self))


class GateSection(Section):
    """What must hold of the result for the verdict to be SHIP."""

    score: str | None = None
    """What the gain is measured in: a loss or perplexity, or `SUITE.METRIC`; by default `test.loss`, or `heldout.loss`
    where there is no `data.test`.
    """
    min_gain: Amount = 0.0
    """The result must be better than the base by more than this, in the score's own unit."""
    retention: RetentionLimits | None = None
    """What may be forgotten; by default what `checkpoint.best_by` allows, or `{max_loss_increase: 0.05}` where there is
    `data.retention`.
    """
    floors: Floors = Field(default_factory=dict)
    """How good scores of the result must be at least (at most, where less is better)."""


def _scored(value: Any) -> Any:
    """A score by its name alone, as a mapping."""
    return {"score": value} if isinstance(value, str) else value


def _short(rule: BestBy) -> Any:
    """By its name alone, if nothing else is asked; so a recipe reads as it was written."""
    values = rule.model_dump(mode="json", exclude_defaults=True, exclude={"score"})
    return {"score": rule.score, **values} if values else rule.score


BestByRule = Annotated[
    BestBy, BeforeValidator(_scored, json_schema_input_type=str | BestBy), PlainSerializer(_short, return_type=Any)
]
