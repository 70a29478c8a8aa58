"""Where the taught turns lie in conversations of one outline, found once for all of them.

Spans are found by reading a conversation's text (`spans.py`). Where the text is put together from an outline, what is
read of it is the same for every conversation: the template's own words, and contents of which nothing is asked but
that they are there and hold no control token. So spans and borders are found in the outline with veils in place of
contents, and are places among the template's words. That needs three things: no content is blank, none spells a control
token (whoever asks sees to that), and no content can complete one that the template's words begin or end.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fulltune.data.borders import Border, Borders
from fulltune.data.complete import Completeness
from fulltune.data.example import RowFault
from fulltune.data.outlines import Outline, Place, Shown, place
from fulltune.data.spans import Spans
from fulltune.data.spelling import Speller
from fulltune.data.veil import parted, stood_in

_MOST = 1 << 12
"""Forms that are remembered."""


@dataclass(frozen=True, slots=True)
class _Border:
    """As `Border`, with places: where its control tokens begin and end, and their ids."""

    before: tuple[tuple[Place, Place], int]
    stop: tuple[tuple[Place, Place], int]
    call: str


@dataclass(frozen=True, slots=True)
class Form:
    """Places of the taught turns, by their index, and of their borders; None if those must be found otherwise."""

    _spans: Mapping[int, tuple[Place, Place]]
    _borders: Sequence[_Border] | None

    def spans(self, shown: Shown) -> dict[int, tuple[int, int]]:
        """The taught turns [start, end) in a text of this form."""
        return {index: shown.between(places) for index, places in self._spans.items()}

    def borders(self, shown: Shown) -> list[Border] | None:
        """What stands around each of them."""
        if self._borders is None:
            return None
        return [
            Border((*shown.between(one.before[0]), one.before[1]), (*shown.between(one.stop[0]), one.stop[1]), one.call)
            for one in self._borders
        ]


class Forms:
    """Those of the outlines of one template."""

    def __init__(self, speller: Speller, spans: Spans, borders: Borders, complete: Completeness) -> None:
        self._spans, self._borders, self._complete = spans, borders, complete
        self._names = tuple(speller.names)
        cuts = [(name[:size], name[size:]) for name in self._names for size in range(1, len(name))]
        self._begun, self._ended = tuple({begun for begun, _ in cuts}), tuple({ended for _, ended in cuts})
        self._known: dict[Outline, Form | None] = {}

    def of(self, turns: Sequence[Any], wanted: Sequence[int], shown: Shown) -> Form | None:
        """None if the conversation must be read. None of its texts may spell a control token."""
        outline = shown.outline
        if outline is None or any(turn["content"].isspace() for turn in turns):
            return None
        if outline not in self._known:
            if len(self._known) >= _MOST:
                self._known.clear()
            self._known[outline] = self._learn(turns, wanted, outline)
        return self._known[outline]

    def distrust(self, shown: Shown) -> None:
        """What was put together by its form is not what was read: from now on all of its like are read."""
        assert shown.outline is not None
        self._known[shown.outline] = None

    def _learn(self, turns: Sequence[Any], wanted: Sequence[int], outline: Outline) -> Form | None:
        veiled = [{"role": turn["role"], "content": stood_in(number)} for number, turn in enumerate(turns)]
        shown = outline.shown([turn["content"] for turn in veiled])
        if shown.ends.keys() != set(wanted) or self._completes(outline.around):
            return None
        try:
            self._complete.require(veiled, (), shown.text)
            found = self._spans.find(veiled, (), wanted, shown)
        except RowFault:
            return None
        if found.text != shown.text or found.notes or list(found.spans) != list(wanted):
            return None
        borders = self._borders.of(found.text, list(found.spans.values()))
        if any(parted(border.call)[1] for border in borders or ()):
            return None

        def places(start: int, end: int) -> tuple[Place, Place]:
            return place(found.text[:start]), place(found.text[:end])

        return Form(
            {index: places(*span) for index, span in found.spans.items()},
            None
            if borders is None
            else [
                _Border((places(*one.before[:2]), one.before[2]), (places(*one.stop[:2]), one.stop[2]), one.call)
                for one in borders
            ],
        )

    def _completes(self, around: Sequence[str]) -> bool:
        """Whether a content might make a control token together with what the template writes beside it."""
        return (
            any(piece.endswith(self._begun) for piece in around[:-1])
            or any(piece.startswith(self._ended) for piece in around[1:])
            or any(piece in name for piece in around[1:-1] for name in self._names)
        )
