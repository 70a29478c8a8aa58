"""The arithmetic of training speed: what runs took as rates, and how far that is from what the machine can do."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from benchmarks.contestants.course import Trained

WARM = 2
"""Updates at the beginning that are not counted: kernels and buffers are made in them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """One run, without its first WARM updates where nothing else is said."""

    tokens: float
    """Real ones a second: padding is not counted."""
    supervised: float
    seconds: float
    """Of one update, from the end of the one before it."""
    share: float
    """Of the threads' time, the part in which the process computed: less than 0.9, and others were at work."""
    begun: float
    """Seconds from the start of the process to the beginning of the first update."""
    first: float
    """Seconds from there to its end: what is compiled is in it."""
    prepared: float
    peak: int
    """Bytes."""
    loss: float
    """Mean over the supervised tokens of all updates, the first ones too."""


def pace(run: Trained, threads: int) -> Pace:
    """ValueError if there is no update to be counted, or if the numbers are not those of the same updates."""
    updates = len(run.losses)
    if updates <= WARM or {len(run.tokens), len(run.supervised), len(run.marks) - 1} != {updates}:
        raise ValueError(f"{len(run.marks) - 1} moments, {updates} losses, {len(run.tokens)} batches")
    begin, end = run.marks[WARM], run.marks[-1]
    wall, cpu = end.at - begin.at, end.cpu - begin.cpu
    return Pace(
        tokens=sum(run.tokens[WARM:]) / wall,
        supervised=sum(run.supervised[WARM:]) / wall,
        seconds=wall / (updates - WARM),
        share=cpu / (wall * threads),
        begun=run.marks[0].at,
        first=run.marks[1].at - run.marks[0].at,
        prepared=run.prepared,
        peak=run.peak,
        loss=sum(a * b for a, b in zip(run.losses, run.supervised, strict=True)) / sum(run.supervised),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """Operations of one real token, forward and backward, in matrix products alone."""

    body: float
    head: float
    """Of a token that is supervised; others need none."""
    attention: float
    taught: float
    """Share of the tokens that are supervised."""

    @property
    def whole(self) -> float:
        """As it is usually counted: six operations for each parameter of any token, and attention."""
        return self.body + self.head + self.attention


def work(shape: Mapping[str, int], *, length: float, taught: float) -> Work:
    """Of a Llama with tied embeddings; `length`: of an example, on the mean. Attention is causal: half of it."""
    hidden, inter, layers = (shape[name] for name in ("hidden_size", "intermediate_size", "num_hidden_layers"))
    size = hidden // shape["num_attention_heads"]
    block = 2 * hidden * hidden + 2 * hidden * size * shape["num_key_value_heads"] + 3 * hidden * inter
    return Work(
        body=6.0 * layers * block,
        head=6.0 * hidden * shape["vocab_size"],
        attention=12.0 * layers * hidden * length / 2,
        taught=taught,
    )


def bound(asked: Work, rates: Mapping[str, float]) -> float:
    """Tokens a second if nothing took time but matrix products, the head's at supervised tokens alone."""
    seconds = asked.body / rates["body"] + asked.taught * asked.head / rates["head"]
    return 1 / (seconds + asked.attention / rates["attention"])


def mfu(tokens: float, asked: Work, rates: Mapping[str, float]) -> float:
    """Model operations a second, as a part of what the machine does in products of the body's shapes."""
    return tokens * asked.whole / rates["body"]


def fastest(rounds: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Of each kind of product, the best round: contention makes a machine look slow, and a run near its limit."""
    return {kind: max(one[kind] for one in rounds) for kind in rounds[0]}
