"""Control tokens that a row spells: letters, left out, or control tokens on purpose, as the recipe says."""

from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Literal

from fulltune.data.example import Chat, Content, RowFault, Text
from fulltune.data.screen import check
from fulltune.data.spans import Found
from fulltune.data.spelling import Speller

ControlTokens = Literal["text", "drop", "keep"]
NOTES: Mapping[ControlTokens, str] = {
    "text": "special_token_text",
    "drop": "special_token_dropped",
    "keep": "special_token_kept",
}
"""What is noted of a row that spells control tokens."""


def without(content: Content, speller: Speller) -> Content:
    """The content without control tokens that its texts spell; RowFault if what is left cannot be taught."""
    if isinstance(content, Chat):
        messages = tuple(
            replace(message, content=speller.drop(message.content), extra=speller.drop(message.extra))
            for message in content.messages
        )
        content = Chat(messages, tuple(speller.drop(tool) for tool in content.tools))
    elif isinstance(content, Text) and content.taught is None:
        content = Text(speller.drop(content.text))
    check(content)
    return content


def require_one_end(chat: Chat, found: Found, speller: Speller, known: Collection[int]) -> None:
    """RowFault if a taught turn writes what ends generation (`known`, or its stop token) before its end."""
    for index, (start, end) in found.spans.items():
        message = chat.messages[index]
        written = speller.spelled([message.content, message.extra])
        *inside, last = speller.controls(found.text[start:end])
        for first, close, number in inside if written else ():
            name = found.text[start + first : start + close]
            if name in written and (number in known or number == last[2]):
                what = f"turn {index + 1} writes {name}, which ends an answer, before the end of the answer"
                raise RowFault("stop_token", what, "remove it there, or say data.control_tokens=drop or text")
