"""A conversation's text and where its turns end, learned once for all conversations of the same roles.

To find what a turn adds, the conversation must be rendered up to it, twice for every turn of the assistant; for long
conversations that is most of the time. A template that only copies contents (`veil.py` finds out) writes the same
around them in each conversation of the same roles, so text and ends are put together from what was learned. Whatever is
not so plain is rendered: tools, further keys, empty contents, a template that looks into contents, or knows the time.
And of what is put together one in `_TRUST` is rendered all the same, and must be the same. Decision 13 tells why.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
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
class Place:
    """A place in a text: behind so many contents, and so many characters that are the template's own."""

    contents: int
    characters: int


@dataclass(slots=True, eq=False)
class Outline:
    """What a template writes around contents.

    `ends`: a turn's index -> where the prompt that calls for it ends, and where the turn does.
    """

    around: tuple[str, ...]
    contents: tuple[int, ...]
    marks: Sequence[tuple[Place, Place]] | None
    ends: Mapping[int, tuple[Place, Place]]
    guard: Guard
    used: int = 0

    def shown(self, contents: Sequence[str]) -> "Shown":
        """With these contents."""
        pieces = [""] * (len(self.around) + len(self.contents))
        pieces[::2] = self.around
        pieces[1::2] = written = [contents[index] for index in self.contents]
        return Shown("".join(pieces), None, self, [0, *accumulate(map(len, written))], rendered=False)


@dataclass(frozen=True, slots=True)
class Shown:
    """A conversation's text, and what is known of places in it."""

    text: str
    told: Marks | None
    """What the template said that its tags enclose, if there is no outline."""
    outline: Outline | None = None
    before: Sequence[int] = ()
    """How many characters the contents have up to each that the outline holds."""
    rendered: bool = True
    """Whether the template wrote this text, or it was put together alone."""

    @property
    def marks(self) -> Marks | None:
        """What tags enclose in it; None: there are no tags."""
        if self.outline is None or self.outline.marks is None:
            return self.told
        return [self.between(places) for places in self.outline.marks]

    @property
    def ends(self) -> Mapping[int, tuple[int, int]]:
        """As far as they are known: a turn's index -> where the prompt that calls for it ends, and the turn does."""
        known = {} if self.outline is None else self.outline.ends
        return {index: self.between(places) for index, places in known.items()}

    def between(self, places: tuple[Place, Place]) -> tuple[int, int]:
        """Two places of the outline, in this text."""
        start, end = places
        return self.before[start.contents] + start.characters, self.before[end.contents] + end.characters


class Outlines:
    """Those of one template."""

    def __init__(self, template: Template) -> None:
        self._template = template
        self._known: dict[Any, Outline | None] = {}

    def of(self, turns: Sequence[Any], tools: Sequence[Any], wanted: Sequence[int]) -> Shown:
        """The conversation's text, and ends of the turns in `wanted`, which are the assistant's.

        Ends that are missing must be found by rendering. RowFault if it cannot be rendered.
        """
        outline = None if tools or any(tuple(turn) != _PLAIN for turn in turns) else self._outline(turns, wanted)
        contents = [turn["content"] for turn in turns]
        if outline is None or not outline.guard.allows(contents):
            return Shown(*self._template.marked(turns, tools))
        shown = outline.shown(contents)
        if outline.guard.varies or outline.used % _TRUST == 0 or len(shown.text) > CHARACTERS:
            rendered = self._template.marked(turns, tools)
            if rendered != (shown.text, shown.marks):
                return Shown(*rendered)
            shown = replace(shown, rendered=True)
        outline.used += 1
        return shown

    def _outline(self, turns: Sequence[Any], wanted: Sequence[int]) -> Outline | None:
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

    def _learn(self, roles: Sequence[str], wanted: Sequence[int]) -> Outline | None:
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
                        ends[index] = place(head), place(upto)
        except RowFault:
            return None
        marked = None if marks is None else [(place(text[:start]), place(text[:end])) for start, end in marks]
        return Outline(*parted(text), marked, ends, guard)


_UNASKED = Outline((), (), None, {}, Guard())
"""In place of an outline that was not asked for twice."""


def place(text: str) -> Place:
    """The end of a text that holds veils."""
    around, contents = parted(text)
    return Place(len(contents), sum(map(len, around)))
