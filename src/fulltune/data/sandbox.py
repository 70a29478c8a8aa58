"""Jinja as transformers sets it up for chat templates, with limits to the time and the memory that they take."""

import time
from collections.abc import Iterable
from functools import lru_cache
from typing import Any

from jinja2 import Template
from jinja2.compiler import CodeGenerator, Frame
from jinja2.ext import Extension
from jinja2.nodes import CallBlock, Concat
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment
from transformers.utils import chat_template_utils

SECONDS = 10.0
"""That one rendering may take. The slowest real template needs 50 microseconds for a turn."""
CHARACTERS = 2**26
"""That one text of a template may have, or items one list."""

OPENS, CLOSES = "\U0010fffc", "\U0010fffd"
"""Private characters around what a template marks as the assistant's."""

_LONG = (str, list, tuple)


class Excess(Exception):
    """A rendering that does not fit into memory."""

    code = "template_too_long"


class Late(Excess):
    """A rendering that does not end."""

    code = "template_too_slow"


class _Deadline(Context):
    """What the names in one rendering stand for, and until when it may go on."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._until = time.monotonic() + SECONDS

    def tick(self) -> None:
        if time.monotonic() > self._until:
            raise Late(f"was not done after {SECONDS:g} s")


class _Ticking(CodeGenerator):
    """Compiles templates that look at the clock in each turn of a loop and in each call of a macro.

    Unlike a signal this works in every thread, and unlike a thread that watches it leaves nothing behind.
    """

    def enter_frame(self, frame: Frame) -> None:
        self.writeline("context.tick()")
        super().enter_frame(frame)

    def visit_Concat(self, node: Concat, frame: Frame) -> None:  # noqa: N802 - Jinja's name
        self.write("environment.sized(")
        super().visit_Concat(node, frame)
        self.write(")")


class _Bounded(ImmutableSandboxedEnvironment):
    """Jinja's sandbox, which keeps templates from Python, with limits to the time and the memory they take.

    What grows by loops, macros and operators is bounded; a filter that is asked for a billion spaces is not.
    """

    context_class = _Deadline
    code_generator_class = _Ticking
    intercepted_binops = frozenset({"+", "*", "**"})

    def concat(self, pieces: Iterable[str]) -> str:
        kept, size = [], 0
        for piece in pieces:
            size += len(piece)
            _require_room(size)
            kept.append(piece)
        return "".join(kept)

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:  # noqa: ARG002
        if operator == "+":
            return self.sized(left + right)
        if isinstance(left, int) and isinstance(right, int):
            _require_room(left.bit_length() * right if operator == "**" else left.bit_length() + right.bit_length())
        for many, times in ((left, right), (right, left)):
            if isinstance(many, _LONG) and isinstance(times, int):
                _require_room(len(many) * times)
        return self.binop_table[operator](left, right)

    @staticmethod
    def sized(made: Any) -> Any:
        """What was made, if it is not too long."""
        if isinstance(made, _LONG):
            _require_room(len(made))
        return made


def _require_room(size: int) -> None:
    if size > CHARACTERS:
        raise Excess(f"writes more than {CHARACTERS:,} characters")


class _Marking(Extension):
    """`{% generation %}` that shows what it encloses, also inside macros, where counted blocks would be misplaced."""

    tags = {"generation"}  # noqa: RUF012 - as Jinja declares it

    def parse(self, parser: Parser) -> CallBlock:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        block = CallBlock(self.call_method("_enclosed"), [], [], body)
        block.set_lineno(line)
        return block

    @staticmethod
    def _enclosed(caller: Any) -> str:
        return OPENS + str(caller()) + CLOSES


@lru_cache
def compiled(source: str, *, marking: bool = False) -> Template:
    """The template with the tags, filters and names of transformers, as the version at hand has them.

    With `marking`, what its `{% generation %}` tags enclose stands between OPENS and CLOSES.
    """
    theirs = chat_template_utils._compile_jinja_template("").environment
    extensions = [type(extension) for extension in theirs.extensions.values()]
    if marking:
        extensions = [_Marking if "generation" in extension.tags else extension for extension in extensions]
    ours = _Bounded(trim_blocks=theirs.trim_blocks, lstrip_blocks=theirs.lstrip_blocks, extensions=extensions)
    ours.filters = theirs.filters
    # Random text cannot be learned, and `lipsum(10 ** 9)` would write it for hours.
    ours.globals = {name: value for name, value in theirs.globals.items() if name != "lipsum"}
    return ours.from_string(source)
