"""Kinds of values that recipe fields share: cadences, warm-ups, counts, paths, and what is written short."""

import os
import re
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    PlainValidator,
    WithJsonSchema,
)

from fulltune.base.records import Every, Unit
from fulltune.base.stop import Signal

MOST = 10**12
"""More than any run counts of anything; up to here numbers go through floats and JSON unchanged."""

Count = Annotated[int, Field(ge=1, le=MOST)]

_LONGEST_NAME, _LONGEST_PATH = 255, 4095
"""Bytes that Linux and macOS allow."""
_CADENCE = re.compile(r"(\d+(?:\.\d+)?)\s*(updates?|epochs?|min(?:utes?)?)?")
_UNITS: dict[str, Unit] = {"upd": "updates", "epo": "epochs", "min": "minutes"}


def every(value: Any) -> Every:
    """`50` (updates), `0.5 epochs` or `10 min`; ValueError if it is no cadence."""
    if isinstance(value, Every):
        return value
    plain = isinstance(value, int | str) and not isinstance(value, bool)
    found = _CADENCE.fullmatch(str(value).strip()) if plain else None
    if found is None or not 1e-6 <= float(found[1]) <= MOST:
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
    if not is_number(value) or not 0 <= value <= MOST:
        raise ValueError("write a share of the run below 1, such as 0.06, or a whole number of updates, such as 100")
    if isinstance(value, float) and value >= 1:
        raise ValueError(f"{value} is neither a share below 1 nor a whole number; for updates write {value:.0f}")
    return value


Warmup = Annotated[int | float, BeforeValidator(warmup)]


_COMMIT = re.compile(r"[0-9a-f]{40}")


def trusted(value: Any) -> Any:
    """False, or the 40 hexadecimal digits of what was read; code that nobody can name cannot have been read."""
    if value is False or (isinstance(value, str) and _COMMIT.fullmatch(value)):
        return value
    raise ValueError("name the commit whose code you read, by its 40 hexadecimal digits in lower case")


Trust = Annotated[
    Literal[False] | str,
    BeforeValidator(trusted),
    WithJsonSchema({"anyOf": [{"const": False}, {"type": "string", "pattern": f"^{_COMMIT.pattern}$"}]}),
]


_ADDRESS = re.compile(r"[a-z][a-z0-9+.-]*://.+")
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_FILES = (".jsonl", ".json", ".ndjson", ".csv", ".tsv", ".txt", ".md", ".parquet", ".arrow", ".gz", ".zst", ".zip")
"""Endings that no data set of the hub has, and that files often have."""


def is_address(path: str) -> bool:
    """Whether a path is an address such as `s3://bucket/rows.jsonl`."""
    return _ADDRESS.fullmatch(path) is not None


def is_hub_id(path: str) -> bool:
    """Whether a path is written like a data set of the hub, `org/name`; a file of that name goes first."""
    return _HUB_ID.fullmatch(path) is not None and not path.lower().endswith(_FILES)


def can_be_held(path: str) -> bool:
    """Whether a disk can hold a file of this name."""
    try:
        encoded = os.fsencode(path)
    except UnicodeEncodeError:  # half of a surrogate pair
        return False
    fits = len(encoded) <= _LONGEST_PATH and max(map(len, encoded.split(b"/"))) <= _LONGEST_NAME
    return fits and b"\0" not in encoded


def _held(path: str) -> str:
    if not can_be_held(path):
        raise ValueError("no file can have this name: it is too long, or holds a character that is none")
    if path.startswith("~"):  # otherwise it was made absolute when the recipe was read
        raise ValueError(f"there is no home folder {path.partition('/')[0]}; if that is a name, write ./ before it")
    return path


FilePath = Annotated[str, AfterValidator(_held)]


def _listed(value: Any) -> Any:
    """`path`, `{path: ...}` or a list of either, as a tuple of mappings."""
    entries = list(value) if isinstance(value, list | tuple) else [value]
    return tuple({"path": entry} if isinstance(entry, str) else entry for entry in entries)


def _used(value: Any) -> Any:
    """`name`, `{use: ...}` or a list of either, as a tuple of mappings."""
    entries = list(value) if isinstance(value, list | tuple) else [value]
    return tuple({"use": entry} if isinstance(entry, str) else entry for entry in entries)


def _mixed(value: Any) -> Any:
    """Sources that stand for themselves, a path or a list, as a mapping."""
    return {"sources": value} if isinstance(value, str | list) else value


def _names(value: Any) -> Any:
    """A list of names as a tuple, none of which stands there twice."""
    if isinstance(value, list | tuple) and len(set(map(str, value))) < len(value):
        raise ValueError("a name stands there twice")
    return tuple(value) if isinstance(value, list) else value


Names = Annotated[tuple[str, ...], BeforeValidator(_names)]
Listed = BeforeValidator(_listed)
Used = BeforeValidator(_used)
Mixed = BeforeValidator(_mixed)


def _signals(value: Any) -> Any:
    """A name or a list of names as a tuple, none of which stands there twice."""
    return _names([value] if isinstance(value, str) else value)


Signals = Annotated[tuple[Signal, ...], BeforeValidator(_signals)]


Share = Annotated[float, Field(ge=0, lt=1)]


class Section(BaseModel):
    """What all sections share: frozen, strict, no unknown keys, the docstring below a field describes it."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        strict=True,
        use_attribute_docstrings=True,
        validate_default=True,
        allow_inf_nan=False,
    )
