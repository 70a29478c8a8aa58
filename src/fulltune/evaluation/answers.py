"""What a model gave to a question, what was asked for, and what a metric makes of the two."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from fulltune.base.errors import RecipeError

Kind = Literal["answer", "choice", "text"]
"""What is asked of the model: to say something, to prefer one of several texts, or how likely it finds one text."""

Items = NDArray[np.float64]
"""[questions, numbers]: the first number is what the question scores by itself, the others are what a total needs."""


@dataclass(frozen=True, slots=True)
class Likelihood:
    """How likely a model finds a text, given what stands before it."""

    logprob: float
    """Natural logarithm, summed over the text's tokens."""
    tokens: int
    hits: int
    """Tokens that the model would have said itself: each the most likely one behind those before it."""
    size: int
    """UTF-8 bytes of what the tokens spell."""
    characters: int
    """Of the text without what separates it from the prompt."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What a model gave: a text that it said or chose, and the likelihood of each text that it was asked about."""

    text: str = ""
    likelihoods: tuple[Likelihood, ...] = ()


@dataclass(frozen=True, slots=True)
class Reference:
    """What was asked for: texts of which any is right, and of a choice the number of the right one."""

    texts: tuple[str, ...] = ()
    index: int | None = None


class Metric(Protocol):
    """A score with what every question adds to it, which intervals and paired tests need.

    `for_kinds`: suites whose answers it can read. `better`: which way is up, never guessed from a name.
    """

    for_kinds: ClassVar[tuple[Kind, ...]]
    better: ClassVar[Literal["higher", "lower"]]

    def items(self, answers: Sequence[Answer], references: Sequence[Reference]) -> Sequence[Sequence[float]]:
        """A row of numbers for each question, all equally many: first its own score, then what `total` needs.

        Called with some questions at a time, so a row depends on its question alone.
        """

    def total(self, items: Items) -> float:
        """The score of all these questions together."""


class Mean:
    """A metric that is the mean over questions of what each text scores by itself; the simplest one to write.

    `score(text, references)` gives a number for one answer. Of your own: `def polite(): return Mean(my_function)`.
    """

    for_kinds: ClassVar[tuple[Kind, ...]] = ("answer", "choice")
    better: ClassVar[Literal["higher", "lower"]] = "higher"

    def __init__(self, score: Callable[[str, Sequence[str]], float]) -> None:
        self._score = score

    def items(self, answers: Sequence[Answer], references: Sequence[Reference]) -> list[list[float]]:
        return [
            [float(self._score(answer.text, reference.texts))]
            for answer, reference in zip(answers, references, strict=True)
        ]

    def total(self, items: Items) -> float:
        return float(items[:, 0].mean())


def best(score: Callable[[str, str], float]) -> Mean:
    """The mean of each question's best score over its references."""
    return Mean(lambda text, references: max(score(text, reference) for reference in required(references)))


def required(references: Sequence[str]) -> Sequence[str]:
    """The references; RecipeError if a suite has none."""
    if not references:
        raise RecipeError(
            "this metric compares answers with references, and the suite names none",
            where="answer",
            mend="name the field that holds the right answer",
        )
    return references
