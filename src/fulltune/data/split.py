"""Which rows are kept back from training: decided by content, so that a row stays on its side when others come."""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from fulltune.recipe.data import KeptBack

TRAIN, HELDOUT, TEST = 0, 1, 2


def place(keys: NDArray[np.uint64]) -> NDArray[np.float64]:
    """A number in [0, 1) for each hash: the same content lies at the same place for ever. float64 [keys]."""
    found: NDArray[np.float64] = (keys >> np.uint64(32)).astype(np.float64) / 0x1_0000_0000
    return found


def sides(
    places: NDArray[np.float64],
    examples: NDArray[np.integer],
    heldout: KeptBack | None,
    test: KeptBack | None,
    strata: NDArray[np.integer] | None = None,
) -> NDArray[np.int8]:
    """TRAIN, HELDOUT or TEST for each row. int8 [rows].

    What is held out lies lowest and what is tested highest, so neither depends on the other's share. Rows at one place
    (one content, or one group) stay together. `examples`: how many each row makes; `strata`: the stratum of each row.
    """
    made = np.full(len(places), TRAIN, np.int8)
    for side, part, at in ((HELDOUT, heldout, places), (TEST, test, 1 - places)):
        if part is None:
            continue
        share = _capped(part, at, examples)
        if part.stratify_by is None or strata is None:
            made[at < share] = side
            continue
        for members in _members(strata):
            free = members[made[members] == TRAIN]
            wanted = round(share * len(members))
            made[free[np.argsort(at[free], kind="stable")[:wanted]]] = side
    return made


def _capped(part: KeptBack, at: NDArray[np.float64], examples: NDArray[np.integer]) -> float:
    """The share, made so small that no more than `max_examples` lie below it, but for rows at the first place."""
    inside = at < part.share
    if part.max_examples is None or int(examples[inside].sum()) <= part.max_examples:
        return part.share
    if part.stratify_by is not None:
        return part.max_examples / max(int(examples.sum()), 1)
    order = np.argsort(at, kind="stable")
    ordered, counts = at[order], np.cumsum(examples[order])
    first_beyond = ordered[int(np.searchsorted(counts, part.max_examples, side="right"))]
    lowest = ordered[examples[order] > 0][0]
    # Everything below the place of the first row that is too many; a single group that is too large stays whole.
    return float(first_beyond) if first_beyond > lowest else float(np.nextafter(lowest, 1))


def _members(strata: NDArray[np.integer]) -> Iterator[NDArray[np.int64]]:
    """The rows of each stratum."""
    order = np.argsort(strata, kind="stable")
    borders = np.flatnonzero(np.diff(strata[order])) + 1
    yield from np.split(order, borders)
