"""A recipe file and `key=value` overrides -> a Recipe, or all of its faults at once, each with file and line."""

import difflib
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar, cast, get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from fulltune.base.errors import Fault, RecipeError
from fulltune.base.folder import is_run_folder
from fulltune.recipe import suites
from fulltune.recipe.data import BRANCHES
from fulltune.recipe.foreign import FOREIGN
from fulltune.recipe.kinds import Section, can_be_held, is_address, is_hub_id
from fulltune.recipe.schema import EITHER_OR, Recipe
from fulltune.recipe.tree import Tree, override, parse

Asked = str | os.PathLike[str] | Mapping[str, Any] | Recipe
"""What a recipe may be given as: a file, a mapping of the same shape, or one that is loaded already."""

S = TypeVar("S", bound=Section)

_LARGEST = 1 << 20
_TYPED = "command line"


def load_recipe(asked: Asked, overrides: Mapping[str, Any] = MappingProxyType({})) -> Recipe:
    """Read, override, check. RecipeError names every fault with its place and a mend.

    `overrides`: `{"train.epochs": 1}` or `{"train": {"epochs": 1}}`.
    Relative paths in a file count from the file's folder, those of a mapping or an override from the current one.
    """
    if isinstance(asked, Recipe):
        tree, folder = Tree(asked.model_dump(exclude_unset=True, mode="json"), {(): "recipe"}), Path.cwd()
    elif isinstance(asked, Mapping):
        tree, folder = Tree({}, {(): "recipe"}), Path.cwd()
        override(tree, dict(flat(asked)), "recipe")
    else:
        path = Path(asked)
        tree, folder = parse(_text(path), str(path)), path.resolve().parent
        root_paths(tree.values, folder)
    changes = dict(flat(overrides))
    displace(tree, changes)
    override(tree, changes, "override")
    suites.include(tree)
    return checked(tree, Recipe)


def recipe_of(asked: Asked, overrides: Mapping[str, Any]) -> Recipe:
    """The recipe that is asked for, or that of a run folder."""
    path = Path(asked) if isinstance(asked, str | os.PathLike) else None
    return load_recipe(path / "recipe.yaml" if path is not None and is_run_folder(path) else asked, overrides)


def given(texts: Iterable[str]) -> dict[str, Any]:
    """`section.field=value` texts of a command line as a mapping; values are the YAML that recipes are written in."""
    values: dict[str, Any] = {}
    faults = []
    for text in texts:
        key, equals, written = (part.strip() for part in text.partition("="))
        value = _plain(written)
        if not equals or not all(key.split(".")):
            faults.append(Fault(f"`{text}` is no override", _TYPED, "write key=value, such as optim.lr=1e-5"))
        elif "." not in key and not (key in Recipe.model_fields and isinstance(value, dict)):
            mend = f"write {key}.field=value" if key in Recipe.model_fields else _unknown((key,))
            faults.append(Fault(f"`{key}` is no field of a section", _TYPED, mend))
        else:
            for name, inner in flat({key: value}):
                if name in values:
                    faults.append(Fault(f"`{name}` is given twice", _TYPED, "keep one"))
                values[name] = inner
    if faults:
        raise RecipeError(faults=faults)
    return values


def _plain(written: str) -> Any:
    """The value of an override as YAML; what is none, such as a path with a colon, is text."""
    tree = parse(f"value: {written}\n", _TYPED)
    return written if tree.faults or len(tree.values) > 1 else tree.values["value"]


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
    except OSError as fault:  # a folder, a loop of links, a name too long, no permission
        raise RecipeError(f"cannot be read: {fault.strerror}", where=str(path), mend="name a YAML file") from fault
    except UnicodeDecodeError as fault:
        raise RecipeError(f"not UTF-8: {fault.reason}", where=str(path), mend="save the file as UTF-8") from fault


def flat(values: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """`{"train": {"epochs": 1}}` and `{"train.epochs": 1}` alike as `train.epochs`, relative paths made absolute."""
    for section, value in ((str(key), value) for key, value in values.items()):
        fields = value.items() if isinstance(value, Mapping) and "." not in section else None
        for key, inner in [(section, value)] if fields is None else [(f"{section}.{k}", v) for k, v in fields]:
            yield key, _rooted_at(key, inner)


def _rooted_at(key: str, value: Any) -> Any:
    """The value of an override, its relative paths counted from the current folder."""
    *above, last = key.split(".")
    if above and last.isdecimal():  # a whole source, such as data.train.0
        return _rooted_at(".".join(above), [value])[0]
    if len(above) > 1 and above[0] == "data" and last == "path":  # such as data.train.0.path
        return _source_rooted(value, Path.cwd())
    holder: dict[str, Any] = {last: value}
    values = holder
    for part in reversed(above):
        values = {part: values}
    root_paths(values, Path.cwd())
    return holder[last]


def displace(tree: Tree, changes: Mapping[str, Any]) -> None:
    """Take out of a tree the fields that an override stands in place of; both overridden would contradict."""
    pairs = [(f"train.{one}", f"train.{other}") for pair in EITHER_OR for one, other in (pair, pair[::-1])]
    displaced = {other for one, other in pairs if changes.get(one) is not None}
    if changes.get("optim.schedule") == "constant":
        displaced.add("optim.floor")
    for section, _, name in (key.partition(".") for key in displaced):
        fields = tree.values.get(section)
        if isinstance(fields, dict):
            fields.pop(name, None)


def root_paths(values: dict[str, Any], folder: Path) -> None:
    """Make the relative paths of a tree absolute, in place; whatever has the wrong shape is left for the check."""
    model, data, engine = values.get("model"), values.get("data"), values.get("engine")
    optim = values.get("optim")
    pulls = optim.get("pulls") if isinstance(optim, dict) else None
    for pull in pulls if isinstance(pulls, list) else [pulls]:
        if isinstance(pull, dict):
            _root(pull, "file", folder)
    if isinstance(model, dict):
        _root(model, "chat_template", folder)
        if _is_local(model.get("path"), folder):
            _root(model, "path", folder)
    if isinstance(engine, dict):
        _root(engine, "deepspeed", folder)
    if isinstance(data, dict):
        for name in ("train", "replay", "heldout", "test", "retention", "benchmarks"):
            _root_sources(data, name, folder)
        if isinstance(data.get("replay"), dict):
            _root_sources(data["replay"], "sources", folder)
    suites.root_all(values, folder)


def _root_sources(values: dict[str, Any], name: str, folder: Path) -> None:
    entries = values.get(name)
    if isinstance(entries, list):
        values[name] = [_source_rooted(entry, folder) for entry in entries]
        entries = values[name]
    elif name in values:
        values[name] = _source_rooted(entries, folder)
    for entry in entries if isinstance(entries, list) else [entries]:
        if isinstance(entry, dict) and "path" in entry:
            entry["path"] = _source_rooted(entry["path"], folder)


def _is_local(path: Any, folder: Path) -> bool:
    """A model's path is a folder if it looks like one or is there; else it is a hub id."""
    if not isinstance(path, str) or not can_be_held(path):
        return False
    return path.startswith((".", "/", "~")) or (folder / path).is_dir()


def _source_rooted(path: Any, folder: Path) -> Any:
    """A source's path, made absolute unless it is an address or a hub id."""
    if not isinstance(path, str) or is_address(path):
        return path
    there = can_be_held(path) and (folder / path).exists()
    return path if is_hub_id(path) and not there else _rooted(path, folder)


def _root(values: dict[str, Any], key: str, folder: Path) -> None:
    if key in values:
        values[key] = _rooted(values[key], folder)


def _rooted(path: Any, folder: Path) -> Any:
    if not isinstance(path, str):
        return path
    try:
        return os.path.normpath(folder / Path(path).expanduser())
    except RuntimeError:  # there is no such user; the schema says so, with the place
        return path


def checked(tree: Tree, kind: type[S]) -> S:
    """A tree as a section; RecipeError with all of its faults."""
    try:
        made = kind.model_validate(tree.values)
    except ValidationError as fault:
        details = [detail for detail in fault.errors(include_url=False) if tree.is_read(_path(detail))]
        found = [_fault(detail, tree) for detail in details]
        raise RecipeError(faults=[*tree.faults, *_unique(found)]) from None
    if tree.faults:
        raise RecipeError(faults=tree.faults)
    return made


def _unique(faults: list[Fault]) -> list[Fault]:
    """A union is tried branch by branch and complains once for each."""
    return list(dict.fromkeys(faults))


def _fault(detail: ErrorDetails, tree: Tree) -> Fault:
    path = _path(detail)
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


def _path(detail: ErrorDetails) -> tuple[str | int, ...]:
    """Where a fault lies, without the branch of a union that pydantic puts behind its field."""
    found = detail["loc"]
    pairs = zip((None, *found), found, strict=False)
    return tuple(part for before, part in pairs if not (before in ("heldout", "test") and part in BRANCHES))


def _unknown(path: tuple[str | int, ...]) -> str:
    """What was probably meant by a key that we do not have."""
    last = str(path[-1]).replace("-", "_")
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
    kind: type[BaseModel] = Recipe
    for part in path:
        if isinstance(part, int):  # of a list, whose entries are of the kind that its field names
            continue
        if part not in kind.model_fields:
            return None
        annotation = kind.model_fields[part].annotation
        found = [inner for inner in (annotation, *_arguments(annotation)) if _is_ours(inner)]
        if not found:
            return None
        kind = found[0]
    return kind


def _is_ours(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, BaseModel)


def _arguments(kind: Any) -> Iterator[Any]:
    """What a kind is made of: of a list its entries, of a union its branches."""
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
