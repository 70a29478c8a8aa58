"""What a run holds in memory, as numbers that travel: a model's shape, and the forecast made of it."""

from dataclasses import dataclass

GIB = 2**30

CHUNK_BYTES = 1 << 28
"""Float32 logits that an objective holds at once: 256 MiB, 500 tokens of a vocabulary of 128k."""
NARROWED = 256
"""Tokens of these that are float32 at once where products are made in 16 bits: more save no time."""
ATTENDED = 1024
"""Tokens of a row up to which the weights of attention may be kept (model/attention.py): they grow as its square."""
AWAY_AT_ONCE = 1 << 24
"""Weights that are moved together at least, where their moments wait on the host (engine/away.py)."""
MOVED_AT_ONCE = {"cpu": 1 << 20, "cuda": 1 << 24}
"""Numbers of a bfloat16 weight that are moved at once, where each is moved by itself (engine/parts.py)."""
CODED_AT_ONCE = 1 << 22
"""Moments that are brought into 8 bits at once: so it takes no more besides, however large the weight."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """What the memory of a training run asks of a model's shape. Numbers are counted, not bytes."""

    block: int
    """Parameters of the largest of the repeated blocks."""
    outside: int
    """Parameters outside of the blocks: embedding, head, last norm."""
    tensor: int
    """Of the largest weight tensor."""
    inner: int
    """Inner sides of the matrices of all blocks together: the rows or columns that are no hidden state. Each is a
    number for each token that the backward pass needs.
    """
    inner_block: int
    """The same of the block that has most of them."""
    widest: int
    """The longest inner side, to which the activation function is applied."""
    heads: int
    """Of attention, in one block."""
    repeated: int
    """By how many numbers keys and values of a token grow where they are copied for each head that shares them."""
    cut: bool
    """Whether the head can be taken apart from the rest, so that logits are made in pieces."""
    matrices: int = 0
    """Of the parameters, those in matrices inside of blocks."""
    longer: int = 0
    """Their longer sides, added up."""
    shorter: int = 0
    """Their shorter sides, added up."""
    mlps: int = 0
    """Of `inner`, those in MLPs that see one token at a time; 0 if blocks have none, or experts in their place."""


@dataclass(frozen=True, slots=True)
class Part:
    """Bytes of something that one process holds: between `low` and `high`."""

    name: str
    low: int
    high: int

    def __str__(self) -> str:
        return f"{self.name} {between(self.low, self.high)}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Forecast:
    """What each process of a run is expected to hold while it trains, by part: of its GPU, or of the host without one.

    Parts add up: what takes the place of something that has gone by then counts only where it is larger.
    """

    engine: str
    offload: bool
    """Whether weights, gradients and moments lie on the host, so that they stand in `host`; of `zero1` and `zero2`
    what the optimizer moves.
    """
    processes: int
    parts: tuple[Part, ...]
    host: tuple[Part, ...] = ()
    """What each process holds on the host besides, where it trains on a GPU."""

    @property
    def low(self) -> int:
        """Bytes without which it does not go."""
        return sum(part.low for part in self.parts)

    @property
    def high(self) -> int:
        """Bytes with which it is expected to go."""
        return sum(part.high for part in self.parts)

    def rows(self) -> dict[str, str]:
        """The forecast as a table: all, then each part."""
        each = f", each of {self.processes} processes" if self.processes > 1 else ""
        by = f"{self.engine} with offload" if self.offload else self.engine
        shown = {"memory": f"{between(self.low, self.high)} GiB{each}, by {by}"}
        shown |= {f"memory: {part.name}": f"{between(part.low, part.high)} GiB" for part in self.parts}
        return shown | {f"host memory: {part.name}": f"{between(part.low, part.high)} GiB" for part in self.host}

    def __str__(self) -> str:
        each = f" for each of {self.processes} processes" if self.processes > 1 else ""
        return f"{between(self.low, self.high)} GiB{each}: {', '.join(str(part) for part in self.parts if part.high)}"


def gib(size: float) -> str:
    """Bytes as GiB, with two digits that say something."""
    return f"{size / GIB:,.1f}" if size >= 10 * GIB else f"{size / GIB:.2f}"


def between(low: float, high: float) -> str:
    """An interval of bytes in GiB; one number where both ends read the same."""
    return gib(low) if gib(low) == gib(high) else f"{gib(low)} to {gib(high)}"
