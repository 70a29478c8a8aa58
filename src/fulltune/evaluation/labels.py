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
    """Counts which label was taken for which, over any number of questions."""

    def __init__(self) -> None:
        self._pairs: Counter[tuple[str, str]] = Counter()
        self._labels: set[str] = set()

    def add(self, answers: Iterable[Answer], references: Iterable[Reference]) -> None:
        """Count these questions too. What is said is kept only if it is a label, so this does not grow without end."""
        for answer, reference in zip(answers, references, strict=True):
            label = required(reference.texts)[0].strip()
            self._labels.add(label)
            self._pairs[label, answer.text.strip()[:200]] += 1

    def table(self) -> Confusion:
        """Rows are the right labels, columns what was said; the last column is what is no label."""
        labels = sorted(self._labels)
        place = {label: number for number, label in enumerate(labels)}
        counts = [[0] * (len(labels) + 1) for _ in labels]
        for (wanted, said), count in self._pairs.items():
            counts[place[wanted]][place.get(said, len(labels))] += count
        return Confusion(labels=(*labels, _OTHER), counts=tuple(map(tuple, counts)))
