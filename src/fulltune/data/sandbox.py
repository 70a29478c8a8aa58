"""Jinja as transformers sets it up for chat templates, with limits to the time and the memory that they take."""

import time
from collections.abc import Iterable, Mapping
from functools import lru_cache
from operator import attrgetter
from types import BuiltinMethodType
from typing import Any

from jinja2 import Template
from jinja2.compiler import CodeGenerator, Frame
from jinja2.ext import Extension
from jinja2.nodes import CallBlock, Concat, ExtensionAttribute, Getattr, Name
from jinja2.parser import Parser
from jinja2.runtime import Context, LoopContext
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace
from transformers.utils import chat_template_utils

SECONDS = 10.0
"""That one rendering may take. The slowest real template needs 50 microseconds for a turn."""
CHARACTERS = 2**26
"""That one text of a template may have, or items one list."""

OPENS, CLOSES = "\U0010fffc", "\U0010fffd"
"""Private characters around what a template marks as the assistant's."""

_LONG = (str, list, tuple)

_OF_DICT = frozenset(dir(dict))
_METHODS = ("startswith", "endswith", "strip", "lstrip", "rstrip", "split", "replace", "upper", "lower", "title")
_COUNTS = ("index", "index0", "revindex", "revindex0", "first", "last", "length")
_HARMLESS = {
    (kind, name): attrgetter(name) for kind, names in ((str, _METHODS), (LoopContext, _COUNTS)) for name in names
}
"""What templates ask for most, of objects of exactly these types, and what the sandbox gives as it stands."""
_VALUES = frozenset({str, int, bool, float, list, dict, type(None)})


class _Edge(str):
    """Nothing, written where a `{% generation %}` block begins and where it ends."""

    __slots__ = ()


_EDGE = _Edge()


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


class Ticking(CodeGenerator):
    """Compiles templates that look at the clock in each turn of a loop and in each call of a macro.

    Unlike a signal this works in every thread, and unlike a thread that watches it leaves nothing behind.
    """

    environment: "Bounded"

    def enter_frame(self, frame: Frame) -> None:
        self.writeline("context.tick()")
        super().enter_frame(frame)

    def visit_CallBlock(self, node: CallBlock, frame: Frame) -> None:  # noqa: N802 - Jinja's name
        called = node.call.node
        if not isinstance(called, ExtensionAttribute) or called.identifier not in self.environment.tracking:
            super().visit_CallBlock(node, frame)
        elif frame.buffer is not None or frame.block is not None or frame.require_output_check:
            # In a macro, a filter, a set or a block: what becomes of the text there, its place does not tell.
            self.environment.buried = True
            super().visit_CallBlock(node, frame)
        else:
            self.writeline("yield environment.edge")
            super().visit_CallBlock(node, frame)
            self.writeline("yield environment.edge")

    def visit_Getattr(self, node: Getattr, frame: Frame) -> None:  # noqa: N802 - Jinja's name
        """As `Bounded.getattr` for a JSON object under a name, without calling it."""
        if not isinstance(node.node, Name) or node.attr in _OF_DICT:
            super().visit_Getattr(node, frame)
            return
        named = frame.symbols.ref(node.node.name)
        self.write(f"({named}[{node.attr!r}] if type({named}) is dict and {node.attr!r} in {named} else ")
        super().visit_Getattr(node, frame)
        self.write(")")

    def visit_Concat(self, node: Concat, frame: Frame) -> None:  # noqa: N802 - Jinja's name
        self.write("environment.sized(")
        super().visit_Concat(node, frame)
        self.write(")")


class Bounded(ImmutableSandboxedEnvironment):
    """Jinja's sandbox, which keeps templates from Python, with limits to the time and the memory they take.

    What grows by loops, macros and operators is bounded; a filter that is asked for a billion spaces is not.
    """

    context_class = _Deadline
    code_generator_class = Ticking
    intercepted_binops = frozenset({"+", "*", "**"})
    edge = _EDGE

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.tracking = {kind.identifier for kind in self.extensions.values() if "generation" in kind.tags}
        self.buried = False
        """Whether the template has a `{% generation %}` block whose text does not go straight into what it writes."""

    def concat(self, pieces: Iterable[str]) -> str:
        return self.joined(pieces)[0]

    @staticmethod
    def joined(pieces: Iterable[str]) -> tuple[str, list[int]]:
        """The pieces as one text, and where in it the edges lie."""
        kept, size, edges = [], 0, []
        for piece in pieces:
            if piece is _EDGE:
                edges.append(size)
                continue
            size += len(piece)
            if size > CHARACTERS:
                raise _too_long()
            kept.append(piece)
        return "".join(kept), edges

    def getattr(self, obj: Any, attribute: str) -> Any:
        # What the sandbox would do, by a shorter way for what JSON is made of, which is most that templates ask.
        kind = type(obj)
        if kind is dict and attribute not in _OF_DICT:
            return obj[attribute] if attribute in obj else self.undefined(obj=obj, name=attribute)
        if (harmless := _HARMLESS.get((kind, attribute))) is not None:
            return harmless(obj)
        if isinstance(obj, Namespace) and not attribute.startswith("_"):
            try:
                value = Namespace.__getattribute__(obj, attribute)
            except AttributeError:
                return self.undefined(obj=obj, name=attribute)
            if type(value) in _VALUES:
                return value
        return super().getattr(obj, attribute)

    def call(self, context: Context, called: Any, /, *args: Any, **options: Any) -> Any:
        # A text's own method, which takes nothing from the context; `format` never comes here as it is.
        if type(called) is BuiltinMethodType and type(called.__self__) is str:
            options.pop("_loop_vars", None)
            options.pop("_block_vars", None)
            return called(*args, **options)
        return super().call(context, called, *args, **options)

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:  # noqa: ARG002
        if operator == "+":
            made = left + right
            return made if type(made) is str and len(made) <= CHARACTERS else self.sized(made)
        if isinstance(left, int) and isinstance(right, int):
            _require_room(left.bit_length() * right if operator == "**" else left.bit_length() + right.bit_length())
        for many, times in ((left, right), (right, left)):
            if isinstance(many, _LONG) and isinstance(times, int):
                _require_room(len(many) * times)
        return self.binop_table[operator](left, right)

    def watched(self, filters: Mapping[str, Any]) -> dict[str, Any]:
        """The filters as templates are to have them."""
        return dict(filters)

    @staticmethod
    def sized(made: Any) -> Any:
        """What was made, if it is not too long."""
        if isinstance(made, _LONG):
            _require_room(len(made))
        return made


def _require_room(size: int) -> None:
    if size > CHARACTERS:
        raise _too_long()


def _too_long() -> Excess:
    return Excess(f"writes more than {CHARACTERS:,} characters")


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
def compiled(source: str, *, kind: type[Bounded] = Bounded, marking: bool = False) -> Template:
    """The template with the tags, filters and names of transformers, as the version at hand has them.

    `kind`: the sandbox that it runs in. With `marking`, what its `{% generation %}` tags enclose stands between OPENS
    and CLOSES.
    """
    theirs = chat_template_utils._compile_jinja_template("").environment
    extensions = [type(extension) for extension in theirs.extensions.values()]
    if marking:
        extensions = [_Marking if "generation" in extension.tags else extension for extension in extensions]
    ours = kind(trim_blocks=theirs.trim_blocks, lstrip_blocks=theirs.lstrip_blocks, extensions=extensions)
    ours.filters = ours.watched(theirs.filters)
    # Random text cannot be learned, and `lipsum(10 ** 9)` would write it for hours.
    ours.globals = {name: value for name, value in theirs.globals.items() if name != "lipsum"}
    made = ours.from_string(source)
    made.globals = dict(made.globals)  # a chain of two, which is merged for every rendering: 8 microseconds
    return made


def buried(template: Template) -> bool:
    """Whether what a `{% generation %}` block writes is processed before it stands in the text."""
    return _bounded(template).buried


def write(template: Template, variables: dict[str, Any]) -> tuple[str, list[int]]:
    """The text, and where in it `{% generation %}` blocks begin and end, in turn, but for those that are buried."""
    return _bounded(template).joined(template.root_render_func(template.new_context(variables)))


def _bounded(template: Template) -> Bounded:
    assert isinstance(template.environment, Bounded)
    return template.environment
