"""Text -> token ids in which nothing that a row says can become a control token.

A user may write `</s>` or `<|im_end|>`. Parsed as usual it would end the turn; here it stays letters. Before the
template is rendered each such spelling in the row is replaced by one stand-in character, so that every control
token in the rendered text is the template's own; then the text between those is encoded without parsing any.
"""

import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from tokenizers import Encoding
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from fulltune.data.example import RowFault
from fulltune.data.sandbox import CLOSES, OPENS
from fulltune.data.strict import strings
from fulltune.data.template import Tokenizer
from fulltune.data.words import Looked, words_of

_STAND_INS = 0x100000  # the last private-use plane; icon fonts use the one before it
_ANCHORS = ("\n", ".", "a")


@dataclass(frozen=True, slots=True)
class Tokens:
    """Ids and, for each, the characters [start, end) of the text that it stands for."""

    numbers: NDArray[np.int32]
    """The ids."""
    _places: list[tuple[int, int]] | Encoding | Looked

    @property
    def ids(self) -> list[int]:
        """The same as a list."""
        made: list[int] = self.numbers.tolist()
        return made

    @property
    def offsets(self) -> list[tuple[int, int]]:
        """The characters of every token."""
        return self._places if isinstance(self._places, list) else list(self._places.offsets)

    def exactly(self, start: int, end: int, number: int) -> int | None:
        """Which token is this one and stands for exactly these characters; None if there is none, or it is not known.

        Asked for a few places only: the list of all takes eight times as long to make as that of the ids.
        """
        if isinstance(self._places, list):
            return None
        if isinstance(self._places, Looked):
            return self._places.exactly(start, end, number)
        index = self._places.char_to_token(start)
        if index is None or self.numbers[index] != number or self._places.token_to_chars(index) != (start, end):
            return None
        return int(index)


class Speller:
    """Encodes rendered conversations with one tokenizer, which must be a fast one (it reports offsets)."""

    def __init__(self, tokenizer: Tokenizer, also: Collection[int] = ()) -> None:
        """Added tokens in `also` are control tokens too, whether or not the tokenizer calls them special."""
        self._tokenizer = tokenizer
        added = tokenizer.added_tokens_decoder
        control = {number for number, token in added.items() if token.special or number in also}
        self.special_ids = control | set(tokenizer.all_special_ids)
        self._special = {str(added[number].content): number for number in control}
        longest_first = sorted(self._special, key=len, reverse=True)
        self._pattern = re.compile("|".join(map(re.escape, longest_first))) if longest_first else None
        self._names = {chr(_STAND_INS + n): text for n, text in enumerate(sorted(self._special))}
        self._stand_ins = {text: char for char, text in self._names.items()}
        self._taken = re.compile(f"[{''.join(self._names)}{OPENS}{CLOSES}]")
        self._hidden = re.compile(f"[{''.join(self._names)}]") if self._names else None
        self._spell_out = str.maketrans(self._names)
        # A tokenizer with code of its own between the call and the library must be called.
        kind = cast(Any, type(tokenizer))
        self.direct = (
            kind.__call__ is PreTrainedTokenizerBase.__call__
            and kind._encode_plus is PreTrainedTokenizerFast._encode_plus
            and not tokenizer.split_special_tokens
        )
        self._words = words_of(tokenizer.backend_tokenizer) if self.direct else None

    @property
    def names(self) -> Collection[str]:
        """The control tokens as texts."""
        return self._special.keys()

    def spelled(self, value: Any) -> set[str]:
        """The control tokens whose spelling occurs in a text, or in a value's texts."""
        if self._pattern is None:
            return set()
        return set(self._pattern.findall(value if isinstance(value, str) else "\0".join(strings(value))))

    def harmless(self, texts: Iterable[str]) -> bool:
        """Whether `hide` would change none of them."""
        text = "\0".join(texts)
        return not _has_private(text) and (self._pattern is None or not self._pattern.search(text))

    def controls(self, text: str) -> list[tuple[int, int, int]]:
        """The control tokens in a rendered text: where each begins and ends, and its id."""
        if self._pattern is None:
            return []
        return [(*found.span(), self._special[found[0]]) for found in self._pattern.finditer(text)]

    def hide(self, value: Any) -> Any:
        """The same value with each spelling replaced by its stand-in; RowFault if it holds a stand-in already."""
        if isinstance(value, str):
            if _has_private(value) and (found := self._taken.search(value)):
                what = f"the text holds U+{ord(found[0]):X}, a private character that has a meaning of its own here"
                raise RowFault("private_character", what, "remove it from the text")
            if self._pattern is None or not self._pattern.search(value):
                return value
            return self._pattern.sub(lambda found: self._stand_ins[found[0]], value)
        if isinstance(value, dict | Mapping):
            return {self.hide(key): self.hide(inner) for key, inner in value.items()}
        if isinstance(value, list | tuple):
            return [self.hide(inner) for inner in value]
        return value

    def drop(self, value: Any) -> Any:
        """The same value without any spelling, also of what was around one; RowFault if two keys become the same."""
        if isinstance(value, str):
            while self._pattern is not None and self._pattern.search(value):
                value = self._pattern.sub("", value)
            return value
        if isinstance(value, dict | Mapping):
            made = {self.drop(key): self.drop(inner) for key, inner in value.items()}
            if len(made) < len(value):
                what = "without the control tokens that they spell two keys of an object are the same"
                raise RowFault("special_token_text", what, "rename one of them")
            return made
        return [self.drop(inner) for inner in value] if isinstance(value, list | tuple) else value

    def show(self, text: str) -> str:
        """The text with every stand-in spelled out again."""
        return text.translate(self._spell_out) if self.hides(text) else text

    def hides(self, text: str) -> bool:
        """Whether the text holds stand-ins."""
        return _has_private(text) and self._hidden is not None and self._hidden.search(text) is not None

    def encode_all(self, texts: Sequence[str]) -> list[Tokens]:
        """Several rendered texts without stand-ins, control tokens parsed; the tokenizer uses all cores."""
        if not texts:
            return []
        backend = self._tokenizer.backend_tokenizer
        if self.direct and backend.truncation is None and backend.padding is None:
            # As the call below, whose way through lists of lists takes a third of the time again.
            backend.encode_special_tokens = False
            looked = [None if self._words is None else self._words.encode(text) for text in texts]
            rest = [text for text, found in zip(texts, looked, strict=True) if found is None]
            encodings = iter(backend.encode_batch(rest, add_special_tokens=False))
            return [_encoded(next(encodings)) if found is None else Tokens(found.numbers, found) for found in looked]
        made = self._tokenizer(list(texts), add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        return [_tokens(*pair) for pair in zip(made["input_ids"], made["offset_mapping"], strict=True)]

    def encode(self, text: str) -> Tokens:
        """One rendered text, which may hold stand-ins; offsets count in the text as shown."""
        if not self.hides(text):
            return self.encode_all([text])[0]
        hidden = self._by_chunks(text)
        # The chunk-wise way is only trusted where it equals the usual one on a text without spellings.
        harmless = "".join("x" if char in self._names else char for char in text)
        if self._by_chunks(harmless).ids != self.encode_all([harmless])[0].ids:
            raise RowFault(
                "special_token_text",
                "the text spells control tokens, which this tokenizer cannot encode as plain text",
                "remove them from the text",
            )
        return hidden

    def _by_chunks(self, text: str) -> Tokens:
        ids: list[int] = []
        offsets: list[tuple[int, int]] = []
        at = 0
        for chunk, control in self._chunks(text):
            shown = self.show(chunk)
            if shown:
                made = self._tokenizer(
                    shown,
                    add_special_tokens=False,
                    split_special_tokens=True,
                    return_offsets_mapping=True,
                    verbose=False,
                )
                spelled = {self._special[name] for name in self.spelled(shown)}
                if not spelled.isdisjoint(made["input_ids"]):
                    what = "the text spells control tokens, which this tokenizer parses wherever they stand"
                    raise RowFault("special_token_text", what, "remove them from the text")
                ids += made["input_ids"]
                offsets += [(at + start, at + end) for start, end in made["offset_mapping"]]
                at += len(shown)
            if control:
                ids.append(self._special[control])
                offsets.append((at, at + len(control)))
                at += len(control)
        return _tokens(ids, offsets)

    def _chunks(self, text: str) -> Iterator[tuple[str, str]]:
        """Plain text and the control token behind it, in turn."""
        assert self._pattern is not None
        at = 0
        for found in self._pattern.finditer(text):
            yield text[at : found.start()], found[0]
            at = found.end()
        yield text[at:], ""

    def encode_split(self, text: str, borders: Sequence[int]) -> Tokens:
        """As `encode`, but no token crosses a border, and what stands before one is encoded as if nothing followed.

        So the tokens before an answer are those that inference will have put there, also where a tokenizer would
        have merged the prompt's last characters with the answer's first.
        """
        shown = self.show(text)
        if shown != text:
            what = "the text spells control tokens, and the tokenizer merges prompt and answer"
            raise RowFault("special_token_text", what, "remove them from the text")
        pieces = [text[a:b] for a, b in zip((0, *borders), (*borders, len(text)), strict=True)]
        ids, offsets, at = [], [], 0
        for number, piece in enumerate(pieces):
            part = self.encode_all([piece])[0] if number == 0 else self._continue(piece)
            ids += part.ids
            offsets += [(at + start, at + end) for start, end in part.offsets]
            at += len(piece)
        return _tokens(ids, offsets)

    def _continue(self, piece: str) -> Tokens:
        """A text's tokens without those that a tokenizer puts at the start of every text (such as a lone `▁`)."""
        for anchor in _ANCHORS:
            alone, both = self.encode_all([anchor, anchor + piece])
            count, width = len(alone.ids), len(anchor)
            if both.ids[:count] == alone.ids and all(start >= width for start, _ in both.offsets[count:]):
                return Tokens(both.numbers[count:], [(a - width, b - width) for a, b in both.offsets[count:]])
        what = "the tokenizer merges the end of the prompt with the answer, and cannot be kept from it"
        raise RowFault("boundary", what, "end the prompt in the chat template with a line break or a control token")


def _has_private(text: str) -> bool:
    """Whether the text holds a character of the last private-use plane: in UTF-8 they alone begin with the byte F4."""
    return not text.isascii() and b"\xf4" in text.encode("utf-8", "surrogatepass")


def _encoded(encoding: Encoding) -> Tokens:
    return _tokens(encoding.ids, encoding)


def _tokens(ids: Sequence[int], places: list[tuple[int, int]] | Encoding) -> Tokens:
    return Tokens(np.array(ids, np.int32), places)
