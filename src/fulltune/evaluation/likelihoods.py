"""Metrics of likelihoods: loss, perplexity, bits per byte, token accuracy; multiple choice, calibration."""

import math
from collections.abc import Callable, Sequence
from typing import ClassVar, Literal, NamedTuple

import numpy as np

from fulltune.base.errors import RecipeError
from fulltune.evaluation.answers import Answer, Items, Kind, Likelihood, Reference

Way = Literal["sum", "characters", "tokens"]
"""What a choice's log-likelihood is divided by before choices are compared: nothing, its characters, its tokens."""


class Sums(NamedTuple):
    """Over some texts: negative log-likelihood, tokens, tokens that the model would have said itself, UTF-8 bytes."""

    nats: float
    tokens: float
    hits: float
    size: float


class OfTokens:
    """A figure of the sums over all tokens of all questions: never a mean of means."""

    for_kinds: ClassVar[tuple[Kind, ...]] = ("text",)
    better: ClassVar[Literal["higher", "lower"]] = "lower"

    def __init__(self, figure: Callable[[Sums], float]) -> None:
        self._figure = figure

    def items(self, answers: Sequence[Answer], references: Sequence[Reference]) -> list[list[float]]:  # noqa: ARG002
        made = []
        for answer in answers:
            (found,) = answer.likelihoods
            sums = Sums(-found.logprob, float(found.tokens), float(found.hits), float(found.size))
            made.append([self._figure(sums), *sums])
        return made

    def total(self, items: Items) -> float:
        return self._figure(Sums(*items[:, 1:].sum(0).tolist()))


class Hits(OfTokens):
    """As OfTokens, where more is better."""

    better: ClassVar[Literal["higher", "lower"]] = "higher"


def loss() -> OfTokens:
    """Negative log-likelihood per token, in nats: the sum over all tokens divided once by their number."""
    return OfTokens(lambda sums: _part(sums.nats, sums.tokens))


def perplexity() -> OfTokens:
    """Exp of the loss, of the one mean over all tokens."""
    return OfTokens(lambda sums: math.exp(min(_part(sums.nats, sums.tokens), 700.0)))


def bits_per_byte() -> OfTokens:
    """Negative log-likelihood in bits, divided by the texts' UTF-8 bytes: comparable between tokenizers (Gao 2020)."""
    return OfTokens(lambda sums: _part(sums.nats / math.log(2), sums.size))


def token_accuracy() -> OfTokens:
    """Share of tokens that are the most likely one behind those before them."""
    return Hits(lambda sums: _part(sums.hits, sums.tokens))


def _part(some: float, all_of_it: float) -> float:
    """0 of a text without tokens, which adds nothing to a total."""
    return some / all_of_it if all_of_it else 0.0


class LastWords:
    """Share of texts of which the model would have said every token itself (LAMBADA, Paperno 2016)."""

    for_kinds: ClassVar[tuple[Kind, ...]] = ("text",)
    better: ClassVar[Literal["higher", "lower"]] = "higher"

    def items(self, answers: Sequence[Answer], references: Sequence[Reference]) -> list[list[float]]:  # noqa: ARG002
        return [[float(answer.likelihoods[0].hits == answer.likelihoods[0].tokens)] for answer in answers]

    def total(self, items: Items) -> float:
        return float(items[:, 0].mean())


def preferred(found: Sequence[Likelihood], by: Way = "sum") -> int:
    """The number of the most likely text; of equals the first."""
    return int(np.argmax(_weighed(found, by)))


def _weighed(found: Sequence[Likelihood], by: Way) -> list[float]:
    sizes = {
        "sum": [1 for _ in found],
        "characters": [one.characters for one in found],
        "tokens": [one.tokens for one in found],
    }
    return [one.logprob / max(1, size) for one, size in zip(found, sizes[by], strict=True)]


class Choice:
    """Share of questions whose right text is the most likely of all.

    `by`: what each log-likelihood is divided by first. `sum` and `characters` are lm-evaluation-harness's `acc` and
    `acc_norm` (Gao 2021).
    """

    for_kinds: ClassVar[tuple[Kind, ...]] = ("choice",)
    better: ClassVar[Literal["higher", "lower"]] = "higher"

    def __init__(self, by: Way) -> None:
        self._by = by

    def items(self, answers: Sequence[Answer], references: Sequence[Reference]) -> list[list[float]]:
        return [
            [float(preferred(answer.likelihoods, self._by) == reference.index)]
            for answer, reference in zip(answers, references, strict=True)
        ]

    def total(self, items: Items) -> float:
        return float(items[:, 0].mean())


class Calibration:
    """Expected calibration error: how far confidence lies from the share that is right (Guo 2017).

    Confidence is the softmax over the choices' log-likelihoods of the most likely one, in `bins` bins of equal width,
    each weighed by its questions. A question's own score is (confidence - right)^2.
    """

    for_kinds: ClassVar[tuple[Kind, ...]] = ("choice",)
    better: ClassVar[Literal["higher", "lower"]] = "lower"

    def __init__(self, *, bins: int = 15) -> None:
        if not 1 <= bins <= 1000:
            raise RecipeError(f"{bins} bins", where="bins", mend="from 1 to 1000")
        self._bins = bins

    def items(self, answers: Sequence[Answer], references: Sequence[Reference]) -> list[list[float]]:
        made = []
        for answer, reference in zip(answers, references, strict=True):
            scores = np.array(_weighed(answer.likelihoods, "sum"))
            confidence = float(1 / np.exp(scores - scores.max()).sum())
            right = float(int(scores.argmax()) == reference.index)
            made.append([(confidence - right) ** 2, confidence, right])
        return made

    def total(self, items: Items) -> float:
        confidence, right = items[:, 1], items[:, 2]
        place = np.ceil(confidence * self._bins).clip(1, self._bins).astype(int) - 1  # (low, high], as in the paper
        gaps = np.bincount(place, weights=confidence - right, minlength=self._bins)
        return float(np.abs(gaps).sum() / len(items))
