"""The recipe: one frozen tree. Every field says what it does and has one default; nothing here is derived."""

from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Discriminator, Field, Tag, model_validator

from fulltune.base.records import Every
from fulltune.recipe.kinds import MOST, Cadence, Count, FilePath, Listed, Names, Warmup, is_number

Share = Annotated[float, Field(ge=0, lt=1)]

EITHER_OR = (("epochs", "steps"), ("batch_examples", "batch_tokens"))
"""Fields of the train section of which one is given; the second of each pair is none by default."""
BRANCHES = ("<share>", "<sources>")
"""Tags of the two ways to write data.heldout; pydantic puts them into the place of a fault, where they are no keys."""
_MOST_APART = 1e6
"""Ratio of two shares; what is rarer comes less than once in a million examples, and rounds to never."""


class Section(BaseModel):
    """What all sections share: frozen, strict, no unknown keys, the docstring below a field describes it."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        strict=True,
        use_attribute_docstrings=True,
        validate_default=True,
        allow_inf_nan=False,
    )


class ModelSection(Section):
    """Which model to start from."""

    path: FilePath
    """A folder that transformers can load, or a hub id such as `meta-llama/Llama-3.1-8B`."""
    revision: str | None = None
    """Branch, tag or commit of a hub id; a commit pins it for good."""
    chat_template: FilePath | None = None
    """A Jinja file used in place of the tokenizer's own chat template, in training and in the exported model."""
    trust_remote_code: bool = False
    """Whether Python code that lies in the model's folder may run. Read it first."""
    attention: Literal["auto", "eager", "sdpa", "flash_attention_2", "flash_attention_3"] = "auto"
    """Which attention implementation of transformers to use; `auto` leaves the choice to transformers."""
    dropout: Share | None = None
    """Sets every dropout probability of the model while training; by default they are as in its config."""


class Source(Section):
    """One set of rows."""

    path: FilePath
    """JSONL, JSON, CSV, TSV, Parquet, Arrow or text (also gzip, zstd); a folder, a pattern, an address, a hub id."""
    format: str = "auto"
    """How rows are read, an entry of FORMATS or package.module:name; `auto`: by their keys.

    `messages`, `sharegpt`, `instruction`, `prompt_completion`, `input_output`, `text`, `tokens`; `classification` and
    `preference` are read and checked, but not trained on yet.
    """
    columns: dict[str, str] = Field(default_factory=dict)
    """What the format calls a column -> what this source calls it, `{prompt: question, completion: answer}`, or a Jinja
    template over its columns, `{text: "{{ title }}: {{ body }}"}`. Others are not read then.
    """
    share: Annotated[float, Field(ge=1e-9, le=1e9)] | None = None
    """How often this source is seen beside the others (0.7 and 0.3, or 7 and 3); by default by its size."""
    document: Literal["file", "paragraph", "line"] = "file"
    """What is one document of a plain text (.txt, .md): the whole file, each paragraph or each line."""
    header: Annotated[Names, Field(min_length=1)] | None = None
    """Column names of CSV or TSV files whose first line is a row already."""
    quoted: bool | None = None
    """Whether cells may stand in double quotes; by default they may in CSV and not in TSV."""
    split: str | None = None
    """Split of a hub data set or of a folder of `save_to_disk`, or a part of it, such as `train[:10%]`."""
    name: str | None = None
    """Configuration of a hub data set that has several."""
    revision: str | None = None
    """Branch, tag or commit of a hub data set; a commit pins it for good."""


def _unmixed(sources: tuple[Source, ...]) -> tuple[Source, ...]:
    """Sources that are not mixed; a share would be a setting without effect."""
    if any(source.share is not None for source in sources):
        raise ValueError("`share` mixes the sources of data.train; these are read once and whole, so leave it out")
    return sources


Sources = Annotated[tuple[Source, ...], Listed, AfterValidator(_unmixed)]
Heldout = Annotated[
    Annotated[Share, Tag(BRANCHES[0])] | Annotated[Sources, Tag(BRANCHES[1])],
    Discriminator(lambda value: BRANCHES[0] if is_number(value) else BRANCHES[1]),
]


class DataSection(Section):
    """What to learn from, and what to measure on."""

    train: Annotated[tuple[Source, ...], Listed, Field(min_length=1)]
    """What the model learns: a path, a mapping, or a list of them."""
    heldout: Heldout = 0.05
    """Kept back to judge training by: a share of `train`, chosen by content hash, or sources of its own."""
    test: Sources = ()
    """Never looked at while training or choosing a checkpoint; `fulltune evaluate` scores it."""
    retention: Sources = ()
    """What must not be forgotten: its loss is measured whenever the held-out loss is."""
    max_length: Annotated[int, Field(ge=2, le=MOST)] = 2048
    """Most tokens of one example."""
    over_length: Literal["error", "drop", "truncate"] = "error"
    """What a longer example is: a bad row, left out and counted, or cut at its end and counted."""
    supervise: Literal["assistant", "last_turn", "completion", "all"] = "assistant"
    """Which tokens are taught: every assistant turn, the last one, those after the last user turn, or all tokens."""
    control_tokens: Literal["text", "drop", "keep"] = "text"
    """What `<|im_end|>` and the like in a row are: letters, left out, or control tokens that were meant; noted each."""
    on_bad_row: Literal["error", "drop"] = "error"
    """Whether rows that cannot be taught stop the run, each named with its line, or are left out and counted."""
    duplicates: Literal["error", "drop", "keep"] = "error"
    """What a row is whose content stood before: a bad row, left out and counted, or taught again."""
    group_by: str | None = None
    """A column: rows that share its value go to the held-out share together, or not at all."""

    @model_validator(mode="after")
    def _shares(self) -> Self:
        shares = [source.share for source in self.train if source.share is not None]
        if shares and len(shares) < len(self.train):
            raise ValueError("give every source of data.train a `share`, or none")
        if shares and max(shares) / min(shares) > _MOST_APART:
            raise ValueError(
                "the shares of data.train are more than a million times apart: the least would hardly be seen"
            )
        if self.group_by is not None and (isinstance(self.heldout, tuple) or self.heldout == 0):
            raise ValueError("`group_by` steers the held-out share, but data.heldout is no share")
        return self


class TrainSection(Section):
    """How long, and in what portions."""

    epochs: Annotated[float, Field(gt=0, le=1e6)] = 3.0
    """How often the training rows are seen; parts such as 0.5 are allowed."""
    steps: Count | None = None
    """The number of updates, in place of `epochs`."""
    batch_examples: Count = 32
    """Examples of one update, over all devices; how they are cut into micro-batches changes no loss."""
    batch_tokens: Count | None = None
    """Tokens of one update, in place of `batch_examples`: as many whole examples as fit."""
    micro_examples: Count | None = None
    """Most examples of one forward pass; by default the plan chooses."""
    micro_tokens: Count | None = None
    """Most tokens of one forward pass, padding included; by default the plan chooses."""
    layout: Literal["auto", "padded", "packed"] = "auto"
    """Examples beside each other, padded to the longest, or several in one row, isolated from each other."""
    objective: str = "next_token"
    """What is minimised: an entry of OBJECTIVES, or package.module:name."""
    precision: Literal["auto", "float32", "bf16-mixed"] = "auto"
    """Arithmetic of the forward pass; weights and optimizer are float32 in any case. `auto`: bf16 where it is fast."""
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    """Decides the order of the data and dropout."""
    max_skipped: Count = 3
    """The run stops when so many updates were skipped because loss or gradient were not finite."""

    @model_validator(mode="after")
    def _one_of_two(self) -> Self:
        for one, other in EITHER_OR:
            if {one, other} <= self.model_fields_set and self.model_dump()[other] is not None:
                raise ValueError(f"train.{one} and train.{other} exclude each other; give one")
        return self


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
    options: dict[str, Any] = Field(default_factory=dict)
    """What else the optimizer takes, by its own names, such as `{betas: [0.9, 0.95]}`."""

    @model_validator(mode="after")
    def _floor_is_used(self) -> Self:
        if self.schedule == "constant" and "floor" in self.model_fields_set:
            raise ValueError("a constant schedule has no floor; leave optim.floor out")
        return self


class MemorySection(Section):
    """What is traded for memory."""

    checkpointing: Literal["none", "full"] = "none"
    """Gradient checkpointing: `full` computes every block again in the backward pass in place of keeping it."""


class EvaluateSection(Section):
    """When to measure, and what to show."""

    every: Cadence = Every(1.0, "epochs")
    """Between evaluations: updates, `0.5 epochs` or `10 min`; also before the first and after the last update."""
    samples: Annotated[int, Field(ge=0, le=MOST)] = 3
    """Held-out prompts answered before and after, greedily."""
    sample_tokens: Count = 96
    """Most tokens of such an answer."""


class CheckpointSection(Section):
    """When to save, what to keep, when to stop early."""

    every: Cadence = Every(1.0, "epochs")
    """Between checkpoints; a new best and the last update are saved in any case."""
    keep: Count = 2
    """How many of the newest stay on disk; the best stays besides."""
    best_by: str = "heldout.loss"
    """Which score decides what is best; the smallest wins."""
    patience: Count | None = None
    """Stop after so many evaluations in a row without a new best; by default never."""


class ExportSection(Section):
    """How the result is written."""

    dtype: Literal["base", "float32", "bfloat16", "float16"] = "base"
    """Number format of the exported weights; `base`: that of the model it started from."""


class Recipe(Section):
    """All that the user asked for. Never changed after loading; derived numbers stand in the Plan."""

    model: ModelSection
    data: DataSection
    train: TrainSection = TrainSection()
    optim: OptimSection = OptimSection()
    memory: MemorySection = MemorySection()
    evaluate: EvaluateSection = EvaluateSection()
    checkpoint: CheckpointSection = CheckpointSection()
    export: ExportSection = ExportSection()
