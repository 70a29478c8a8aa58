"""Labels of a source, looked at together: slips of the pen that would each become a class of their own."""

import math
from collections import Counter
from collections.abc import Iterator

from fulltune.data.example import RowFault

Label = str | int
_RARE = 10
"""So many times as frequent is what a slip is a slip of."""


class Labels:
    """Remembers where each label stands; what is odd can only be said when all have been seen."""

    def __init__(self) -> None:
        self._counts: Counter[Label] = Counter()
        self._places: dict[Label, list[str]] = {}

    def add(self, label: Label, where: str) -> None:
        """One row has this label."""
        self._counts[label] += 1
        self._places.setdefault(label, []).append(where)

    def faults(self) -> Iterator[tuple[str, RowFault]]:
        """Place and fault of each row with a label of another type than most, or a misspelling of a frequent one.

        A row of several labels is told once.
        """
        kinds = Counter[type]()
        for label, count in self._counts.items():
            kinds[type(label)] += count
        usual = kinds.most_common(1)[0][0] if kinds else str
        told: set[str] = set()
        for label, count in self._counts.items():
            if type(label) is not usual and kinds[type(label)] * _RARE <= kinds[usual]:
                what = f"the label {label!r} is no {usual.__name__}, as {kinds[usual]} others are"
                fault = RowFault("type", what, "write it as the others, or leave the row out")
            elif (meant := self._meant(label, count)) is not None:
                what = f"the label {label!r} stands in {count} rows, {meant!r} in {self._counts[meant]}"
                fault = RowFault("label", what, f"write {meant!r} if that is what it means")
            else:
                continue
            for where in self._places[label]:
                if where not in told:
                    told.add(where)
                    yield where, fault

    def _meant(self, label: Label, count: int) -> str | None:
        if not isinstance(label, str):
            return None
        for other, times in self._counts.most_common():
            if isinstance(other, str) and other != label and times >= count * _times(label, other):
                return other
        return None


def _times(one: str, other: str) -> float:
    """So many times as frequent must the other be, to be what the one means."""
    one, other = " ".join(one.casefold().split()), " ".join(other.casefold().split())
    if one == other:
        return 3
    # Letters in another order, such as `hma`.
    return _RARE if len(one) > 2 and one[0] == other[0] and sorted(one) == sorted(other) else math.inf
