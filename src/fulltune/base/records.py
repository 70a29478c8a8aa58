"""The records that travel from stage to stage. Frozen, plain, JSON-able, free of torch."""

from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Literal

from fulltune.base.chain import EarlierTask
from fulltune.base.formats import PrecisionPlan
from fulltune.base.gate import GateVerdict
from fulltune.base.groups import GroupPlan
from fulltune.base.memory import Forecast, Shape
from fulltune.base.progress import Mark as Mark
from fulltune.base.progress import Progress as Progress
from fulltune.base.results import SuiteReport
from fulltune.base.rule import Selection

IGNORE = -100
"""The label of a token that carries no loss."""

Layout = Literal["padded", "packed"]
Precision = Literal["float32", "bf16-mixed", "fp16-mixed", "bf16-sr"]
EngineName = Literal["single", "ddp", "fsdp2", "zero1", "zero2", "zero3"]
Unit = Literal["updates", "epochs", "minutes"]
Checkpointing = Literal["none", "selective", "full"]


@dataclass(frozen=True, slots=True)
class Every:
    """How often something happens: `50` (updates), `0.5 epochs` or `10 min`."""

    amount: float
    unit: Unit

    def __str__(self) -> str:
        suffix = {"updates": "", "epochs": " epochs", "minutes": " min"}[self.unit]
        # All digits and no exponent, since a resolved recipe is read again: `g` writes 1e+06 and keeps six digits.
        digits = str(int(self.amount)) if self.amount == int(self.amount) else f"{Decimal(repr(self.amount)):f}"
        return digits + suffix


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceFacts:
    """What became of one set of rows."""

    path: str
    files: tuple[str, ...]
    """What was read for it, in the order in which the store numbers them."""
    format: str
    sha256: str
    """Of the file; of several, over all of them."""
    rows: int
    examples: int
    augmented: int = 0
    """Examples among them that were made from other rows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SplitFacts:
    """One part of the prepared data: train, heldout, test or retention."""

    examples: int
    tokens: int
    supervised_tokens: int
    lengths: dict[str, int]
    """Quantiles of the examples' lengths in tokens: min, p50, p90, p99, max."""
    by_source: tuple[int, ...]
    """How many examples each source gave, in the order in which they are stored; of train, replay behind the others."""
    tokens_by_source: tuple[int, ...]
    """How many tokens they have together."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DataFacts:
    """The card of a prepared data set (`data.json`)."""

    fingerprint: str
    """Over every option and every byte that the store depends on."""
    rows: int
    kept: int
    dropped: dict[str, int]
    truncated: int
    splits: dict[str, SplitFacts]
    sources: dict[str, tuple[SourceFacts, ...]]
    notes: dict[str, str]
    template: str
    """sha256 of the chat template's text."""
    stop_ids: tuple[int, ...]
    """The tokens that end a taught turn."""
    doctor: dict[str, Any]
    """What is odd about rows that can be taught: findings, lengths, languages, near-duplicates."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFacts:
    """What the other stages need to know about a model without holding it."""

    architecture: str
    parameters: int
    layers: int
    hidden: int
    vocab: int
    context: int | None
    """Longest sequence that the positions allow; None if there is no such limit."""
    tied_embeddings: bool
    dtype: str
    """Number format of the weights on disk."""
    shape: Shape
    checkpoints: bool = True
    """Whether blocks can be made again in the backward pass."""
    causal: bool = False
    """Whether it is known that all attention is causal and no more, and that packed examples are isolated."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """What the run may use."""

    kind: Literal["cpu", "cuda"]
    name: str
    devices: int
    bytes_per_device: int
    """Of a GPU, or of the host: what a container may have, where that is less."""
    cores: int
    bf16: bool
    """Whether bf16 matrix products are faster than float32 ones here."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceMix:
    """How often one source is seen in a run."""

    path: str
    replay: bool
    examples: int
    share: float
    """Of the examples that come."""
    passes: float
    """How often each of its examples is seen."""

    def __str__(self) -> str:
        kind = " (replay)" if self.replay else ""
        each = f"each of its {self.examples:,} seen {self.passes:.2f} times"
        return f"{self.path}{kind}: {self.share:.1%} of the examples, {each}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Every number derived from recipe, data, model and machine. Derived once, here (`plan.json`)."""

    updates: int
    warmup_updates: int
    examples: int | None
    """Training examples to be seen in all, epochs and replay counted; None where updates are what was asked for."""
    epoch_examples: int
    """Examples until all of data.train were seen once, replay between them counted."""
    micro_examples: int
    micro_tokens: int
    context: int | None
    """Longest row that the model's positions allow; None if there is no such limit."""
    layout: Layout
    precision: Precision
    dtypes: PrecisionPlan
    """What `precision` means for weights, gradients and moments, and what they cost."""
    mix: tuple[SourceMix, ...]
    """The sources of data.train, then those of data.replay."""
    checkpointing: Checkpointing | None = None
    """What the backward pass makes again; None in a plan that is older than the choice: as its recipe says."""
    memory: Forecast | None = None
    """What each process will hold; None in a plan that was made before there was a forecast."""
    groups: tuple[GroupPlan, ...] = ()
    """Weights by their rates, where the recipe parts them by more than weight decay."""
    chain: tuple[EarlierTask, ...] = ()
    """The runs that the model comes from, the last one first; what is measured of them stays as the run began."""
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class StepReport:
    """What one update did."""

    step: int
    loss: float
    """Mean over all supervised tokens of the update, by their weights."""
    lr: float
    grad_norm: float
    tokens: int
    supervised_tokens: int
    seconds: float
    penalty: float = 0.0
    """What the objective was held back by besides, such as its KL divergence from the base, by weight."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EvalReport:
    """Scores by `split.name`, such as `heldout.loss`, after so many updates; `counts` says over how many tokens.

    A split of several sources has `heldout.SOURCE.loss` for each of them besides. A score over fewer tokens than its
    split, such as `retention.kl`, has a count of its own, under its whole name.
    """

    step: int
    scores: dict[str, float]
    counts: dict[str, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointInfo:
    """One saved state and what it was worth."""

    step: int
    score: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One held-out prompt, what was expected, and what the model said before and after."""

    prompt: str
    expected: str
    before: str
    after: str


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightChange:
    """How far one part of the weights lies from where it began."""

    layer: int | None
    """None of what lies outside of the layers, such as the embedding."""
    part: str
    """Such as `self_attn`, as the model's own names call it."""
    relative: float
    """||result - base|| / ||base||, L2, of the weights as they lie on disk."""
    parameters: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRecord:
    """The one paper that explains a run (`record.json`)."""

    recipe: str
    """Fingerprint of the recipe as resolved."""
    versions: dict[str, str]
    data: DataFacts
    model: ModelFacts
    machine: Machine
    plan: Plan
    progress: Progress
    baseline: EvalReport | None
    evaluations: tuple[EvalReport, ...]
    result_step: int
    """The update after which the exported weights stood."""
    result: str
    """Folder of the exported model."""
    largest_logit_difference: float
    """Between the exported folder, loaded anew, and the weights it was written from, on a held-out batch."""
    samples: tuple[Sample, ...]
    suites: tuple[SuiteReport, ...] = ()
    """What suites of questions gave, in order: of the base (step 0), while training if asked for, and of the result."""
    peak_bytes: int
    """Most memory that the process, of several the first, held: on the device if there is one, else on the host."""
    weights: tuple[WeightChange, ...] = ()
    """By part and layer; empty where the base has no safetensors files to compare with."""
    selection: Selection | None = None
    """How the result was chosen; None where nothing chose, and it is the last state."""
    verdict: GateVerdict | None = None
    """Whether it is to be shipped; None in a record that was made before there was a gate."""
