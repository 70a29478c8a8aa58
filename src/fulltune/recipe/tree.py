"""YAML 1.2 text -> plain values, each with the place it was written at. Nothing in a recipe is ever executed."""

import io
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.constructor import SafeConstructor
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.events import CollectionEndEvent, CollectionStartEvent
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from fulltune.base.errors import Fault

Path = tuple[str | int, ...]

_DATE = "tag:yaml.org,2002:timestamp"
_KINDS = {_DATE, *(f"tag:yaml.org,2002:{kind}" for kind in ("str", "int", "float", "bool", "null", "map", "seq"))}
_MOST_NODES = 20_000
"""A recipe has tens of values; more means an alias bomb or the wrong file."""
_DEEPEST = 50
"""A recipe has five levels; ruamel and pydantic recurse, and Python stops them at a thousand calls."""
_LONGEST_NUMBER = 1000
"""Digits; Python neither reads nor writes integers of more than 4,300."""
_INDEX = re.compile(r"[0-9]{1,9}")
_MERGE = "tag:yaml.org,2002:merge"


@dataclass(frozen=True, slots=True)
class Tree:
    """Plain values, where each stands, and what was wrong with the text itself."""

    values: dict[str, Any]
    places: dict[Path, str]
    faults: list[Fault] = field(default_factory=list)
    unread: set[Path] = field(default_factory=set)
    """Places below which the values are not what was written; () is the whole text."""

    def place(self, path: Path) -> str:
        """Where a value was written, or the nearest thing around it."""
        while path and path not in self.places:
            path = path[:-1]
        return self.places.get(path, "")

    def is_read(self, path: Path) -> bool:
        """Whether the value at `path` is what was written there, so that a fault found in it is true."""
        return not any(path[:depth] in self.unread for depth in range(len(path) + 1))

    def fail(self, path: Path, fault: Fault) -> None:
        """Note that what was written at `path` cannot be read."""
        self.unread.add(path)
        self.faults.append(fault)


def parse(text: str, name: str) -> Tree:
    """Read one document. Syntax errors, duplicate keys and foreign tags become faults, all of them."""
    tree = Tree({}, {(): f"{name}:1"})
    try:
        root = _composed(text)
    except YAMLError as fault:
        tree.fail((), _syntax(fault, name))
        return tree
    if isinstance(root, int):
        tree.fail((), _nested(f"{name}:{root}"))
    elif isinstance(root, MappingNode):
        tree.values.update(_Reader(tree, name).mapping(root, ()))
    elif root is not None:
        tree.fail((), Fault("a recipe is a mapping of sections", f"{name}:1", "begin with `model:` and `data:`"))
    return tree


@lru_cache(maxsize=8)
def _composed(text: str) -> Any:
    """The nodes of a text, or the line at which it nests too deep; a run reads its recipe again for its reports."""
    return _too_deep(text) or YAML(typ="rt", pure=True).compose(io.StringIO(text))


def _too_deep(text: str) -> int:
    """The line at which a text nests deeper than a recipe may, 0 if it does not; events come without recursion."""
    depth = 0
    for event in YAML(typ="rt", pure=True).parse(io.StringIO(text)):
        depth += isinstance(event, CollectionStartEvent) - isinstance(event, CollectionEndEvent)
        if depth > _DEEPEST:
            return int(event.start_mark.line) + 1
    return 0


def _nested(where: str) -> Fault:
    what = f"values lie more than {_DEEPEST} levels deep, or an alias lies inside itself"
    return Fault(what, where, "write plain, flat values")


def _syntax(fault: YAMLError, name: str) -> Fault:
    if isinstance(fault, MarkedYAMLError) and fault.problem_mark is not None:
        mark = fault.problem_mark
        where = f"{name}:{mark.line + 1}"
        return Fault(f"not YAML: {fault.problem} (column {mark.column + 1})", where, "check quotes, colons and indents")
    return Fault(f"not YAML: {' '.join(str(fault).split())}", name, "check the file's encoding and characters")


class _Reader:
    """Walks the nodes of one document; ruamel's composer keeps the marks that a loaded value has lost."""

    def __init__(self, tree: Tree, name: str) -> None:
        self._tree, self._name = tree, name
        self._constructor = SafeConstructor(loader=YAML(typ="safe", pure=True))
        self._left = _MOST_NODES

    def mapping(self, node: MappingNode, path: Path) -> dict[str, Any]:
        values: dict[str, Any] = {}
        for key_node, value_node in node.value:
            where = self._where(key_node)
            if not isinstance(key_node, ScalarNode):
                self._tree.fail(path, Fault("a key is not a plain word", where, "write `name: value`"))
                continue
            if str(key_node.tag) == _MERGE:
                merge = Fault("the YAML merge key `<<` is not supported", where, "write the fields out")
                self._tree.fail(path, merge)
                continue
            key = str(key_node.value)
            here = (*path, key)
            if key in values:
                what = f"`{key}` is given twice; the first is at {self._tree.places[here]}"
                self._tree.faults.append(Fault(what, where, "keep one"))
                continue
            self._tree.places[here] = where
            values[key] = self._value(value_node, here)
        return values

    def _value(self, node: Node, path: Path) -> Any:
        self._left -= 1
        if self._left < 0 or len(path) > _DEEPEST:
            self._give_up(node)
            return None
        tag = str(node.tag)
        if tag not in _KINDS:
            self._tree.fail(path, Fault(f"the YAML tag {tag} is not allowed", self._where(node), "write a plain value"))
            return None
        if isinstance(node, MappingNode):
            return self.mapping(node, path)
        if isinstance(node, SequenceNode):
            return list(self._items(node, path))
        if tag == _DATE:  # a date such as 2020-01-01 is text here
            return node.value
        return self._scalar(node, path)

    def _scalar(self, node: Node, path: Path) -> Any:
        kind, where = str(node.tag).rpartition(":")[2], self._where(node)
        if kind != "str" and len(node.value) > _LONGEST_NUMBER:
            self._tree.fail(path, Fault(f"too long for a YAML {kind}", where, "write at most 1,000 digits"))
            return None
        try:
            return self._constructor.construct_object(node, deep=True)
        except (ValueError, LookupError, YAMLError):  # what ruamel raises for `!!int abc`, `!!bool maybe`, `!!map foo`
            self._tree.fail(path, Fault(f"{node.value!r} is no YAML {kind}", where, f"leave the tag !!{kind} out"))
            return None

    def _give_up(self, node: Node) -> None:
        """Say once that the text unfolds without end; nothing in it is believed then."""
        if () in self._tree.unread:
            return
        where = self._where(node)
        bomb = Fault("the recipe unfolds to more than 20,000 values", where, "remove YAML aliases")
        self._tree.fail((), bomb if self._left < 0 else _nested(where))
        self._left = 0

    def _items(self, node: SequenceNode, path: Path) -> Iterator[Any]:
        for index, item in enumerate(node.value):
            here = (*path, index)
            self._tree.places[here] = self._where(item)
            yield self._value(item, here)

    def _where(self, node: Node) -> str:
        return f"{self._name}:{node.start_mark.line + 1}"


def override(tree: Tree, changes: Mapping[str, Any], origin: str) -> None:
    """Lay `{"train.epochs": 1}` over a tree in place; what is wrong with a key becomes a fault."""
    for key, value in changes.items():
        parts = key.split(".")
        if len(parts) > _DEEPEST:
            tree.faults.append(Fault(f"an override of {len(parts)} parts", origin, "write section.field=value"))
            continue
        if (found := _holder(tree.values, parts)) is None:
            tree.faults.append(Fault(f"`{key}` leads into a plain value", origin, "give the whole section instead"))
            continue
        inner, here = found
        inner[here[-1]] = value
        for old in [place for place in tree.places if place[: len(here)] == here]:
            del tree.places[old]
        for depth in range(1, len(here) + 1):
            tree.places.setdefault(here[:depth], f"{origin}: {'.'.join(map(str, here[:depth]))}")


def _holder(values: dict[str, Any], parts: Sequence[str]) -> tuple[Any, Path] | None:
    """The mapping or list that holds a value, made where it is absent, and the value's path; None if it can not be."""
    inner: Any = values
    path: Path = ()
    for left, part in zip(range(len(parts) - 1, -1, -1), parts, strict=True):
        own: str | int = part
        if isinstance(inner, list) and _INDEX.fullmatch(part) and int(part) < len(inner):
            own = int(part)
        elif not isinstance(inner, dict):
            return None
        path = (*path, own)
        if left:
            inner = inner.setdefault(own, {}) if isinstance(inner, dict) else inner[own]
    return inner, path
