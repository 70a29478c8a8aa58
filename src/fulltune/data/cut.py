"""Documents that do not fit an example: cut into several, or several joined into one."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from fulltune.base.records import IGNORE
from fulltune.data.render import Encoded


def joined(documents: Sequence[Encoded]) -> Encoded:
    """One example of all: each ends with its own end token, and none is taught to begin another."""
    return Encoded(
        np.concatenate([one.ids for one in documents]),
        np.concatenate([one.labels for one in documents]),
        np.concatenate([one.weights for one in documents]),
        frozenset().union(*(one.notes for one in documents)),
    )


def pieces(encoded: Encoded, length: int) -> Iterator[Encoded]:
    """Examples of up to `length` tokens; each begins with the last token before it, so each is predicted once."""
    if len(encoded.ids) <= length:
        yield encoded
        return
    for start in range(0, len(encoded.ids) - 1, length - 1):
        piece = slice(start, start + length)
        labels, weights = encoded.labels[piece].copy(), encoded.weights[piece].copy()
        labels[-1], weights[-1] = IGNORE, 0
        made = replace(encoded, ids=encoded.ids[piece], labels=labels, weights=weights)
        if made.supervised:
            yield made
