"""The recipe: one frozen tree. Every field says what it does and has one default; nothing here is derived."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from fulltune.base.records import Every
from fulltune.base.stop import DEFAULT
from fulltune.recipe.data import DataSection
from fulltune.recipe.gate import BestBy, BestByRule, GateSection
from fulltune.recipe.kinds import MOST, Cadence, Count, FilePath, Section, Share, Signals, Trust
from fulltune.recipe.memory import MemorySection as MemorySection
from fulltune.recipe.optim import OptimSection as OptimSection
from fulltune.recipe.suites import Suites

EITHER_OR = (("epochs", "steps"), ("batch_examples", "batch_tokens"))
"""Fields of the train section of which one is given; the second of each pair is none by default."""

ZERO = ("zero1", "zero2", "zero3")
"""The engines that are DeepSpeed's."""

ACTS = {"reshard": ("fsdp2",), "replicas": ("fsdp2",), "offload": ("fsdp2", *ZERO), "deepspeed": ZERO}
"""Fields of the engine section that act with some engines alone, and which."""


class ModelSection(Section):
    """Which model to start from."""

    path: FilePath
    """A folder that transformers can load, a run folder, whose result it is, or a hub id such as
    `meta-llama/Llama-3.1-8B`.
    """
    revision: str | None = None
    """Branch, tag or commit of a hub id; a commit pins it for good."""
    chat_template: FilePath | None = None
    """A Jinja file used in place of the tokenizer's own chat template, in training and in the exported model."""
    trust_remote_code: Trust = False
    """Which Python code that the model brings may run: that of a commit of the hub id, weights and all, or of a folder
    the code with this digest. The refusal names it; read the code first.
    """
    allow_pickle: bool = False
    """Whether weights in pickle files (`pytorch_model.bin`) may be read where there are no safetensors; by torch's
    `weights_only`, which builds tensors and runs nothing.
    """
    attention: Literal["auto", "eager", "sdpa", "flash_attention_2", "flash_attention_3", "varlen"] = "auto"
    """Which attention implementation of transformers to use; `auto` leaves the choice to transformers. With `auto` the
    model's `sdpa` is made of matrix products in blocks of rows where that takes less time, which is in training in
    float32 or bfloat16 on a CPU, with causal attention and no more (docs/performance.md). `varlen`: flash attention
    that torch brings along, for packed examples on a GPU in 16 bits; nothing else is to be installed.
    """
    liger: bool = False
    """Whether norms and gated MLPs are made by the fused kernels of the package liger-kernel, on a GPU; what the model
    says then is compared with what it said before.
    """
    dropout: Share | None = None
    """Sets every dropout probability of the model while training; by default they are as in its config."""

    @model_validator(mode="after")
    def _one_commit(self) -> Self:
        hub = not self.path.startswith((".", "/", "~"))
        if hub and self.trust_remote_code and self.revision not in (None, self.trust_remote_code):
            raise ValueError(
                "model.trust_remote_code names another commit than model.revision: code and weights come from one"
            )
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
    """Most examples of one forward pass; by default the plan chooses what fits."""
    micro_tokens: Count | None = None
    """Most tokens of one forward pass, padding included; by default the plan chooses what fits."""
    layout: Literal["auto", "padded", "packed"] = "auto"
    """Examples beside each other, padded to the longest, or several in one row, isolated from each other. `auto`:
    `packed` on a CPU, where the model is known for it and no example has more than 1,024 tokens, and for
    `model.attention: varlen`; else `padded`."""
    objective: str = "next_token"
    """What is minimised: an entry of OBJECTIVES, or package.module:name."""
    kl_weight: Annotated[float, Field(ge=0, le=1e6)] = 0.0
    """How many times the mean KL divergence from the base, at the tokens of data.replay, is added to the loss (0.1 to
    10), so that the model is held to what the base says of these texts (docs/retention.md). 0: nothing is added.
    """
    kl_top: Annotated[int, Field(ge=1, le=4096)] = 64
    """Of `kl_weight`: how many of the base's likeliest next tokens count one by one; all others count as one."""
    precision: Literal["auto", "float32", "bf16-mixed", "fp16-mixed", "bf16-sr"] = "auto"
    """Number formats. `bf16-mixed` and `fp16-mixed` compute in 16 bits; weights, gradients and optimizer are float32.
    `bf16-sr`: bf16 weights too, updates rounded stochastically. `auto`: `bf16-mixed` where it is fast, else `float32`.
    """
    compile: bool = False
    """Whether the blocks of the model are compiled (`torch.compile`) before the first update, once for all lengths:
    updates take less time, the start takes up to a minute more. Losses agree within the rounding of the number format.
    """
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    """Decides the order of the data and dropout."""
    deterministic: bool = False
    """Whether a run gives the same bits each time on a GPU too, by kernels that are slower; on a CPU it does anyhow."""
    on_nonfinite: Literal["stop", "skip", "rollback"] = "skip"
    """What is done when loss or gradient are not finite: end the run, leave the update out, or go back to the last
    healthy checkpoint and on behind these examples. The weights do not move in any case, and the rows are named.
    """
    max_skipped: Count = 3
    """The run stops when so many updates were skipped because loss or gradient were not finite."""
    on_spike: Literal["off", "warn", "rollback"] = "warn"
    """What is done when the loss of an update lies far above those before it: nothing, a warning, or to leave the
    update out and go back to the last healthy checkpoint and on behind these examples.
    """
    spike_window: Annotated[int, Field(ge=16, le=MOST)] = 64
    """How many losses the next one is compared with; it is judged from the 17th on."""
    spike_score: Annotated[float, Field(gt=0, le=1e6)] = 10.0
    """From how many robust standard deviations above their median a loss is a spike."""
    max_rollbacks: Annotated[int, Field(ge=0, le=MOST)] = 1
    """How often the run goes back; where it would have to once more, it stops."""

    @model_validator(mode="after")
    def _one_of_two(self) -> Self:
        for one, other in EITHER_OR:
            if {one, other} <= self.model_fields_set and self.model_dump()[other] is not None:
                raise ValueError(f"train.{one} and train.{other} exclude each other; give one")
        return self

    @model_validator(mode="after")
    def _kl_is_asked_for(self) -> Self:
        if self.kl_top != type(self).model_fields["kl_top"].default and not self.kl_weight:
            raise ValueError("`train.kl_top` says how `train.kl_weight` is counted, and that is 0; leave it out")
        return self

    @model_validator(mode="after")
    def _spikes_are_looked_for(self) -> Self:
        given = sorted(self.model_fields_set & {"spike_window", "spike_score"})
        if self.on_spike == "off" and given:
            raise ValueError(f"train.on_spike is off; leave {' and '.join(f'train.{name}' for name in given)} out")
        return self


class EngineSection(Section):
    """How the processes of a run share the model."""

    name: Literal["auto", "single", "ddp", "fsdp2", "zero1", "zero2", "zero3"] = "auto"
    """`ddp`: the whole model in each process. `fsdp2`: a part of every weight, gradient and moment in each. `zero1`,
    `zero2`, `zero3`: DeepSpeed divides the moments, gradients too, weights too. `auto`: one process is `single`;
    several are the first that fits by the forecast of memory: `ddp`, `fsdp2`, `fsdp2` with smaller micro-batches, and
    on GPUs with `offload`.
    """
    processes: Count | None = None
    """How many processes train on this machine; by default as many as it has GPUs, or one. Under a launcher (torchrun,
    accelerate, srun) that one says how many.
    """
    reshard: bool = True
    """Of `fsdp2`: whether a block's weights are given back between its forward and its backward pass (ZeRO stage 3).
    `false` keeps them (stage 2): more memory, fewer exchanges.
    """
    replicas: Count = 1
    """Of `fsdp2`: in so many groups of processes each has the whole model between them (hybrid sharding)."""
    offload: bool = False
    """Of `fsdp2` and `zero3`: whether weights, gradients and moments wait on the host while they are not needed. Of
    `zero1` and `zero2`: the moments, which are then moved there.
    """
    deepspeed: FilePath | None = None
    """Of `zero1`, `zero2`, `zero3`: a DeepSpeed configuration (JSON). It may say what the recipe says, or `"auto"`, and
    besides how DeepSpeed does it: sizes of buckets, prefetching, logs. What contradicts the recipe is refused.
    """
    timeout: Annotated[float, Field(gt=0, le=86400)] = 600.0
    """Seconds that a process waits for another before the run ends with exit code 8."""
    restarts: Annotated[int, Field(ge=0, le=100)] = 0
    """How often the processes that fulltune starts on one machine are started anew, to go on from the last checkpoint,
    where one was killed, did not answer or failed of no known cause. Under a launcher its own setting counts (`torchrun
    --max-restarts`); one process alone, and machines that meet by `--rendezvous`, are not started anew.
    """

    @model_validator(mode="after")
    def _one_is_single(self) -> Self:
        if self.name == "single" and self.processes not in (None, 1):
            raise ValueError(f"`engine.processes` is {self.processes}, and `engine.name` is single: give one of them")
        return self

    @model_validator(mode="after")
    def _only_where_it_acts(self) -> Self:
        fields = type(self).model_fields
        for name, engines in ACTS.items():
            if vars(self)[name] != fields[name].default and self.name not in engines:
                who = " or ".join(engines)
                raise ValueError(f"`engine.{name}`: only the engine {who} does this; add engine.name: {engines[0]}")
        return self


class EvaluateSection(Section):
    """When to measure, and what to show."""

    every: Cadence = Every(1.0, "epochs")
    """Between evaluations: updates, `0.5 epochs` or `10 min`; also before the first and after the last update."""
    samples: Annotated[int, Field(ge=0, le=MOST)] = 3
    """Held-out prompts answered before and after, greedily."""
    sample_tokens: Count = 96
    """Most tokens of such an answer."""
    test: bool = True
    """Whether `data.test` is measured before the first update and of the result; it chooses nothing. A sweep's trials
    do not look at it.
    """
    kl_tokens: Annotated[int, Field(ge=0, le=MOST)] = 16384
    """At how many tokens of data.retention, at most, the KL divergence from the base is measured (`retention.kl`); they
    are spread over the texts. The base reads these texts once, before the first update. 0: it is not measured.
    """
    kl_top: Annotated[int, Field(ge=1, le=4096)] = 64
    """How many of the base's likeliest next tokens are told apart in it; all others count as one."""
    suites: Suites = ()
    """Questions that the base and the result are asked, scored with intervals: a suite file, a mapping such as
    `{use: gsm8k, data: test.jsonl}`, or a list of them (docs/evaluation.md).
    """
    suites_every: Cadence | None = None
    """Between two times that suites are asked while training, held-out loss beside them; by default they are asked of
    the base and of the result only, since answers cost far more than a loss.
    """
    earlier_tasks: bool = True
    """Whether a run whose `model.path` is another run, or the model in its folder, measures what that one was judged by
    too: its held-out data, as further `data.retention`, and its suites; likewise of the runs before it. Nothing of them
    is trained on.
    """
    batch_tokens: Count | None = None
    """Most tokens of a batch of questions, padding and answers included; by default those of a micro-batch. It changes
    no score.
    """
    gate: GateSection | None = None
    """What must hold of the result for the verdict to be SHIP, such as `{min_gain: 0.1, retention: {max_loss_increase:
    0.02}}` (docs/retention.md); by default a gain above 0 and what `checkpoint.best_by` asks, which for
    retention loss is at most 0.05 above the base's. It decides the exit code of `--gate`.
    """

    @model_validator(mode="after")
    def _suites_are_asked(self) -> Self:
        given = [name for name in ("suites_every", "batch_tokens") if vars(self)[name] is not None]
        if given and not self.suites:
            raise ValueError(f"`evaluate.{given[0]}` is of suites, and there are none in evaluate.suites")
        return self


class CheckpointSection(Section):
    """When to save, what to keep, when to stop early."""

    every: Cadence = Every(1.0, "epochs")
    """Between checkpoints; a new best and the last update are saved in any case."""
    keep: Count = 2
    """How many of the newest stay on disk; the best stays besides."""
    best_by: BestByRule = BestBy()
    """Which score decides what is best, such as `retention.loss` or, of several sources, `heldout.chat.loss`; or a rule
    such as `{score: heldout.loss, retention: {max_loss_increase: 0.05}}` (docs/retention.md). What breaks it is never
    best.
    """
    patience: Count | None = None
    """Stop after so many evaluations in a row without a new best, by the same rule; by default never."""
    signals: Signals = DEFAULT
    """Signals that end a run in order: what is done is saved, and the same command goes on. The same signal again ends
    it at once.
    """


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
    engine: EngineSection = EngineSection()
    evaluate: EvaluateSection = EvaluateSection()
    checkpoint: CheckpointSection = CheckpointSection()
    export: ExportSection = ExportSection()

    @model_validator(mode="after")
    def _compiled_where_it_can_be(self) -> Self:
        if self.train.compile and self.engine.name in ZERO:
            raise ValueError("`train.compile`: DeepSpeed reaches into blocks; leave it out, or take another engine")
        if self.train.compile and self.memory.activations_wait:
            raise ValueError("`train.compile`: what compiled blocks keep cannot wait on the host (memory.offload)")
        if self.train.compile and self.memory.mlp_tile is not None:
            raise ValueError("`train.compile`: a compiled block is one piece, and memory.mlp_tile takes its MLP apart")
        return self

    @property
    def chooses(self) -> bool:
        """Whether a best checkpoint is wanted: without held-out data only if a score is named to choose by."""
        return bool(self.data.heldout) or "best_by" in self.checkpoint.model_fields_set
