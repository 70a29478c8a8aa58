"""A conversation's text and where its turns end, learned once for all conversations of the same roles.

To find what a turn adds, the conversation must be rendered up to it, twice for every turn of the assistant; for long
conversations that is most of the time. A template that only copies contents (`veil.py` finds out) writes the same
around them in each conversation of the same roles, so text and ends are put together from what was learned. Whatever is
not so plain is rendered: tools, further keys, empty contents, a template that looks into contents, or knows the time.
And of what is put together one in `_TRUST` is rendered all the same, and must be the same. Decision 13 tells why.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

from fulltune.data.example import RowFault
from fulltune.data.sandbox import CHARACTERS
from fulltune.data.template import Marks, Template
from fulltune.data.veil import Guard, guarded, parted, veil

_MOST = 1 << 12
"""Outlines that are remembered."""
_TRUST = 32
_PLAIN = ("role", "content")


@dataclass(frozen=True, slots=True)
class Shown:
    """A conversation's text, what tags enclose in it (None: there are no tags), and ends that are known.

    `ends`: a turn's index -> where the prompt that calls for it ends, and where the turn does.
    """

    text: str
    marks: Marks | None
    ends: Mapping[int, tuple[int, int]]


@dataclass(frozen=True, slots=True)
class _Place:
    """A place in a text: behind so many contents, and so many characters that are the template's own."""

    contents: int
    characters: int


@dataclass(slots=True)
class _Outline:
    """What a template writes around contents."""

    around: tuple[str, ...]
    contents: tuple[int, ...]
    marks: Sequence[tuple[_Place, _Place]] | None
    ends: Mapping[int, tuple[_Place, _Place]]
    guard: Guard
    used: int = 0

    def shown(self, contents: Sequence[str]) -> Shown:
        """With these contents."""
        pieces = [""] * (len(self.around) + len(self.contents))
        pieces[::2] = self.around
        pieces[1::2] = written = [contents[index] for index in self.contents]
        before = [0, *accumulate(map(len, written))]
        marks = None if self.marks is None else [_between(before, places) for places in self.marks]
        ends = {index: _between(before, places) for index, places in self.ends.items()}
        return Shown("".join(pieces), marks, ends)


class Outlines:
    """Those of one template."""

    def __init__(self, template: Template) -> None:
        self._template = template
        self._known: dict[Any, _Outline | None] = {}

    def of(self, turns: Sequence[Any], tools: Sequence[Any], wanted: Sequence[int]) -> Shown:
        """The conversation's text, and ends of the turns in `wanted`, which are the assistant's.

        Ends that are missing must be found by rendering. RowFault if it cannot be rendered.
        """
        outline = None if tools or any(tuple(turn) != _PLAIN for turn in turns) else self._outline(turns, wanted)
        contents = [turn["content"] for turn in turns]
        if outline is None or not outline.guard.allows(contents):
            return Shown(*self._template.marked(turns, tools), {})
        shown = outline.shown(contents)
        if outline.guard.varies or outline.used % _TRUST == 0 or len(shown.text) > CHARACTERS:
            rendered = self._template.marked(turns, tools)
            if rendered != (shown.text, shown.marks):
                return Shown(*rendered, {})
        outline.used += 1
        return shown

    def _outline(self, turns: Sequence[Any], wanted: Sequence[int]) -> _Outline | None:
        """None if there is none, and for the first conversation of such roles, since it may stay the only one."""
        roles = tuple(turn["role"] for turn in turns)
        key = roles, tuple(wanted)
        if key not in self._known:
            if len(self._known) >= _MOST:
                self._known.clear()
            self._known[key] = _UNASKED
        elif self._known[key] is _UNASKED:
            self._known[key] = self._learn(roles, wanted)
        found = self._known[key]
        return None if found is _UNASKED else found

    def _learn(self, roles: Sequence[str], wanted: Sequence[int]) -> _Outline | None:
        try:
            with guarded() as guard:
                turns = [{"role": role, "content": veil(number)} for number, role in enumerate(roles)]
                text, marks = self._template.veiled(turns, prompt=False)
                ends = {}
                for index in wanted:
                    head, _ = self._template.veiled(turns[:index], prompt=True)
                    last = index == len(turns) - 1
                    upto = text if last else self._template.veiled(turns[: index + 1], prompt=False)[0]
                    if upto.startswith(head) and text.startswith(upto):
                        ends[index] = _place(head), _place(upto)
        except RowFault:
            return None
        marked = None if marks is None else [(_place(text[:start]), _place(text[:end])) for start, end in marks]
        return _Outline(*parted(text), marked, ends, guard)


_UNASKED = _Outline((), (), None, {}, Guard())
"""In place of an outline that was not asked for twice."""


def _place(text: str) -> _Place:
    around, contents = parted(text)
    return _Place(len(contents), sum(map(len, around)))


def _between(before: Sequence[int], places: tuple[_Place, _Place]) -> tuple[int, int]:
    """Two places in characters; `before`: how many the contents have up to each."""
    start, end = places
    return before[start.contents] + start.characters, before[end.contents] + end.characters
