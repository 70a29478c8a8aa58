"""How weights move, as a recipe says it: optimizer, rates, what pulls them back."""

import re
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from fulltune.recipe.kinds import FilePath, Section, Used, Warmup


class PullSection(Section):
    """What acts on the weights besides the optimizer."""

    use: str
    """Which: an entry of PULLS (`l2_sp`, `l2_sp_penalty`, `ewc`, `ema`, `mixout`) or package.module:name."""
    options: dict[str, Any] = Field(default_factory=dict)
    """What it takes, such as `{alpha: 10}`."""
    file: FilePath | None = None
    """Of `ewc`: Fisher information that another run has estimated, its `fisher.safetensors`. By default it is estimated
    on `data.retention` before the first update.
    """


def _pattern(value: str) -> str:
    try:
        re.compile(value)
    except re.error as fault:
        raise ValueError(f"{value!r} is no regular expression: {fault}") from fault
    return value


Pattern = Annotated[str, AfterValidator(_pattern)]


def _entries(value: Any) -> Any:
    """One entry, or a list of them, as a tuple."""
    return tuple(value) if isinstance(value, list | tuple) else (value,)


Patterns = Annotated[tuple[Pattern, ...], BeforeValidator(_entries)]


class GroupSection(Section):
    """Weights by their names, and how they differ from the others."""

    match: Pattern
    """A regular expression that is looked for in the names of weights, such as `layers\\.[0-3]\\.` or `embed`."""
    rate: Annotated[float, Field(ge=0, le=1e6)] = 1.0
    """Their rate, as a part of `lr`; 0 freezes them."""
    weight_decay: Annotated[float, Field(ge=0, le=1e6)] = 1.0
    """Their weight decay, as a part of `weight_decay`; biases, norms and embeddings have none in any case."""


class OptimSection(Section):
    """How the weights move."""

    name: str = "adamw"
    """An entry of OPTIMIZERS (`adafactor`, `adamw`, `apollo`, `apollo_mini`, `galore`, `lion`, `muon`,
    `schedule_free_adamw`, `sgd`), or package.module:name. See `docs/optimizers.md`.
    """
    lr: Annotated[float, Field(gt=0)] = 2e-5
    """Peak learning rate. Full fine-tuning wants 1e-6 to 5e-5 for billions of parameters, more for small models: so of
    AdamW and Muon. Lion's is a third to a tenth of it, and Adafactor's a part of each weight's own size.
    """
    schedule: str = "cosine"
    """How the rate falls after warm-up: `cosine`, `linear`, `wsd`, `constant`, or package.module:name."""
    warmup: Warmup = 0.06
    """Updates in which the rate rises: a share of the run (0.06) or a number (100)."""
    floor: Annotated[float, Field(ge=0, le=1)] = 0.1
    """The rate of the last update, as a part of the peak."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    """Decoupled weight decay of matrices; biases, norms and embeddings are never decayed."""
    clip: Annotated[float, Field(gt=0)] | None = 1.0
    """Largest global gradient norm; a longer gradient is shortened to it. `null`: no limit."""
    in_backward: Literal["off", "two_passes", "one_pass"] = "off"
    """Optimizer in backward: each weight moves as soon as its gradient is there, which is freed, so gradients take no
    memory (docs/memory.md). One process, an update of one micro-batch. `two_passes`: clipped exactly, and nothing moves
    where a gradient is not finite; twice the arithmetic. `one_pass`: no `clip`, and `train.on_nonfinite` is no `skip`.
    """
    moments: Literal["float32", "bfloat16", "int8"] = "float32"
    """Number format of what the optimizer keeps for each weight; `bfloat16` and `int8` need `train.precision: bf16-sr`.
    `int8`: a code of 8 bits, with a scale for every 256 of them (`docs/precision.md`).
    """
    options: dict[str, Any] = Field(default_factory=dict)
    """What else the optimizer takes, by its own names, such as `{betas: [0.9, 0.95]}`."""
    layer_decay: Annotated[float, Field(gt=0, le=1)] = 1.0
    """The rate of a layer, as a part of that of the one above it: 0.9 slows the embeddings most, and the head not at
    all. 1: no difference.
    """
    groups: Annotated[tuple[GroupSection, ...], BeforeValidator(_entries)] = ()
    """Factors of rate and weight decay for weights by their names: `[{match: embed, rate: 0.1}]`. The first entry that
    matches a weight counts.
    """
    freeze: Patterns = ()
    """Regular expressions: weights with one of them in their name stay as they are, such as `embed`."""
    train_only: Patterns = ()
    """Regular expressions: all weights but those with one of them in their name stay as they are, such as `lm_head`."""
    unfreeze: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Gradual unfreezing: layers begin to move one after the other, the highest first, the embeddings after this share
    of the run. 0: all from the start.
    """
    pulls: Annotated[tuple[PullSection, ...], Used] = ()
    """What holds the weights near where they began, or averages them: `l2_sp`, `l2_sp_penalty`, `ewc`, `ema`, `mixout`.
    See
    `docs/retention.md`.
    """

    @property
    def by_layer(self) -> bool:
        """Whether a weight's layer decides anything."""
        return self.layer_decay < 1 or self.unfreeze > 0

    @property
    def parted(self) -> bool:
        """Whether weights differ by more than whether they are decayed."""
        return self.by_layer or bool(self.groups or self.freeze or self.train_only)

    @model_validator(mode="after")
    def _floor_is_used(self) -> Self:
        if self.schedule == "constant" and "floor" in self.model_fields_set:
            raise ValueError("a constant schedule has no floor; leave optim.floor out")
        return self
