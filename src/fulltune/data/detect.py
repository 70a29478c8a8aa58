"""Which format a source has, told from the keys of its rows."""

from collections import Counter
from collections.abc import Mapping, Sequence

from fulltune.base.errors import DataError
from fulltune.data.example import Row

_KEYS: Mapping[str, frozenset[str]] = {
    "messages": frozenset({"messages"}),
    "sharegpt": frozenset({"conversations"}),
    "instruction": frozenset({"instruction", "output"}),
    "prompt_completion": frozenset({"prompt", "completion"}),
    "input_output": frozenset({"segments"}),
    "text": frozenset({"text"}),
}
_DECIDES: Mapping[str, tuple[frozenset[str], ...]] = {
    "preference": (frozenset({"chosen", "rejected"}),),
    "tokens": (frozenset({"input_ids"}),),
    "classification": (frozenset({"text", "label"}), frozenset({"text", "labels"})),
}
"""Formats whose keys decide, whatever else a row has."""


def detect(row: Row) -> str | None:
    """The one format whose keys the row has; None if there is none, or more than one."""
    for name, choices in _DECIDES.items():
        if any(keys <= row.keys() for keys in choices):
            return name
    found = [name for name, keys in _KEYS.items() if keys <= row.keys()]
    return found[0] if len(found) == 1 else None


def detect_source(rows: Sequence[Row], where: str) -> str:
    """The format that most of the first rows have. DataError names the keys if that cannot be said."""
    seen = Counter(detect(row) for row in rows)
    del seen[None]
    if not seen:
        keys = ", ".join(sorted({key for row in rows for key in row})) or "none"
        known = "; ".join(f"{name} ({', '.join(sorted(keys))})" for name, keys in _KEYS.items())
        raise DataError(
            f"the rows' keys ({keys}) fit no format, or more than one",
            where=where,
            mend=f"name your columns beside the path, `columns: {{prompt: question, completion: answer}}`, "
            f"or say `format:`, one of {known}",
        )
    return str(seen.most_common(1)[0][0])
