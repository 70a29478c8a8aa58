"""An example as numbers: token ids, and the label and its weight at each place."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from fulltune.base.records import IGNORE


@dataclass(frozen=True, slots=True)
class Encoded:
    """One example as numbers. `labels[i]` is the token to be predicted AT i, already shifted; IGNORE: not taught.

    `ids`, `labels`: int32 [tokens]; `weights`: float32 [tokens], the factor of each label's loss.
    """

    ids: NDArray[np.int32]
    labels: NDArray[np.int32]
    weights: NDArray[np.float32]
    notes: frozenset[str] = frozenset()
    """Codes of what is odd about it and taught all the same."""
    cut: bool = False
    """Whether its end was cut off."""

    @property
    def supervised(self) -> int:
        """How many tokens are taught."""
        return int(np.count_nonzero(self.labels != IGNORE))


@dataclass(slots=True)
class Marked:
    """A conversation as tokens, and what the tokens [first, end) of each taught turn weigh."""

    ids: NDArray[np.int32]
    spans: list[tuple[int, int, float]]
    notes: frozenset[str]


def shift(ids: NDArray[np.int32], weights: NDArray[np.float32], notes: frozenset[str] = frozenset()) -> Encoded:
    """From "token i weighs w as something to be produced" to labels at the position that predicts it."""
    labels = np.full(len(ids), IGNORE, np.int32)
    labels[:-1] = np.where(weights[1:] > 0, ids[1:], IGNORE)
    shifted = np.zeros(len(ids), np.float32)
    shifted[:-1] = weights[1:]
    return Encoded(ids, labels, shifted, notes)


def shifted(marked: Sequence[Marked], everything: bool) -> list[Encoded]:
    """As `shift`, of many at once; `everything`: also tokens outside of spans are taught."""
    if not marked:
        return []
    ids = np.concatenate([one.ids for one in marked])
    ends = np.cumsum([len(one.ids) for one in marked]).tolist()
    starts = [0, *ends]
    # Of each token as something to be produced; behind the last one nothing is.
    produced = np.full(len(ids) + 1, float(everything), np.float32)
    for start, one in zip(starts, marked, strict=False):
        for first, end, weight in one.spans:
            produced[start + first : start + end] = weight
    weights = produced[1:]
    weights[np.array(ends) - 1] = 0
    labels = np.full(len(ids), IGNORE, np.int32)
    np.copyto(labels[:-1], ids[1:], where=weights[:-1] > 0)
    return [
        Encoded(ids[start:end], labels[start:end], weights[start:end], one.notes)
        for start, end, one in zip(starts, ends, marked, strict=False)
    ]


def cut_off(encoded: Encoded, length: int) -> Encoded:
    """The first `length` tokens; the last of them predicts nothing, and no stop token is put in its place."""
    labels, weights = encoded.labels[:length].copy(), encoded.weights[:length].copy()
    labels[-1], weights[-1] = IGNORE, 0
    return replace(encoded, ids=encoded.ids[:length], labels=labels, weights=weights, cut=True)
