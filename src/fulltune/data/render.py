"""Example -> token ids and labels: loss only on what the assistant must produce, its stop token included.

For every taught turn the template is asked twice: for the prompt that would call for the turn, and for the
conversation up to its end. What the second adds to the first is what the model must produce at inference, up to
the stop token. Nothing is searched for in the text, so content that looks like a header cannot mislead.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from fulltune.base.records import IGNORE
from fulltune.data.complete import Completeness
from fulltune.data.example import Chat, Example, Message, RowFault, Text
from fulltune.data.plain import encode
from fulltune.data.spelling import Speller, Tokens
from fulltune.data.template import Template, Tokenizer

Supervise = Literal["assistant", "last_turn", "completion", "all"]
OverLength = Literal["error", "drop", "truncate"]


@dataclass(frozen=True, slots=True)
class Encoded:
    """One example as numbers. `labels[i]` is the token to be predicted AT i, already shifted; IGNORE: not taught.

    `ids`, `labels`: int32 [tokens]; `weights`: float32 [tokens], the factor of each label's loss.
    """

    ids: NDArray[np.int32]
    labels: NDArray[np.int32]
    weights: NDArray[np.float32]

    @property
    def supervised(self) -> int:
        """How many tokens are taught."""
        return int((self.labels != IGNORE).sum())


class TooLong(Exception):
    """The example has more tokens than allowed, and the recipe says to leave it out."""


@dataclass(frozen=True, slots=True)
class _Span:
    """Where the text of a taught turn lies: [start, end) in characters, and what its tokens weigh."""

    start: int
    end: int
    weight: float
    head: str


@dataclass(frozen=True, slots=True)
class _Laid:
    """A conversation as text, with its taught spans."""

    text: str
    spans: tuple[_Span, ...]


class Renderer:
    """Turns examples into tokens, many at a time. It remembers which stop tokens it taught and what it noticed."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        template: Template,
        *,
        supervise: Supervise,
        max_length: int,
        over_length: OverLength,
    ) -> None:
        self._tokenizer, self._template = tokenizer, template
        self._supervise, self._max_length, self._over_length = supervise, max_length, over_length
        self._speller = Speller(tokenizer)
        self._complete = Completeness(template)
        self.stop_ids: set[int] = set()
        self.truncated = 0

    def render(self, examples: Sequence[Example]) -> list[Encoded | RowFault | TooLong]:
        """One outcome for each example, in order."""
        laid = [self._attempt(self._lay, example) for example in examples]
        plain = [item for item in laid if isinstance(item, _Laid) and self._speller.show(item.text) == item.text]
        texts = [item.text for item in plain] + [span.head for item in plain for span in item.spans]
        made = dict(zip(texts, self._speller.encode_all(texts), strict=True))
        outcomes: list[Encoded | RowFault | TooLong] = []
        for example, item in zip(examples, laid, strict=True):
            if isinstance(item, _Laid):
                outcomes.append(self._attempt(lambda item=item: self._fit(self._encode_chat(item, made))))
            elif item is None:
                outcomes.append(self._attempt(lambda example=example: self._fit(self._encode_other(example))))
            else:
                outcomes.append(item)
        return outcomes

    def spelled(self, example: Example) -> set[str]:
        """Control tokens that the example's texts spell; they are taught as letters."""
        content = example.content
        if isinstance(content, Chat):
            return self._speller.spelled([*([m.content, m.extra] for m in content.messages), content.tools])
        # Who marks segments writes control tokens on purpose; in a document they are letters.
        return self._speller.spelled(content.text) if isinstance(content, Text) and content.taught is None else set()

    def prompt(self, messages: Sequence[Message]) -> list[int]:
        """Token ids of a conversation up to where the assistant is to speak, as inference would make them."""
        turns = self._speller.hide([message.turn() for message in messages])
        return self._speller.encode(self._template.render(turns, prompt=True)).ids

    @staticmethod
    def _attempt(act: Any, *args: Any) -> Any:
        try:
            return act(*args)
        except (RowFault, TooLong) as outcome:
            return outcome

    def _lay(self, example: Example) -> _Laid | None:
        """The conversation's text and spans; None for a plain document."""
        content = example.content
        if not isinstance(content, Chat):
            return None
        odd = [m.role for m in content.messages if m.role != "assistant" and m.weight != 1]
        if odd and self._supervise == "all":
            raise RowFault("type", f"a {odd[0]} turn has a weight", "only assistant turns can be weighted")
        turns = self._speller.hide([message.turn() for message in content.messages])
        tools = self._speller.hide(content.tools)
        text = self._template.render(turns, tools, prompt=False)
        spans = [self._span(index, content.messages[index], turns, tools, text) for index in self._taught(content)]
        self._complete.require(turns, tools, text)
        return _Laid(text, tuple(spans))

    def _taught(self, chat: Chat) -> list[int]:
        """Which turns carry loss."""
        roles = [message.role for message in chat.messages]
        turns = [index for index, role in enumerate(roles) if role == "assistant"]
        if self._supervise == "last_turn":
            turns = turns[-1:]
        if self._supervise == "completion":
            last_user = max((index for index, role in enumerate(roles) if role == "user"), default=-1)
            turns = [index for index in turns if index > last_user]
        # With `all` a turn of weight 0 is a span too: the one part of the conversation that is not taught.
        return [index for index in turns if chat.messages[index].weight > 0 or self._supervise == "all"]

    def _span(self, index: int, message: Message, turns: list[Any], tools: list[Any], text: str) -> _Span:
        head = self._template.render(turns[:index], tools, prompt=True)
        last = index == len(turns) - 1
        upto = text if last else self._template.render(turns[: index + 1], tools, prompt=False)
        if not (text.startswith(upto) and upto.startswith(head)):
            raise RowFault(
                "template_unstable",
                f"{self._template.name} writes turn {index + 1} differently when other turns follow",
                "data.supervise=last_turn, or a template whose earlier turns stay as they are",
            )
        show = self._speller.show
        return _Span(len(show(head)), len(show(upto)), message.weight, head)

    def _encode_chat(self, laid: _Laid, made: dict[str, Tokens]) -> Encoded:
        tokens = made[laid.text] if laid.text in made else self._speller.encode(laid.text)
        heads = [made[s.head].ids if s.head in made else self._speller.encode(s.head).ids for s in laid.spans]
        as_served = all(tokens.ids[: len(head)] == head for head in heads)
        if not as_served:
            tokens = self._speller.encode_split(laid.text, [span.start for span in laid.spans])
        starts = np.array([start for start, _ in tokens.offsets])
        # Of each token as something to be produced.
        weights = np.full(len(tokens.ids), float(self._supervise == "all"), np.float32)
        for span, head in zip(laid.spans, heads, strict=True):
            first = len(head) if as_served else int(np.searchsorted(starts, span.start))
            end = int(np.searchsorted(starts, span.end))
            weights[first : self._stop(tokens.ids, first, end) + 1] = span.weight
        return _shift(np.array(tokens.ids, np.int32), weights)

    def _stop(self, ids: list[int], first: int, end: int) -> int:
        """Index of the turn's stop token: the last control token in it, behind which stands only white space."""
        for index in range(end - 1, first - 1, -1):
            if ids[index] in self._speller.special_ids:
                self.stop_ids.add(ids[index])
                return index
            if str(self._tokenizer.decode([ids[index]])).strip():
                break
        raise RowFault(
            "template_no_end",
            f"{self._template.name} ends the assistant's turn without a stop token, so nothing teaches it to stop",
            "let the template write eos_token or another control token behind the answer",
        )

    def _encode_other(self, example: Example) -> Encoded:
        ids, produced = encode(example.content, self._tokenizer, self._speller)
        return _shift(np.array(ids, np.int32), np.array(produced, np.float32))

    def _fit(self, encoded: Encoded) -> Encoded:
        length = len(encoded.ids)
        if length > self._max_length:
            if self._over_length == "drop":
                raise TooLong
            if self._over_length == "error":
                raise RowFault(
                    "too_long",
                    f"the example has {length:,} tokens, data.max_length allows {self._max_length:,}",
                    "raise data.max_length, or say data.over_length=drop or truncate",
                )
            encoded = _cut(encoded, self._max_length)
            self.truncated += encoded.supervised > 0
        if encoded.supervised == 0:
            what = "no token of it would be taught"
            if length > self._max_length:
                what = f"the prompt alone fills all {self._max_length:,} tokens; {what}"
            raise RowFault("no_trained_tokens", what, "raise data.max_length, or shorten the prompt")
        return encoded


def _shift(ids: NDArray[np.int32], weights: NDArray[np.float32]) -> Encoded:
    """From "token i weighs w as something to be produced" to labels at the position that predicts it."""
    labels = np.full(len(ids), IGNORE, np.int32)
    labels[:-1] = np.where(weights[1:] > 0, ids[1:], IGNORE)
    shifted = np.zeros(len(ids), np.float32)
    shifted[:-1] = weights[1:]
    return Encoded(ids, labels, shifted)


def _cut(encoded: Encoded, length: int) -> Encoded:
    """The first `length` tokens; the last of them predicts nothing, and no stop token is put in its place."""
    labels, weights = encoded.labels[:length].copy(), encoded.weights[:length].copy()
    labels[-1], weights[-1] = IGNORE, 0
    return replace(encoded, ids=encoded.ids[:length], labels=labels, weights=weights)
