"""Kinds of values that recipe fields share: cadences, warm-ups, sources, and what is written short."""

import re
from typing import Annotated, Any

from pydantic import BeforeValidator, PlainSerializer, PlainValidator, WithJsonSchema

from fulltune.base.records import Every, Unit

_CADENCE = re.compile(r"(\d+(?:\.\d+)?)\s*(updates?|epochs?|min(?:utes?)?)?")
_UNITS: dict[str, Unit] = {"upd": "updates", "epo": "epochs", "min": "minutes"}


def every(value: Any) -> Every:
    """`50` (updates), `0.5 epochs` or `10 min`; ValueError if it is no cadence."""
    if isinstance(value, Every):
        return value
    plain = isinstance(value, int | str) and not isinstance(value, bool)
    found = _CADENCE.fullmatch(str(value).strip()) if plain else None
    if found is None or float(found[1]) <= 0:
        raise ValueError("write a number of updates such as 50, or `0.5 epochs`, or `10 min`")
    unit = _UNITS[(found[2] or "updates")[:3]]
    if unit == "updates" and not float(found[1]).is_integer():
        raise ValueError("updates are counted in whole numbers")
    return Every(float(found[1]), unit)


Cadence = Annotated[
    Every,
    PlainValidator(every),
    PlainSerializer(str),
    WithJsonSchema({"anyOf": [{"type": "integer", "minimum": 1}, {"type": "string", "pattern": _CADENCE.pattern}]}),
]


def is_number(value: Any) -> bool:
    """True for int and float, not for bool."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def warmup(value: Any) -> Any:
    """A share of the run below 1, or a whole number of updates; `1.0` could mean either and is refused."""
    if not is_number(value) or value < 0:
        raise ValueError("write a share of the run below 1, such as 0.06, or a whole number of updates, such as 100")
    if isinstance(value, float) and value >= 1:
        raise ValueError(f"{value} is neither a share below 1 nor a whole number; for updates write {value:.0f}")
    return value


Warmup = Annotated[int | float, BeforeValidator(warmup)]


def _listed(value: Any) -> Any:
    """`path`, `{path: ...}` or a list of either, as a tuple of mappings."""
    entries = list(value) if isinstance(value, list | tuple) else [value]
    return tuple({"path": entry} if isinstance(entry, str) else entry for entry in entries)


Listed = BeforeValidator(_listed)
