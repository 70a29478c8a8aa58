"""How results are written to standard output: JSON for programs, a table for people. No secrets, nothing to obey."""

import json
from collections.abc import Mapping
from typing import Any

from fulltune.base.secrets import masked, masked_tree
from fulltune.base.visible import visible


def as_json(values: Any, *, rows: bool = False) -> str:
    """Indented, every character as it is. `rows`: they are the user's data, which is shown as it is."""
    return json.dumps(values if rows else masked_tree(values, keys=False), indent=2, ensure_ascii=False)


def as_table(values: Mapping[str, Any]) -> str:
    """A name and a value a line."""
    width = max(map(len, values))
    return "\n".join(f"{name.replace('_', ' '):<{width}}  {plain(str(value))}" for name, value in values.items())


def plain(text: str) -> str:
    """What a person may be shown of a message: secrets masked, control characters by their names."""
    return visible(masked(text))
