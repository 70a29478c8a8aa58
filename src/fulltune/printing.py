"""How results are written to standard output: JSON for programs, a table for people."""

import json
from collections.abc import Mapping
from typing import Any


def as_json(values: Any) -> str:
    """Indented, every character as it is."""
    return json.dumps(values, indent=2, ensure_ascii=False)


def as_table(values: Mapping[str, Any]) -> str:
    """A name and a value a line."""
    width = max(map(len, values))
    return "\n".join(f"{name.replace('_', ' '):<{width}}  {value}" for name, value in values.items())
