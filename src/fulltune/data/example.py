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
    """A plain document. `taught`: the characters [start, end) that are; None for all of them, and an end token."""

    text: str
    taught: tuple[tuple[int, int], ...] | None = None


@dataclass(frozen=True, slots=True)
class Labelled:
    """A text, or a pair of them, and what it is: one label, or with `several` any number."""

    text: str
    pair: str | None
    labels: tuple[str | int, ...]
    several: bool = False


@dataclass(frozen=True, slots=True)
class Preference:
    """A conversation up to a question, and two answers to it of which the first is the better one."""

    prompt: Chat
    chosen: tuple[Message, ...]
    rejected: tuple[Message, ...]


@dataclass(frozen=True, slots=True)
class Tokens:
    """Ids that somebody else made; `labels` stand beside their own ids, not shifted, -100 where nothing is taught."""

    ids: tuple[int, ...]
    labels: tuple[int, ...]


Content = Chat | Text | Labelled | Preference | Tokens
