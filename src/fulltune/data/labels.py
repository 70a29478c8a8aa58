"""Labels of a source, looked at together: slips of the pen that would each become a class of their own.

Two rules look for them, and this is the one place where they are told apart. *Faults* (`label_faults`) are sure: a
label of another type than nearly all, one that differs from a far more frequent one in case or spacing alone, or the
same letters in another order. A run stops at them, or leaves their rows out (`data.on_bad_row`). *Proposals* (`merges`)
are guesses for people to judge, by how alike two spellings are: the doctor reports them and nothing else comes of
them. A label that is a fault is not proposed again.
"""

import difflib
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from fulltune.data.example import RowFault

Label = str | int | float | bool | None
_OFTEN = 10
"""So many times as frequent is what a slip is a slip of."""
_OFTEN_SPELLED = 3
"""If nothing but case and spacing differ."""
_LIKE = 0.65
"""Similarity of two spellings from which a rare one may be a slip of the other (ratio of Ratcliff and Obershelp)."""
_RARE = 20
"""So many times as frequent is a label that a rare one is proposed to mean."""
_MOST = 1000
"""Labels that are compared with each other."""


def label_faults(counts: Mapping[Label, int]) -> dict[Label, RowFault]:
    """Labels of another type than most, or surely a misspelling of a frequent one; `counts`: rows of each."""
    kinds = Counter[type]()
    for label, count in counts.items():
        kinds[type(label)] += count
    usual = kinds.most_common(1)[0][0] if kinds else str
    meant = _meant({label: count for label, count in counts.items() if isinstance(label, str)})
    faults: dict[Label, RowFault] = {}
    for label, count in counts.items():
        if type(label) is not usual and kinds[type(label)] * _OFTEN <= kinds[usual]:
            what = f"the label {label!r} is no {usual.__name__}, as {kinds[usual]} others are"
            faults[label] = RowFault("type", what, "write it as the others, or leave the row out")
        elif isinstance(label, str) and label in meant:
            other = meant[label]
            what = f"the label {label!r} stands in {count} rows, {other!r} in {counts[other]}"
            faults[label] = RowFault("label", what, f"write {other!r} if that is what it means")
    return faults


@dataclass(frozen=True, slots=True)
class Merge:
    """A label that is probably a slip of another one."""

    label: str
    rows: int
    into: str
    why: str


def merges(counts: Mapping[Label, int]) -> tuple[Merge, ...]:
    """For each label that may be a slip, the most frequent one that it may be a slip of; the rarest first.

    None where there are more than 1,000 labels: these are no classes, and each would be compared with each.
    """
    faults = label_faults(counts)
    spelled = {label: count for label, count in counts.items() if isinstance(label, str) and label.strip()}
    if len(spelled) > _MOST:
        return ()
    frequent = sorted(spelled, key=lambda label: (-spelled[label], label))
    proposed = []
    for label in sorted(spelled.keys() - faults.keys(), key=lambda label: (spelled[label], label)):
        for other in frequent[: frequent.index(label)]:
            if why := _likeness(label, other, spelled[label] * _RARE <= spelled[other]):
                proposed.append(Merge(label, spelled[label], other, why))
                break
    return tuple(proposed)


def _meant(counts: Mapping[str, int]) -> dict[str, str]:
    """Label -> the most frequent one of which it is surely a misspelling, for those that are one."""
    alike: defaultdict[tuple[str, str], list[str]] = defaultdict(list)
    for label in counts:
        for key in _keys(label):
            alike[key].append(label)
    meant = {}
    for label, count in counts.items():
        # The first key is that of the same spelling.
        often = zip((_OFTEN_SPELLED, _OFTEN), _keys(label), strict=False)
        likes = [o for times, key in often for o in alike[key] if o != label and counts[o] >= times * count]
        if likes:
            meant[label] = max(likes, key=lambda other: counts[other])
    return meant


def _keys(label: str) -> Iterator[tuple[str, str]]:
    """Two labels that have one of these in common are alike: but for case and spacing, or for the order of letters."""
    folded = _folded(label)
    yield "spelled", folded
    if len(folded) > 2:  # such as `hma` for `ham`
        yield folded[0], _letters(folded)


def _likeness(label: str, other: str, rare: bool) -> str:
    """Why a label may be a slip of a more frequent one; empty if nothing speaks for it."""
    one, two = _folded(label), _folded(other)
    if one == two:
        return "differs in case or spacing"
    if not rare:
        return ""
    if _letters(one) == _letters(two):
        return "rare, and the same letters in another order"
    matcher = difflib.SequenceMatcher(None, one, two)
    if min(len(one), len(two)) < 3 or _digits(one) != _digits(two) or matcher.quick_ratio() < _LIKE:
        return ""
    ratio = matcher.ratio()
    return f"rare, and {ratio:.2f} alike" if ratio >= _LIKE else ""


def _folded(label: str) -> str:
    """Without case, and with single spaces."""
    return " ".join(label.casefold().split())


def _letters(folded: str) -> str:
    """In order of the alphabet; digits stay in their own, since 36 is not a misspelling of 63."""
    return "".join(sorted(folded)) + _digits(folded)


def _digits(folded: str) -> str:
    return "".join(filter(str.isdigit, folded))
