"""The one shape that every raw row becomes, and what may be wrong with a row."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Row = Mapping[str, Any]
"""One raw row: a JSON object."""

Role = Literal["system", "user", "assistant", "tool"]
ROLES: tuple[Role, ...] = ("system", "user", "assistant", "tool")


class RowFault(Exception):
    """A row that cannot be taught as it stands: a short code to count it by, what is wrong, and the mend."""

    def __init__(self, code: str, what: str, mend: str) -> None:
        super().__init__(what)
        self.code, self.what, self.mend = code, what, mend


@dataclass(frozen=True, slots=True)
class Message:
    """One turn. `weight` scales the loss of its tokens (0: not taught); `extra` is what else the row says of it."""

    role: Role
    content: str
    weight: float = 1.0
    extra: Mapping[str, Any] = field(default_factory=dict)

    def turn(self) -> dict[str, Any]:
        """The turn as a chat template wants it."""
        return {"role": self.role, "content": self.content, **self.extra}


@dataclass(frozen=True, slots=True)
class Chat:
    """A conversation, and the tools that the assistant may call in it (JSON Schema, as chat templates take them)."""

    messages: tuple[Message, ...]
    tools: tuple[Mapping[str, Any], ...] = ()


@dataclass(frozen=True, slots=True)
class Text:
    """A plain document; every token of it is taught."""

    text: str


Content = Chat | Text


@dataclass(frozen=True, slots=True)
class Example:
    """One thing to learn from. `id` is a hash of the content; `source`, its `file` and `line` say where it stood."""

    id: str
    source: int
    line: int
    content: Content
    group: str | None = None
    file: int = 0
