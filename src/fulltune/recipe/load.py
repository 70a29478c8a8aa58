"""A recipe file and `key=value` overrides -> a Recipe, or all of its faults at once, each with file and line."""

import difflib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, cast, get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from fulltune.base.errors import Fault, RecipeError
from fulltune.recipe.foreign import FOREIGN
from fulltune.recipe.schema import Recipe, Source
from fulltune.recipe.tree import Tree, override, parse

Asked = str | os.PathLike[str] | Mapping[str, Any] | Recipe
"""What a recipe may be given as: a file, a mapping of the same shape, or one that is loaded already."""

_LARGEST = 1 << 20


def load_recipe(asked: Asked, overrides: Mapping[str, Any] = MappingProxyType({})) -> Recipe:
    """Read, override, check. RecipeError names every fault with its place and a mend.

    `overrides`: `{"train.epochs": 1}` or `{"train": {"epochs": 1}}`.
    Relative paths in a file count from the file's folder, those of a mapping or an override from the current one.
    """
    if isinstance(asked, Recipe):
        tree, folder = Tree(asked.model_dump(exclude_unset=True, mode="json"), {(): "recipe"}), Path.cwd()
    elif isinstance(asked, Mapping):
        tree, folder = Tree({}, {(): "recipe"}), Path.cwd()
        override(tree, dict(_flat(asked)), "recipe")
    else:
        path = Path(asked)
        tree, folder = parse(_text(path), str(path)), path.resolve().parent
        _root_paths(tree.values, folder)
    override(tree, dict(_flat(overrides)), "override")
    return _checked(tree)


def _text(path: Path) -> str:
    try:
        if path.stat().st_size > _LARGEST:
            raise RecipeError("larger than 1 MiB: not a recipe", where=str(path), mend="name the YAML file")
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError as fault:
        raise RecipeError(
            "there is no such recipe",
            where=str(path),
            mend="check the path, or write one with `fulltune init`",
        ) from fault
    except (IsADirectoryError, PermissionError) as fault:
        raise RecipeError(f"cannot be read: {fault.strerror}", where=str(path), mend="name a YAML file") from fault
    except UnicodeDecodeError as fault:
        raise RecipeError(f"not UTF-8: {fault.reason}", where=str(path), mend="save the file as UTF-8") from fault


def _flat(values: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """`{"train": {"epochs": 1}}` and `{"train.epochs": 1}` alike as `train.epochs`, relative paths made absolute."""
    for section, value in values.items():
        fields = value.items() if isinstance(value, Mapping) and "." not in section else None
        for key, inner in [(section, value)] if fields is None else [(f"{section}.{k}", v) for k, v in fields]:
            yield key, _rooted_at(key, inner)


def _rooted_at(key: str, value: Any) -> Any:
    """The value of an override, its relative paths counted from the current folder."""
    section, _, name = key.partition(".")
    first, _, inner = name.partition(".")
    if inner:  # such as data.train.0.path
        return _rooted(value, Path.cwd()) if section == "data" and inner.endswith("path") else value
    values: dict[str, Any] = {section: {first: value}}
    _root_paths(values, Path.cwd())
    return values[section][first]


def _root_paths(values: dict[str, Any], folder: Path) -> None:
    """Make the relative paths of a tree absolute, in place; whatever has the wrong shape is left for the check."""
    model, data = values.get("model"), values.get("data")
    if isinstance(model, dict):
        _root(model, "chat_template", folder)
        if _is_local(model.get("path"), folder):
            _root(model, "path", folder)
    if isinstance(data, dict):
        for name in ("train", "heldout", "test", "retention"):
            entries = data.get(name)
            if isinstance(entries, list):
                data[name] = [_rooted(entry, folder) for entry in entries]
                entries = data[name]
            _root(data, name, folder)
            for entry in entries if isinstance(entries, list) else [entries]:
                if isinstance(entry, dict):
                    _root(entry, "path", folder)


def _is_local(path: Any, folder: Path) -> bool:
    """A model's path is a folder if it looks like one or is there; else it is a hub id."""
    return isinstance(path, str) and (path.startswith((".", "/", "~")) or (folder / path).is_dir())


def _root(values: dict[str, Any], key: str, folder: Path) -> None:
    if key in values:
        values[key] = _rooted(values[key], folder)


def _rooted(path: Any, folder: Path) -> Any:
    return os.path.normpath(folder / Path(path).expanduser()) if isinstance(path, str) else path


def _checked(tree: Tree) -> Recipe:
    try:
        recipe = Recipe.model_validate(tree.values)
    except ValidationError as fault:
        found = [_fault(detail, tree) for detail in fault.errors(include_url=False)]
        raise RecipeError(faults=[*tree.faults, *_unique(found)]) from None
    if tree.faults:
        raise RecipeError(faults=tree.faults)
    return recipe


def _unique(faults: list[Fault]) -> list[Fault]:
    """A union is tried branch by branch and complains once for each."""
    return list(dict.fromkeys(faults))


def _fault(detail: ErrorDetails, tree: Tree) -> Fault:
    path = tuple(part for part in detail["loc"] if not _is_branch(part))
    name, where = ".".join(map(str, path)), tree.place(path)
    match detail["type"]:
        case "extra_forbidden":
            return Fault(f"there is no field `{name}`", where, _unknown(path))
        case "missing":
            return Fault(f"`{name}` is missing", where, _about(path))
        case "value_error":
            reason = str(detail["ctx"]["error"])
            return Fault(f"{f'`{name}`: ' if name else ''}{reason}", where, _about(path))
        case "literal_error":
            choices = detail["ctx"]["expected"]
            return Fault(f"`{name}`: {detail['input']!r} is not {choices}", where, _about(path))
    return Fault(f"`{name}`: {detail['input']!r}: {detail['msg'].lower()}", where, _about(path))


def _is_branch(part: str | int) -> bool:
    """A union puts the branch it tried into the path; such parts are no field names."""
    return isinstance(part, str) and not part.isidentifier()


def _unknown(path: tuple[str | int, ...]) -> str:
    """What was probably meant by a key that we do not have."""
    last = str(path[-1])
    if (here := _section(path[:-1])) is None:
        return "remove it"
    known = list(here.model_fields)
    if last in FOREIGN and last not in known:
        return f"that is the name in another tool; here it is: {FOREIGN[last]}"
    dotted = {field: f"{section}.{field}" for section, field in _all_fields()}
    if near := difflib.get_close_matches(last, known, n=1):
        return f"did you mean `{near[0]}`?"
    if near := difflib.get_close_matches(last, dotted, n=1, cutoff=0.8):
        return f"did you mean `{dotted[near[0]]}`?"
    return f"known here: {', '.join(known)}"


def _all_fields() -> Iterator[tuple[str, str]]:
    for section, field in Recipe.model_fields.items():
        for name in cast(type[BaseModel], field.annotation).model_fields:
            yield section, name


def _section(path: tuple[str | int, ...]) -> type[BaseModel] | None:
    """The model that describes the mapping at `path`, if it is one of ours."""
    kind: Any = Recipe
    for part in path:
        if isinstance(part, int):
            kind = Source
        elif part in kind.model_fields:
            inner = kind.model_fields[part].annotation
            kind = inner if isinstance(inner, type) else Source if Source in _arguments(inner) else None
        else:
            return None
        if kind is None or not issubclass(kind, BaseModel):
            return None
    return cast(type[BaseModel], kind)


def _arguments(kind: Any) -> Iterator[Any]:
    for inner in get_args(kind):
        yield inner
        yield from _arguments(inner)


def _about(path: tuple[str | int, ...]) -> str:
    """The field's own description, which says what belongs there."""
    section = _section(path[:-1]) if path else None
    field = section.model_fields.get(str(path[-1])) if section is not None else None
    if field is None or field.description is None:
        return ""
    return f"{'.'.join(map(str, path))}: {field.description}"
