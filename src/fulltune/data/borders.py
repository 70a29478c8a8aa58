"""Where taught turns lie among a conversation's tokens, found without encoding every prompt from its beginning.

The tokens of a text are those of the pieces between its control tokens, each encoded for itself. So a prompt has the
tokens of the whole conversation up to its last control token, and what follows that one, such as `assistant` and a line
break, is the same for every row: one of them is encoded for all. Half of the time would go into prompts otherwise.
"""

import bisect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from fulltune.data.spelling import Speller, Tokens
from fulltune.data.template import Tokenizer

NOT_SERVED = -1
"""In place of a turn's first token: the prompt's tokens are not those that the conversation begins with."""


@dataclass(frozen=True, slots=True)
class Border:
    """The control tokens (start, end, id) before a turn and at its end, and the prompt from the first of them on."""

    before: tuple[int, int, int]
    stop: tuple[int, int, int]
    call: str


class Borders:
    """Finds the first and the last token of turns, where that is certain."""

    def __init__(self, tokenizer: Tokenizer, speller: Speller) -> None:
        self._speller = speller
        # A token that is looked for in normalised text, or only between words, is found by what stands around it.
        raw = tokenizer.backend_tokenizer.normalizer is None
        self._firm = {
            number
            for number, token in tokenizer.added_tokens_decoder.items()
            if speller.direct and (raw or not token.normalized) and not token.single_word
        }

    def of(self, text: str, spans: Sequence[tuple[int, int]]) -> list[Border] | None:
        """For turns [start, end) of a text without stand-ins; None if they must be found by encoding prompts whole."""
        controls = self._speller.controls(text)
        ends = [end for _, end, _ in controls]
        found = []
        for start, end in spans:
            before, stop = bisect.bisect_right(ends, start) - 1, bisect.bisect_left(ends, end)
            if before < 0 or stop == len(ends) or ends[stop] != end or controls[before][2] not in self._firm:
                return None
            found.append(Border(controls[before], controls[stop], text[controls[before][0] : start]))
        return found

    @staticmethod
    def places(borders: Sequence[Border], tokens: Tokens, calls: Mapping[str, Tokens]) -> list[tuple[int, int]] | None:
        """The tokens [first, end) of each turn; None if a control token is not read as one. `calls`: each encoded."""
        found = []
        for border in borders:
            start, end, number = border.before
            call = calls[border.call]
            before, stop = tokens.exactly(*border.before), tokens.exactly(*border.stop)
            if before is None or stop is None or call.exactly(0, end - start, number) != 0:
                return None
            first = before + len(call.numbers)
            same = tokens.numbers[before:first].tobytes() == call.numbers.tobytes()
            found.append((first if same else NOT_SERVED, stop + 1))
        return found
