"""The labels of classification rows: how many of each, which look like slips, how uneven they are, and in a split."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass

from fulltune.data.labels import Label, Merge, merges


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelFacts:
    """The classes of a data set. Labels are written as JSON, so that 0 and "0" are told apart."""

    rows: int
    counts: dict[str, int]
    """The rarest first."""
    imbalance: float
    """Rows of the most frequent label for each of the rarest one."""
    evenness: float
    """Entropy over that of equal shares (Pielou 1966): 1 is even, 0 is one label only."""
    kinds: tuple[str, ...]
    """Types that the labels have; more than one hints at a faulty export."""
    empty: int
    """Rows whose label is empty or null."""
    merges: tuple[Merge, ...]
    """Labels that are probably slips of others and that are no faults already: see `data/labels.py`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelShift:
    """How far the label shares of one side of a split are from those of the whole."""

    rows: int
    """Of the side."""
    label: str
    """The label whose share differs most, as JSON; empty if there are no rows."""
    points: float
    """By so many percentage points; negative if the side has less of it."""
    distance: float
    """Total variation distance: the share of the side's rows that would need another label. 0 is the same mix."""


def label_facts(counts: Mapping[Label, int]) -> LabelFacts:
    """The facts about labels that were counted, or about none."""
    ordered = sorted(((_written(label), count) for label, count in counts.items()), key=lambda item: item[::-1])
    total = sum(counts.values())
    shares = [count / total for count in counts.values() if count]
    entropy = -sum(share * math.log(share) for share in shares)
    return LabelFacts(
        rows=total,
        counts=dict(ordered),
        imbalance=ordered[-1][1] / max(ordered[0][1], 1) if ordered else 1.0,
        evenness=entropy / math.log(len(shares)) if len(shares) > 1 else 0.0,
        kinds=tuple(sorted({type(label).__name__ for label in counts})),
        empty=sum(count for label, count in counts.items() if label is None or not str(label).strip()),
        merges=merges(counts),
    )


def label_shares(before: Mapping[Label, int], after: Mapping[Label, int]) -> LabelShift:
    """How far a side of a split (`after`: rows of each label) is from the whole that it was taken from (`before`)."""
    whole, side = sum(before.values()), sum(after.values())
    if not whole or not side:
        return LabelShift(rows=side, label="", points=0.0, distance=0.0)
    labels = dict.fromkeys([*before, *after])
    # Whole numbers, so that of equal shifts the first label is named: rows too many, times the rows of the whole.
    shifts = {label: after.get(label, 0) * whole - before.get(label, 0) * side for label in labels}
    most = max(labels, key=lambda label: abs(shifts[label]))
    return LabelShift(
        rows=side,
        label=_written(most),
        points=100 * shifts[most] / (side * whole),
        distance=sum(map(abs, shifts.values())) / (2 * side * whole),
    )


def _written(label: Label) -> str:
    return json.dumps(label, ensure_ascii=False)
