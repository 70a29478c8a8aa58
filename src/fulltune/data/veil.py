"""Rendering with veils in place of texts, to learn whether a template only copies them.

A template that copies a text without looking into it writes, for any other text in its place, the same with that text
in it. So a veil lets itself be written, joined and asked whether it is a text, and raises `Read` for everything else.
The few questions that nearly all texts answer alike (`strip`, and whether something stands in them) it answers as those
do, and notes in a `Guard` what must hold of a text for the answer to be true.
"""

import functools
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from types import BuiltinFunctionType
from typing import TYPE_CHECKING, Any, cast

from jinja2.compiler import Frame
from jinja2.nodes import Operand
from jinja2.runtime import Context

from fulltune.data.sandbox import Bounded, Ticking

_FIRST = 0x108000
"""The first of the private characters that stand for texts; only veils hold any while a template is watched."""
_MOST = 0x7000
_VEILS = re.compile(f"[{chr(_FIRST)}-{chr(_FIRST + _MOST - 1)}]")

_FILTERS = frozenset(
    "count d default first items last length list map reject rejectattr reverse select selectattr string trim".split()
)
"""They pass on what they are given, or ask it by its own methods."""
_TESTS = frozenset(
    "!= == boolean callable defined eq equalto false float integer mapping ne none number string true undefined".split()
)
_SAME = frozenset("cycler dict joiner namespace raise_exception range".split())
"""Functions of Jinja and of transformers that answer alike each time."""
_KINDS = {"iterable", "sequence"}


class Read(Exception):
    """The template looks into a text, so what it writes may depend on more than is known here."""


@dataclass(slots=True)
class Guard:
    """What must hold of texts so that a template does with them as it did with veils. None of them may be empty."""

    strips: set[str | None] = field(default_factory=set)
    """Stripping these characters (None: white space) must leave a text as it is."""
    absent: set[str] = field(default_factory=set)
    """None of these may stand in a text."""
    varies: bool = False
    """Whether the template asks for what is another thing the next time, such as the date."""

    def allows(self, texts: list[str]) -> bool:
        """Whether it holds of all of them."""
        joined = "\0".join(texts)
        return (
            all(texts)
            and not any(needle in joined for needle in self.absent)
            and all(text.strip(chars) == text for chars in self.strips for text in texts)
        )


_GUARD: ContextVar[Guard] = ContextVar("guard")


@contextmanager
def guarded() -> Iterator[Guard]:
    """What is rendered inside is noted in this guard."""
    guard = Guard()
    token = _GUARD.set(guard)
    try:
        yield guard
    finally:
        _GUARD.reset(token)


def _closed(*_: Any, **__: Any) -> Any:
    raise Read


_OPEN = {"__new__", "__getattribute__", "__doc__", "__sizeof__", "__getnewargs__"}
if TYPE_CHECKING:
    _Closed = str
else:  # a text that answers nothing at all
    _Closed = type("_Closed", (str,), dict.fromkeys(vars(str).keys() - _OPEN, _closed) | {"__slots__": ()})


class Veiled(_Closed):
    """A text of which nothing is known, or one that the template made of such texts and its own."""

    __slots__ = ()

    def __str__(self) -> str:
        return self

    def __bool__(self) -> bool:
        return True

    def strip(self, chars: str | None = None, /) -> str:
        return self._stripped(str.strip, chars)

    def lstrip(self, chars: str | None = None, /) -> str:
        return self._stripped(str.lstrip, chars)

    def rstrip(self, chars: str | None = None, /) -> str:
        return self._stripped(str.rstrip, chars)

    def startswith(self, *needles: Any) -> bool:
        return self._has(str.startswith, *needles)

    def endswith(self, *needles: Any) -> bool:
        return self._has(str.endswith, *needles)

    def __contains__(self, needle: Any) -> bool:
        return self._has(str.__contains__, needle)

    def split(self, needle: Any = None, /, *_: Any) -> Any:
        return [self._without(needle)]

    def rsplit(self, needle: Any = None, /, *_: Any) -> Any:
        return [self._without(needle)]

    def replace(self, needle: Any, _: Any, /, *__: Any) -> str:
        return self._without(needle)

    def __eq__(self, other: object) -> bool:
        if isinstance(other, str) and other != "":
            self._without(other)
        return False

    def __ne__(self, other: object) -> bool:
        return not self == other

    def __hash__(self) -> int:
        raise Read

    def _stripped(self, strip: Callable[[str, str | None], str], chars: str | None) -> str:
        if isinstance(chars, Veiled):
            raise Read
        _GUARD.get().strips.add(chars)
        return Veiled(strip(_plain(self), chars))

    def _has(self, has: Callable[[str, str], bool], *needles: Any) -> bool:
        if len(needles) != 1 or type(needles[0]) is not str:
            raise Read
        # What is found stands in the template's own part; what is not might still begin there and end in a text.
        return has(_plain(self), needles[0]) or self._without(needles[0]) is not self

    def _without(self, needle: Any) -> "Veiled":
        """This, which is a text alone and does not hold the needle."""
        if type(needle) is not str or not needle or str.__len__(self) != 1:
            raise Read
        _GUARD.get().absent.add(needle)
        return self


class _Watching(Ticking):
    """Compiles templates so that also a text is told apart in which something is looked for."""

    def visit_Operand(self, node: Operand, frame: Frame) -> None:  # noqa: N802 - Jinja's name
        if node.op not in ("in", "notin"):
            super().visit_Operand(node, frame)
            return
        self.write(" in environment.held(" if node.op == "in" else " not in environment.held(")
        self.visit(node.expr, frame)
        self.write(")")


class _Held(str):
    """A text of the template in which something is looked for."""

    __slots__ = ()

    def __contains__(self, needle: Any) -> bool:
        if isinstance(needle, Veiled):
            raise Read
        return super().__contains__(needle)


class Veiling(Bounded):
    """The sandbox for rendering with veils."""

    code_generator_class = _Watching
    intercepted_binops = frozenset(("//", "%", "+", "*", "-", "/", "**"))

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.tests = {name: _watched(test, name in _TESTS) for name, test in self.tests.items()}
        for name in _KINDS:
            self.tests[name] = _of_kind(self.tests[name])

    def watched(self, filters: Mapping[str, Any]) -> dict[str, Any]:
        """As the sandbox's, but no veil comes into one that might read it."""
        return {name: _watched(made, name in _FILTERS) for name, made in filters.items()}

    @staticmethod
    def held(value: Any) -> Any:
        """What something is looked for in."""
        return _Held(value) if type(value) is str else value

    def concat(self, pieces: Iterable[str]) -> str:
        return cast(str, _veiled(super().concat(pieces)))

    @staticmethod
    def joined(pieces: Iterable[str]) -> tuple[str, list[int]]:
        return Bounded.joined(map(_plain, pieces))

    @staticmethod
    def sized(made: Any) -> Any:
        return _veiled(Bounded.sized(_plain(made)))

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        if not (_holds(left) or _holds(right)):
            return super().call_binop(context, operator, left, right)
        if operator != "+" or not (isinstance(left, str) and isinstance(right, str)):
            raise Read
        return self.sized(_plain(left) + _plain(right))

    def call(self, context: Context, called: Any, /, *args: Any, **options: Any) -> Any:
        if called in [value for name, value in self.globals.items() if name not in _SAME]:
            _GUARD.get().varies = True
        own = type(called) is BuiltinFunctionType and isinstance(called.__self__, str)
        given = (value for name, value in options.items() if name not in ("_loop_vars", "_block_vars"))  # Jinja's own
        if own and any(map(_holds, (*args, *given))):
            raise Read
        return super().call(context, called, *args, **options)


def veil(number: int) -> Veiled:
    """That of the text of so many. Read if there are too many."""
    if number >= _MOST:
        raise Read
    return Veiled(chr(_FIRST + number))


def stood_in(number: int) -> str:
    """The character that stands for a text, as a text of its own."""
    return chr(_FIRST + number)


def parted(text: str) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """What a template wrote around veils, and which they are: one text more than veils."""
    return tuple(_VEILS.split(text)), tuple(ord(found) - _FIRST for found in _VEILS.findall(text))


def _plain(value: Any) -> Any:
    return str.__str__(value) if isinstance(value, Veiled) else value


def _veiled(made: Any) -> Any:
    return Veiled(made) if type(made) is str and _VEILS.search(made) else made


def _holds(value: Any) -> bool:
    """Whether a veil is in it, or may come out of it."""
    if isinstance(value, Mapping):
        return any(map(_holds, value.values()))
    if isinstance(value, list | tuple):
        return any(map(_holds, value))
    return isinstance(value, Veiled | Iterator)


def _watched(made: Any, passes: bool) -> Any:
    """A filter or a test that no veil comes into, unless it passes them on."""
    if passes:
        return made

    @functools.wraps(made)
    def watched(*args: Any, **options: Any) -> Any:
        if any(map(_holds, (*args, *options.values()))):
            raise Read
        return made(*args, **options)

    return watched


def _of_kind(test: Any) -> Any:
    """A test that every text passes."""
    return cast(Any, lambda value: isinstance(value, Veiled) or test(value))
