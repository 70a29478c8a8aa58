"""Text of others as it may go to a terminal: whatever a terminal would obey stands there by its name."""

import json
import unicodedata
from typing import Any

_TURNING = {*"\u061c\u200e\u200f\u2028\u2029", *map(chr, (*range(0x202A, 0x202F), *range(0x2066, 0x206A)))}
"""Characters that turn or break lines: a row could show other text than it teaches."""


def visible(text: str) -> str:
    """Text that no terminal obeys: control characters as their names, line breaks and tabs kept."""
    return "".join(char if char in "\n\t" else _named(char) for char in text)


def _named(char: str) -> str:
    if ord(char) < 0x20:
        return chr(0x2400 + ord(char))
    if char in _TURNING or unicodedata.category(char) in ("Cc", "Cs"):
        return f"<U+{ord(char):04X}>"
    return char


def harmless(values: Any) -> str:
    """JSON for a page, in which no character can end a script element or begin markup; all of it ASCII."""
    text = json.dumps(values, separators=(",", ":"))
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")
