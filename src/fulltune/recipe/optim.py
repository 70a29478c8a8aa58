"""How weights move, as a recipe says it: optimizer, rates, what pulls them back."""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from fulltune.recipe.kinds import FilePath, Section, Used, Warmup


class PullSection(Section):
    """What acts on the weights besides the optimizer."""

    use: str
    """Which: an entry of PULLS (`l2_sp`, `l2_sp_penalty`, `ewc`, `ema`) or package.module:name."""
    options: dict[str, Any] = Field(default_factory=dict)
    """What it takes, such as `{alpha: 10}`."""
    file: FilePath | None = None
    """Of `ewc`: Fisher information that another run has estimated, its `fisher.safetensors`. By default it is estimated
    on `data.retention` before the first update.
    """


class OptimSection(Section):
    """How the weights move."""

    name: str = "adamw"
    """An entry of OPTIMIZERS, or package.module:name."""
    lr: Annotated[float, Field(gt=0)] = 2e-5
    """Peak learning rate. Full fine-tuning wants 1e-6 to 5e-5 for billions of parameters, more for small models."""
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
    moments: Literal["float32", "bfloat16"] = "float32"
    """Number format of what the optimizer keeps for each weight; `bfloat16` needs `train.precision: bf16-sr`."""
    options: dict[str, Any] = Field(default_factory=dict)
    """What else the optimizer takes, by its own names, such as `{betas: [0.9, 0.95]}`."""
    pulls: Annotated[tuple[PullSection, ...], Used] = ()
    """What holds the weights near where they began, or averages them: `l2_sp`, `l2_sp_penalty`, `ewc`, `ema`. See
    `docs/retention.md`.
    """

    @model_validator(mode="after")
    def _floor_is_used(self) -> Self:
        if self.schedule == "constant" and "floor" in self.model_fields_set:
            raise ValueError("a constant schedule has no floor; leave optim.floor out")
        return self
