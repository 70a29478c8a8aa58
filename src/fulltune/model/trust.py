"""What a model's files may do: whose Python code runs, and which files weights are read from."""

import hashlib
import json
import re
import shlex
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, Literal, cast

from transformers.utils.hub import cached_file

from fulltune.base.errors import DataError, RecipeError
from fulltune.base.log import LOGGER
from fulltune.recipe.schema import ModelSection

_NAMING = ("config.json", "tokenizer_config.json")
"""Files whose `auto_map` names classes in Python files beside them, which transformers would import."""
_SAFE = ("model.safetensors", "model.safetensors.index.json")
_PICKLES = frozenset({".bin", ".pt", ".pth", ".pkl", ".ckpt"})
_CLASS = re.compile(r"\w+\.\w+")
"""`modeling.Model`. `/tmp/x.Model` or `other/repository--modeling.Model` would be code that nobody was shown."""
_CONVERT = (
    "import sys; from transformers import AutoModelForCausalLM as M; "
    "M.from_pretrained(sys.argv[1]).save_pretrained(sys.argv[1])"
)


def revision(section: ModelSection) -> str | None:
    """Branch, tag or commit of a hub id. The commit whose code is trusted is that of the weights too."""
    return section.trust_remote_code or section.revision


def options(section: ModelSection) -> dict[str, Any]:
    """What transformers is told when it reads a config or a tokenizer."""
    if Path(section.path).is_dir():
        return {**exported(section), "revision": section.revision or "main"}
    return {"revision": revision(section) or "main", "trust_remote_code": _runs(section), **_code(section)}


def for_config(section: ModelSection, config: Any) -> dict[str, Any]:
    """What it is told when it makes a model of a config; a class of its own takes no word about commits of code."""
    foreign = "AutoModelForCausalLM" in (config.to_dict().get("auto_map") or {})
    return {"trust_remote_code": _runs(section), **(_code(section) if foreign else {})}


def _code(section: ModelSection) -> dict[str, Any]:
    """Of which commit a hub id's code is; of a folder it is what lies there."""
    return {"code_revision": section.trust_remote_code} if _runs(section) and not Path(section.path).is_dir() else {}


def weights(section: ModelSection) -> dict[str, Any]:
    """What it is told besides when it reads weights: safetensors go first, and are the only ones unless allowed."""
    return {"use_safetensors": None if section.allow_pickle else True, "weights_only": True}


def exported(section: ModelSection) -> dict[str, Any]:
    """What it is told of a folder that was written from this model, with this model's code."""
    return {"trust_remote_code": _runs(section), "local_files_only": True}


def _runs(section: ModelSection) -> bool:
    return section.trust_remote_code is not False


def digest(folder: Path) -> str:
    """Of the names and contents of the folder's Python files: 40 hexadecimal digits, as many as a commit has."""
    said = hashlib.sha256()
    for name, content in sorted(_sources(folder).items()):
        said.update(f"{len(name.encode())} {name} {len(content)} ".encode() + content)
    return said.hexdigest()[:40]


def carried(folder: Path, base: Path) -> Literal[False] | str:
    """What to trust in a folder beside a trusted base: its code, if every file of it is the base's, else none."""
    found, known = _sources(folder), _sources(base)
    return digest(folder) if found and found.items() <= known.items() else False


def _sources(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*.py") if path.is_file()}


def require_trust(section: ModelSection, folder: Path) -> None:
    """RecipeError unless the model names no code of its own, or just that which the recipe trusts."""
    named = sorted(set(_named(section, folder)))
    local = Path(section.path).is_dir()
    if not _runs(section):
        if named:
            raise refused(section, folder)
        return
    if not named:
        raise RecipeError(
            "the model brings no Python code of its own", where=section.path, mend="leave model.trust_remote_code out"
        )
    own = "" if local else f"{section.path}--"
    elsewhere = [name for name in named if not _CLASS.fullmatch(name.removeprefix(own))]
    if elsewhere:
        raise RecipeError(
            f"the model's code lies elsewhere, in {elsewhere[0]!r}: no digest or commit of the model would cover it",
            where=section.path,
            mend="copy that code into a folder with the model, and name it as `file.Class` in auto_map",
        )
    if local and digest(folder) != section.trust_remote_code:
        raise RecipeError(
            "the model's Python code is not that which the recipe trusts",
            where=section.path,
            mend=f"read what changed in its *.py files; then model.trust_remote_code={digest(folder)}",
        )
    _tell(section.path, cast(str, section.trust_remote_code))


@cache
def _tell(path: str, trusted: str) -> None:
    """Once in a process, and before it happens."""
    LOGGER.warning(f"Python code that the model brings runs: {path} at {trusted}")


def refused(section: ModelSection, folder: Path | None) -> RecipeError:
    """The refusal of code; it names the digest or the commit that would allow it."""
    if Path(section.path).is_dir():
        mend = f"read its *.py files; model.trust_remote_code={digest(Path(section.path))} then runs them as they are"
    else:
        commit = folder.name if folder is not None and folder.parent.name == "snapshots" else "<its 40 digits>"
        mend = f"read the code at a commit; model.trust_remote_code={commit} then runs it"
    mend += ". Where transformers has a class for this model itself, a copy without auto_map needs no code"
    return RecipeError(
        "the model brings Python code of its own, which is not run unasked", where=section.path, mend=mend
    )


def _named(section: ModelSection, folder: Path) -> Iterator[str]:
    """Every class that an `auto_map` names."""
    for name in _NAMING:
        path: Path | None = folder / name
        if not Path(section.path).is_dir() and name != _NAMING[0]:  # the config alone was fetched so far
            quiet = {"_raise_exceptions_for_missing_entries": False, "_raise_exceptions_for_connection_errors": False}
            found = cached_file(section.path, name, revision=revision(section), **quiet)
            path = None if found is None else Path(found)
        if path is not None and path.exists():
            yield from _texts(json.loads(path.read_text(encoding="utf-8")).get("auto_map"))


def _texts(value: Any) -> Iterator[str]:
    """All texts in a value of any shape."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _texts(inner)


def require_weights(section: ModelSection, folder: Path) -> None:
    """DataError if all that a folder holds of weights are pickles, and the recipe does not allow them."""
    if section.allow_pickle:
        return
    explicit = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("transformers_weights")
    names = {path.name for path in folder.iterdir() if path.suffix in _PICKLES and path.is_file()}
    if explicit in names:
        raise pickled(section, explicit)
    if explicit is None and names and not any((folder / name).exists() for name in _SAFE):
        raise pickled(section, min(names))


def pickled(section: ModelSection, name: str = "its weights") -> DataError:
    """The refusal of weights in pickle files."""
    convert = f"python -c {shlex.quote(_CONVERT)} {shlex.quote(section.path)}"
    mend = f"convert it to safetensors ({convert}); or model.allow_pickle=true"
    if not Path(section.path).is_dir():
        mend = "name a revision with safetensors, or model.allow_pickle=true"
    return DataError(
        f"the model has no safetensors, and {name} is a pickle, a program that builds what it holds",
        where=section.path,
        mend=mend,
    )
