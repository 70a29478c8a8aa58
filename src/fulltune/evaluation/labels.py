"""Metrics of classification: accuracy, F1 over classes, and who was taken for whom."""

import hashlib
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from fulltune.base.results import Confusion
from fulltune.evaluation.answers import Answer, Items, Kind, Mean, Reference, best, required

_OTHER = "(anything else)"
"""Stands in a confusion table for answers that are no label."""


def accuracy() -> Mean:
    """Share of answers that are the label, white space at the ends aside."""
    return best(lambda text, label: float(text.strip() == label.strip()))


@lru_cache(maxsize=4096)
def number_of(label: str) -> float:
    """A label as a number, the same on every machine and in every process: 52 bits of its SHA-256, which a float holds.

    Two of a million labels share a number in one of ten thousand cases.
    """
    return float(int.from_bytes(hashlib.sha256(label.strip().encode()).digest()[:8]) >> 12)


class F1:
    """F1 of classes that were predicted. Classes are the labels that references have; other answers are just wrong.

    `average`: `macro`, the mean of each class's own, or `micro`, that of all decisions together. As scikit-learn's
    f1_score with `labels` set to the references' labels; a class that is never named right has 0.
    """

    for_kinds: ClassVar[tuple[Kind, ...]] = ("answer", "choice")
    better: ClassVar[Literal["higher", "lower"]] = "higher"

    def __init__(self, average: Literal["macro", "micro"]) -> None:
        self._average = average

    def items(self, answers: Sequence[Answer], references: Sequence[Reference]) -> list[list[float]]:
        pairs = [
            (number_of(required(reference.texts)[0]), number_of(answer.text))
            for answer, reference in zip(answers, references, strict=True)
        ]
        return [[float(wanted == said), wanted, said] for wanted, said in pairs]

    def total(self, items: Items) -> float:
        wanted, said = items[:, 1], items[:, 2]
        classes, place = np.unique(wanted, return_inverse=True)
        right = np.bincount(place, weights=items[:, 0], minlength=len(classes))
        there = np.bincount(place, minlength=len(classes))
        named = _counted(said, classes)
        if self._average == "micro":
            return float(2 * right.sum() / (there.sum() + named.sum()))
        return float((2 * right / (there + named)).mean())


def _counted(said: NDArray[np.float64], classes: NDArray[np.float64]) -> NDArray[np.int64]:
    """How often each class was named; what is no class is not counted."""
    at = np.searchsorted(classes, said).clip(max=len(classes) - 1)
    return np.bincount(at[classes[at] == said], minlength=len(classes))


class Confusions:
    """Remembers the labels of questions, and says from the items of an F1 which was taken for which."""

    def __init__(self) -> None:
        self._names: dict[float, str] = {}

    def see(self, references: Iterable[Reference]) -> None:
        """Remember the labels of these questions; what is said is not kept, so this does not grow with them."""
        for reference in references:
            label = required(reference.texts)[0].strip()
            self._names[number_of(label)] = label

    def table(self, items: Items) -> Confusion:
        """Rows are the right labels, columns what was said; the last column is what is no label."""
        numbers = sorted(self._names, key=lambda number: self._names[number])
        place = {number: at for at, number in enumerate(numbers)}
        counts = [[0] * (len(numbers) + 1) for _ in numbers]
        for (wanted, said), count in Counter(map(tuple, items[:, 1:].tolist())).items():
            counts[place[wanted]][place.get(said, len(numbers))] += count
        labels = (*(self._names[number] for number in numbers), _OTHER)
        return Confusion(labels=labels, counts=tuple(map(tuple, counts)))
