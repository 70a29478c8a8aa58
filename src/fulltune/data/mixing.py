"""How the sources of the train split are mixed: shares as asked, and examples as prepared, to what an order takes."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fulltune.base.errors import DataError
from fulltune.base.records import SourceMix, SplitFacts
from fulltune.data.order import Order, Replay
from fulltune.recipe.data import DataSection, Source


@dataclass(frozen=True, slots=True)
class Mixture:
    """The sources of data.train, those of data.replay behind them, and how often each of them comes."""

    paths: tuple[str, ...]
    sizes: tuple[int, ...]
    tokens: tuple[int, ...]
    shares: tuple[float, ...] | None
    """Of the sources of data.train, in examples; None if their sizes decide."""
    replay: Replay | None

    @property
    def own(self) -> tuple[int, ...]:
        """Examples of each source of data.train."""
        return self.sizes if self.replay is None else self.sizes[: -len(self.replay.sizes)]

    def order(self, seed: int) -> Order:
        """The order in which training examples come."""
        return Order(self.own, shares=self.shares, seed=seed, replay=self.replay)

    def positions(self, own: int) -> int:
        """How many positions it takes to see so many examples of data.train, those of replay between them."""
        return own if self.replay is None else self.replay.positions(own)

    @property
    def parts(self) -> tuple[float, ...]:
        """Each source's part of the positions."""
        own = _normal(self.shares or self.own, self.own)
        if self.replay is None:
            return own
        part = float(self.replay.part)
        again = _normal(self.replay.shares or self.replay.sizes, self.replay.sizes)
        return (*(p * (1 - part) for p in own), *(p * part for p in again))

    @property
    def tokens_per_example(self) -> float:
        """Of the examples as they come."""
        means = _means(self.tokens, self.sizes)
        return sum(part * mean for part, mean in zip(self.parts, means, strict=True))

    def seen(self, positions: float) -> tuple[SourceMix, ...]:
        """What so many positions hold of each source."""
        begin = len(self.own)
        return tuple(
            SourceMix(path=path, replay=n >= begin, examples=size, share=part, passes=part * positions / max(size, 1))
            for n, (path, size, part) in enumerate(zip(self.paths, self.sizes, self.parts, strict=True))
        )


def mixture(data: DataSection, train: SplitFacts) -> Mixture:
    """What the recipe asks for, of what was prepared; DataError if there is nothing to mix."""
    again = () if data.replay is None else data.replay.sources
    sources, own = (*data.train, *again), len(data.train)
    # Sources at the end that gave nothing were never counted by the store.
    sizes = (*train.by_source, *[0] * (len(sources) - len(train.by_source)))
    tokens = (*train.tokens_by_source, *[0] * (len(sources) - len(train.tokens_by_source)))
    _require_some(sizes[:own], "data.train", "no example of data.train is left to train on")
    by_tokens = data.share_by == "tokens"
    means = _means(tokens, sizes) if by_tokens else (1.0,) * len(sizes)
    shares = _in_examples(data.train, means[:own])
    replay = None
    if data.replay is not None:
        _require_some(sizes[own:], "data.replay", "no example of data.replay is left to mix in")
        others = _in_examples(again, means[own:])
        part = data.replay.share
        if by_tokens:
            one = _mean(shares or sizes[:own], sizes[:own], means[:own])
            other = _mean(others or sizes[own:], sizes[own:], means[own:])
            part = part / other / (part / other + (1 - part) / one)
        replay = Replay.of(sizes[own:], others, part)
    return Mixture(tuple(source.path for source in sources), sizes, tokens, shares, replay)


def _in_examples(sources: Sequence[Source], means: Sequence[float]) -> tuple[float, ...] | None:
    """Shares as they were asked for, each over the length of its examples; None if there are none."""
    asked = [source.share for source in sources if source.share is not None]
    # A source without examples has no length, and never comes whatever its share.
    return tuple(share / (mean or 1.0) for share, mean in zip(asked, means, strict=True)) if asked else None


def _means(tokens: Sequence[int], sizes: Sequence[int]) -> tuple[float, ...]:
    """Tokens of one example of each source."""
    return tuple(total / max(size, 1) for total, size in zip(tokens, sizes, strict=True))


def _mean(shares: Sequence[float], sizes: Sequence[int], means: Sequence[float]) -> float:
    """Tokens of one example of sources that come in these shares."""
    return sum(part * mean for part, mean in zip(_normal(shares, sizes), means, strict=True))


def _normal(shares: Sequence[float], sizes: Sequence[int]) -> tuple[float, ...]:
    """Shares that sum to 1; of a source without examples 0."""
    there = np.array([share if size else 0.0 for share, size in zip(shares, sizes, strict=True)])
    return tuple((there / there.sum()).tolist())


def _require_some(sizes: Sequence[int], where: str, what: str) -> None:
    if sum(sizes) == 0:
        mend = "mend its rows, name other files, or lower data.heldout if that is a share"
        raise DataError(what, where=where, mend=mend)
