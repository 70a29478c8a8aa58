"""Content -> token ids and labels: loss only on what the assistant must produce, its stop token included.

Which characters of a conversation those are is found in `spans.py`, by two methods that must agree; here they become
tokens. The ids are those that inference would make of the same conversation.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from fulltune.data.beginning import Beginning
from fulltune.data.borders import NOT_SERVED, Border, Borders
from fulltune.data.complete import Completeness
from fulltune.data.control import NOTES, ControlTokens, require_one_end, without
from fulltune.data.encoded import Encoded, Marked, cut_off, shift, shifted
from fulltune.data.example import Chat, Content, Message, RowFault, Text
from fulltune.data.forms import Form, Forms
from fulltune.data.outlines import Outlines, Shown
from fulltune.data.plain import encode
from fulltune.data.spans import Found, Spans, closing
from fulltune.data.spelling import Speller, Tokens
from fulltune.data.strict import strings
from fulltune.data.template import Template, Tokenizer

__all__ = ["Encoded", "Renderer", "TooLong"]

Supervise = Literal["assistant", "last_turn", "completion", "all"]
OverLength = Literal["error", "drop", "truncate", "split"]


class TooLong(Exception):
    """The example has more tokens than allowed, and the recipe says to leave it out."""


@dataclass(frozen=True, slots=True)
class _Span:
    """Where a taught turn lies, [start, end) in the text as shown, what its tokens weigh, and all that precedes it."""

    start: int
    end: int
    weight: float
    head: str


@dataclass(frozen=True, slots=True)
class _Laid:
    """A conversation as text, with its taught spans and what was noticed."""

    text: str
    spans: tuple[_Span, ...]
    notes: frozenset[str]
    spells: bool
    """Whether the text holds stand-ins."""
    borders: list[Border] | None
    """Where the spans are found among the tokens; None if by encoding each span's head."""

    @property
    def texts(self) -> list[str]:
        """What is to be encoded."""
        if self.spells:
            return []
        heads = [span.head for span in self.spans] if self.borders is None else [b.call for b in self.borders]
        return [self.text, *heads]


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
        stop_ids: Collection[int] = (),
        control_tokens: ControlTokens = "text",
    ) -> None:
        """`stop_ids`: what ends generation at inference besides the tokenizer's eos, as the generation config says.

        `control_tokens`: what becomes of control tokens that a row spells.
        """
        self._tokenizer, self._template = tokenizer, template
        self._supervise, self._max_length, self._over_length = supervise, max_length, over_length
        self._control: ControlTokens = control_tokens
        self._known = known = {*stop_ids, *([] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id])}
        self._speller = Speller(tokenizer, known | closing(template, tokenizer))
        self._outlines = Outlines(template)
        self._spans = Spans(template, self._speller, known)
        self._borders = Borders(tokenizer, self._speller)
        self._begins = Beginning(tokenizer)
        self._complete = Completeness(template)
        self._forms = Forms(self._speller, self._spans, self._borders, self._complete)
        self.stop_ids: set[int] = set()

    def render(self, contents: Sequence[Content]) -> list[Encoded | RowFault | TooLong]:
        """One outcome for each, in order."""
        laid = [self._attempt(self._lay, content) for content in contents]
        texts = list(dict.fromkeys(text for item in laid if isinstance(item, _Laid) for text in item.texts))
        made = dict(zip(texts, self._speller.encode_all(texts), strict=True))
        outcomes = [
            self._attempt(self._encode_chat, item, made)
            if isinstance(item, _Laid)
            else self._attempt(self._document, content)
            if item is None
            else item
            for content, item in zip(contents, laid, strict=True)
        ]
        encoded = iter(shifted([one for one in outcomes if isinstance(one, Marked)], self._supervise == "all"))
        return [self._attempt(self._fit, next(encoded)) if isinstance(one, Marked) else one for one in outcomes]

    @property
    def spelled_note(self) -> str:
        """The code that a row is noted with whose texts spell control tokens."""
        return NOTES[self._control]

    def spelled(self, content: Content) -> set[str]:
        """Control tokens that its texts spell."""
        if isinstance(content, Chat):
            return self._speller.spelled("\0".join(_texts(content)))
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

    def _cleared(self, content: Content) -> Content:
        drops = self._control == "drop" and self.spelled(content)
        return without(content, self._speller) if drops else content

    def _lay(self, content: Content) -> _Laid | None:
        """The conversation's text and spans; None for a plain document."""
        content = self._cleared(content)
        if not isinstance(content, Chat):
            return None
        odd = [m.role for m in content.messages if m.role != "assistant" and m.weight != 1]
        if odd and self._supervise == "all":
            raise RowFault("type", f"a {odd[0]} turn has a weight", "only assistant turns can be weighted")
        turns, tools = [message.turn() for message in content.messages], content.tools
        wanted = self._taught(content)
        harmless = self._speller.harmless(_texts(content))
        if not harmless:
            hidden = self._speller.hide(turns), self._speller.hide(tools)  # also to refuse private characters
            turns, tools = hidden if self._control != "keep" else (turns, tools)
        shown = self._outlines.of(turns, tools, wanted)
        form = self._forms.of(turns, wanted, shown) if harmless else None
        if form is None or shown.rendered:
            laid = self._lay_out(content, turns, tools, wanted, shown)
            if form is not None and self._put_together(content, shown, form) != laid:
                self._forms.distrust(shown)
            return laid
        return self._put_together(content, shown, form)

    def _put_together(self, content: Chat, shown: Shown, form: Form) -> _Laid:
        """As `_lay_out`, by what is known of all conversations of its form."""
        places, borders = form.spans(shown), form.borders(shown)
        spans = [
            _Span(start, end, content.messages[index].weight, shown.text[:start])
            for index, (start, end) in places.items()
        ]
        self._begins.require_one(shown.text)
        return _Laid(shown.text, tuple(spans), self._begins.notes(shown.text), False, borders)

    def _lay_out(self, content: Chat, turns: list[Any], tools: Any, wanted: list[int], shown: Shown) -> _Laid:
        """As `_lay`, of any conversation."""
        self._complete.require(turns, tools, shown.text)
        found = self._spans.find(turns, tools, wanted, shown)
        if self._control == "keep":
            require_one_end(content, found, self._speller, self._known)
        if self._supervise == "all" and any(content.messages[i].weight != 1 for i in wanted if i not in found.spans):
            what = f"{self._template.name} rewrites a turn with a weight once others follow, so the weight has no place"
            raise RowFault("template_unstable", what, "leave the weight out, or say data.supervise=last_turn")
        spells = self._speller.hides(found.text)
        if spells:
            self._require_letters(content, found.text)
        self._begins.require_one(found.text)
        spans = [self._span(content.messages[index].weight, index, found) for index in found.spans]
        borders = None if spells else self._borders.of(found.text, [(span.start, span.end) for span in spans])
        return _Laid(found.text, tuple(spans), found.notes | self._begins.notes(found.text), spells, borders)

    def _require_letters(self, chat: Chat, text: str) -> None:
        """RowFault if the template reads control tokens that the row spells, as `</think>` in an answer."""
        said = self._template.render([message.turn() for message in chat.messages], chat.tools, prompt=False)
        if not self._speller.show(text).startswith(said):
            what = "the text spells control tokens, and the chat template acts on them"
            raise RowFault("special_token_text", what, "give thoughts as reasoning_content, or remove them")

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

    def _span(self, weight: float, index: int, found: Found) -> _Span:
        start, end = found.spans[index]
        show, head = self._speller.show, found.text[:start]
        return _Span(len(show(head)), len(show(found.text[:end])), weight, head)

    def _encode_chat(self, laid: _Laid, made: dict[str, Tokens]) -> Marked:
        tokens = self._speller.encode(laid.text) if laid.spells else made[laid.text]
        places = None if laid.borders is None else self._borders.places(laid.borders, tokens, made)
        if places is None:
            places = self._by_heads(laid, tokens, made)
        if any(first == NOT_SERVED for first, _ in places):
            tokens = self._speller.encode_split(laid.text, [span.start for span in laid.spans])
            starts = np.array([start for start, _ in tokens.offsets])
            places = [tuple(np.searchsorted(starts, (span.start, span.end)).tolist()) for span in laid.spans]
        self._begins.require_as_written(laid.text, tokens.numbers)
        for _, end in places:
            self._remember(int(tokens.numbers[end - 1]))
        spans = [(*place, span.weight) for place, span in zip(places, laid.spans, strict=True)]
        return Marked(tokens.numbers, spans, laid.notes)

    def _by_heads(self, laid: _Laid, tokens: Tokens, made: dict[str, Tokens]) -> list[tuple[int, int]]:
        """The tokens [first, end) of each span, its head encoded whole."""
        starts = np.array([start for start, _ in tokens.offsets])
        found = []
        for span in laid.spans:
            head = made[span.head].ids if span.head in made else self._speller.encode(span.head).ids
            first = len(head) if tokens.ids[: len(head)] == head else NOT_SERVED
            found.append((first, int(np.searchsorted(starts, span.end))))
        return found

    def _remember(self, stop: int) -> None:
        """Keep a stop token that is taught. RowFault if the tokenizer made something else of it."""
        if stop not in self._speller.special_ids:
            what = "the tokenizer does not read the stop token behind the answer as one token"
            raise RowFault("template_no_end", what, "use the tokenizer that the chat template was written for")
        self.stop_ids.add(stop)

    def _document(self, content: Content) -> Encoded:
        ids, produced = encode(self._cleared(content), self._tokenizer, self._speller, keep=self._control == "keep")
        encoded = shift(np.array(ids, np.int32), np.array(produced, np.float32))
        # What is too long goes on in the next example: documents do, as a conversation cannot.
        splits = self._over_length == "split" and isinstance(content, Text) and content.taught is None
        return encoded if splits and encoded.supervised else self._fit(encoded)

    def _fit(self, encoded: Encoded) -> Encoded:
        length = len(encoded.ids)
        if length > self._max_length:
            if self._over_length == "drop":
                raise TooLong
            if self._over_length != "truncate":
                what = f"the example has {length:,} tokens, data.max_length allows {self._max_length:,}"
                what += "; only documents can be split" if self._over_length == "split" else ""
                raise RowFault("too_long", what, "raise data.max_length, or say data.over_length=drop or truncate")
            encoded = cut_off(encoded, self._max_length)
        if encoded.supervised == 0:
            what = "no token of it would be taught"
            if length > self._max_length:
                what = f"the prompt alone fills all {self._max_length:,} tokens; {what}"
            raise RowFault("no_trained_tokens", what, "raise data.max_length, or shorten the prompt")
        return encoded


def _texts(chat: Chat) -> list[str]:
    """All that it says, names and arguments of tools too."""
    further = [*(message.extra for message in chat.messages if message.extra), *chat.tools]
    return [*(message.content for message in chat.messages), *(strings(further) if further else ())]
