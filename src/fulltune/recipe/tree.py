"""YAML 1.2 text -> plain values, each with the place it was written at. Nothing in a recipe is ever executed."""

import io
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.constructor import SafeConstructor
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from fulltune.base.errors import Fault, RecipeError

Path = tuple[str | int, ...]

_DATE = "tag:yaml.org,2002:timestamp"
_KINDS = {_DATE, *(f"tag:yaml.org,2002:{kind}" for kind in ("str", "int", "float", "bool", "null", "map", "seq"))}
_MOST_NODES = 20_000
"""A recipe has tens of values; more means an alias bomb or the wrong file."""


@dataclass(frozen=True, slots=True)
class Tree:
    """Plain values, where each stands, and what was wrong with the text itself."""

    values: dict[str, Any]
    places: dict[Path, str]
    faults: list[Fault] = field(default_factory=list)

    def place(self, path: Path) -> str:
        """Where a value was written, or the nearest thing around it."""
        while path and path not in self.places:
            path = path[:-1]
        return self.places.get(path, "")


def parse(text: str, name: str) -> Tree:
    """Read one document. Syntax errors, duplicate keys and foreign tags become faults, all of them."""
    tree = Tree({}, {(): f"{name}:1"})
    try:
        root = YAML(typ="rt", pure=True).compose(io.StringIO(text))
    except YAMLError as fault:
        tree.faults.append(_syntax(fault, name))
        return tree
    if root is None:
        return tree
    if not isinstance(root, MappingNode):
        tree.faults.append(Fault("a recipe is a mapping of sections", f"{name}:1", "begin with `model:` and `data:`"))
        return tree
    tree.values.update(_Reader(tree, name).mapping(root, ()))
    return tree


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
            key = str(key_node.value) if isinstance(key_node, ScalarNode) else repr(key_node.value)
            here = (*path, key)
            if key in values:
                self._fault(f"`{key}` is given twice; the first is at {self._tree.places[here]}", where, "keep one")
                continue
            self._tree.places[here] = where
            values[key] = self._value(value_node, here)
        return values

    def _value(self, node: Node, path: Path) -> Any:
        self._left -= 1
        if self._left < 0:
            if self._left == -1:
                self._fault("the recipe unfolds to more than 20,000 values", self._where(node), "remove YAML aliases")
            return None
        tag = str(node.tag)
        if tag not in _KINDS:
            self._fault(f"the YAML tag {tag} is not allowed", self._where(node), "write a plain value")
            return None
        if isinstance(node, MappingNode):
            return self.mapping(node, path)
        if isinstance(node, SequenceNode):
            return list(self._items(node, path))
        if tag == _DATE:  # a date such as 2020-01-01 is text here
            return node.value
        return self._constructor.construct_object(node, deep=True)

    def _items(self, node: SequenceNode, path: Path) -> Iterator[Any]:
        for index, item in enumerate(node.value):
            here = (*path, index)
            self._tree.places[here] = self._where(item)
            yield self._value(item, here)

    def _where(self, node: Node) -> str:
        return f"{self._name}:{node.start_mark.line + 1}"

    def _fault(self, what: str, where: str, mend: str) -> None:
        self._tree.faults.append(Fault(what, where, mend))


def override(tree: Tree, changes: Mapping[str, Any], origin: str) -> None:
    """Lay `{"train.epochs": 1}` over a tree in place; what is wrong with a key becomes a fault."""
    for key, value in changes.items():
        *path, last = (int(part) if part.isdigit() else part for part in key.split("."))
        inner: Any = tree.values
        for part in path:
            inner = _step(inner, part)
            if inner is None:
                break
        if not (isinstance(inner, dict) or (isinstance(inner, list) and _within(inner, last))):
            tree.faults.append(Fault(f"`{key}` leads into a plain value", origin, "give the whole section instead"))
            continue
        _put(inner, last, value)
        here = (*path, last)
        for old in [place for place in tree.places if place[: len(here)] == here]:
            del tree.places[old]
        for depth in range(1, len(here) + 1):
            tree.places.setdefault(here[:depth], f"{origin}: {'.'.join(map(str, here[:depth]))}")


def _put(inner: Any, key: str | int, value: Any) -> None:
    inner[key] = value


def _within(items: list[Any], index: str | int) -> bool:
    return isinstance(index, int) and index < len(items)


def _step(inner: Any, part: str | int) -> Any:
    if isinstance(inner, dict):
        return inner.setdefault(part, {})
    if isinstance(inner, list) and _within(inner, part):
        return inner[int(part)]
    return None


def given(texts: Iterable[str]) -> dict[str, Any]:
    """`key=value` texts of a command line as a mapping; values are the same YAML that recipes are written in."""
    values: dict[str, Any] = {}
    faults = []
    for text in texts:
        key, equals, value = text.partition("=")
        if equals:
            inner = parse(f"value: {value}\n", "command line")
            values[key.strip()] = value if inner.faults else inner.values["value"]
        else:
            faults.append(Fault(f"`{text}` is no override", "command line", "write key=value, such as optim.lr=1e-5"))
    if faults:
        raise RecipeError(faults=faults)
    return values
