"""How a model would be trained, as far as memory depends on it: engine, what it divides, largest pass. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from fulltune.base.formats import BYTES, PrecisionPlan
from fulltune.base.records import Checkpointing, EngineName, Layout

DIVIDED: Mapping[EngineName, tuple[str, ...]] = {
    "single": (),
    "ddp": (),
    "fsdp2": ("weights", "gradients", "moments"),
    "zero1": ("moments",),
    "zero2": ("gradients", "moments"),
    "zero3": ("weights", "gradients", "moments"),
}
"""What each engine divides among its processes; all else is whole in each."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pass:
    """The largest forward and backward pass of a run in one process."""

    rows: int
    width: int
    """Tokens of a row, padding included."""
    taught: int
    """Tokens that have a loss."""
    several: bool
    """Whether gradients of another micro-batch are there already while it is made."""
    longest: int = 1
    """Tokens of the longest example."""

    @property
    def tokens(self) -> int:
        """Padding included."""
        return self.rows * self.width


@dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """How a model would be trained, as far as memory depends on it."""

    engine: EngineName
    processes: int
    dtypes: PrecisionPlan
    kind: Literal["cpu", "cuda"]
    layout: Layout = "padded"
    checkpointing: Checkpointing = "none"
    eager: bool = False
    """Whether attention writes its weights out, a number for each pair of tokens."""
    blockwise: bool = False
    """Whether attention may keep its weights below the diagonal, of rows that are not too long (model/attention.py)."""
    compiled: bool = False
    masks: bool = True
    """Whether attention of packed rows reads a mask, and keys for every head."""
    reshard: bool = True
    replicas: int = 1
    offload: bool = False
    tile: int | None = None
    """Tokens that an MLP computes at once; None: all."""
    waits: bool = False
    """Whether what blocks keep for the backward pass waits on the host."""
    moments_wait: bool = False
    """Whether moments do, between updates."""

    @property
    def shards(self) -> int:
        """Processes that divide the model among them."""
        return self.processes // self.replicas

    def divided(self, what: str) -> int:
        """By how much something is divided."""
        return self.shards if what in DIVIDED[self.engine] else 1

    @property
    def checkpointed(self) -> bool:
        """Whether blocks are made again in the backward pass, one after the other."""
        return self.checkpointing != "none"

    @property
    def spares(self) -> bool:
        """Whether blocks may keep less for the backward pass (model/projections.py, model/norms.py)."""
        return self.kind == "cpu" and not self.compiled and not DIVIDED[self.engine]

    @property
    def compute(self) -> int:
        """Bytes of a number in matrix products."""
        return BYTES[self.dtypes.compute]

    @property
    def stream(self) -> int:
        """Bytes of a number in the hidden states between blocks: as the embedding gives them."""
        # FSDP2 gathers weights in the format of computing, ZeRO holds them so; else they are used as they are held.
        return self.compute if self.engine == "fsdp2" or self.stage else BYTES[self.dtypes.weights]

    @property
    def stage(self) -> int:
        """Of ZeRO; 0 for any other engine."""
        return int(self.engine.removeprefix("zero")) if self.engine.startswith("zero") else 0
