"""The labels of classification rows: how many of each, which look like slips of another, how uneven they are."""

import difflib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass

_LIKE = 0.65
"""Similarity of two spellings from which a rare one may be a slip of the other (ratio of Ratcliff and Obershelp)."""
_RARE = 0.05
"""Share of its likely counterpart below which a label counts as rare."""


@dataclass(frozen=True, slots=True)
class Merge:
    """A label that is probably a slip of another one."""

    label: str
    rows: int
    into: str
    why: str


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


def label_facts(counts: Mapping[str | int | float | bool | None, int]) -> LabelFacts:
    """The facts about labels that were counted, or about none."""
    ordered = sorted(((json.dumps(label, ensure_ascii=False), count) for label, count in counts.items()), key=_by_count)
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
        merges=_merges({label: count for label, count in counts.items() if isinstance(label, str) and label.strip()}),
    )


def _by_count(item: tuple[str, int]) -> tuple[int, str]:
    return item[1], item[0]


def _merges(counts: Mapping[str, int]) -> tuple[Merge, ...]:
    """For each label the most frequent one that it may be a slip of."""
    merges = []
    for label, count in sorted(counts.items(), key=_by_count):
        others = [(other, more) for other, more in counts.items() if (more, other) > (count, label)]
        for other, more in sorted(others, key=_by_count, reverse=True):
            if why := _slip(label, count, other, more):
                merges.append(Merge(label, count, other, why))
                break
    return tuple(merges)


def _slip(label: str, count: int, other: str, more: int) -> str:
    if label.strip().casefold() == other.strip().casefold():
        return "differs in case or spacing"
    if count > _RARE * more:
        return ""
    if sorted(label.casefold()) == sorted(other.casefold()):
        return "rare, and the same letters in another order"
    ratio = difflib.SequenceMatcher(None, label.casefold(), other.casefold()).ratio()
    return f"rare, and {ratio:.2f} alike" if ratio >= _LIKE and min(len(label), len(other)) > 2 else ""
