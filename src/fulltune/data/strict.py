"""JSON as the standard has it, for one row: no NaN, no half characters, no depth that breaks those who read it."""

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from fulltune.data.example import RowFault

DEEPEST = 64
"""Objects and lists inside each other. A tool's schema needs about ten."""
_ESCAPED = re.compile(r"\\u(00[01]|d[89a-f])", re.IGNORECASE)
CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f]")
_SURROGATE = re.compile(r"[\ud800-\udfff]")


class Parser:
    """Reads one value. Afterwards `twice` are the keys given more than once, of which JSON keeps the last."""

    def __init__(self) -> None:
        self._constants: list[str] = []
        self.twice: set[str] = set()
        self._decoder = json.JSONDecoder(parse_constant=self._constants.append, object_pairs_hook=self._pairs)

    def whole(self, text: str) -> Any:
        """The value of the text; JSONDecodeError if it is none, RowFault if it must not be used."""
        self._constants.clear()
        self.twice = set()
        value, end = self.part(text, len(text) - len(text.lstrip(" \t\n\r")))
        if behind := text[end:].strip(" \t\n\r"):
            raise json.JSONDecodeError("Extra data", text, text.index(behind, end))
        return self.checked(value, text)

    def part(self, text: str, at: int) -> tuple[Any, int]:
        """The value that begins at a place of the text, not checked yet, and where it ends; errors as of `whole`."""
        try:
            return self._decoder.raw_decode(text, at)
        except RecursionError as fault:
            raise _too_deep() from fault
        except json.JSONDecodeError:
            raise
        except ValueError as fault:  # integers of more digits than Python reads
            raise RowFault("json_parse", "a number of thousands of digits", "write it as a text") from fault

    def _pairs(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        made = dict(pairs)
        if len(made) < len(pairs):
            keys = [key for key, _ in pairs]
            self.twice |= {key for key in keys if keys.count(key) > 1}
        return made

    def checked(self, value: Any, text: str) -> Any:
        """The value, if nothing forbids to use it; `text`: the JSON that it was read from."""
        if self._constants:
            raise RowFault("json_nan", f"{self._constants[0]} is not JSON", "write null, or leave the row out")
        if text.count("{") + text.count("[") > DEEPEST and _depth(value) > DEEPEST:
            raise _too_deep()
        if _ESCAPED.search(text) and any(_SURROGATE.search(inner) for inner in strings(value)):
            raise RowFault("unicode_surrogate", "half of a surrogate pair, which is no character", "repair the text")
        return value


def has_control(value: Any, text: str) -> bool:
    """Whether a text of the value holds a control character; `text`: the JSON, where they must stand escaped."""
    return _ESCAPED.search(text) is not None and any(CONTROL.search(inner) for inner in strings(value))


def strings(value: Any) -> Iterator[str]:
    """Every text in a value, keys of objects too."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            yield str(key)
            yield from strings(inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from strings(inner)


def _depth(value: Any) -> int:
    """How many objects and lists lie inside each other; counted without recursion."""
    deepest, level = 0, [value]
    while level:
        level = [
            inner
            for outer in level
            if isinstance(outer, dict | list)
            for inner in (outer.values() if isinstance(outer, dict) else outer)
        ]
        deepest += bool(level)
    return deepest


def _too_deep() -> RowFault:
    return RowFault("json_parse", f"nested more than {DEEPEST} deep", "a row is a flat JSON object")
