"""A model's folder before any weight is read: its config and its tokenizer. No torch is asked for."""

import json
import os
from pathlib import Path
from typing import Any, cast

import transformers
from transformers import AutoConfig, AutoTokenizer
from transformers.utils.hub import cached_file

from fulltune.base.errors import DataError, RecipeError
from fulltune.base.files import fingerprint
from fulltune.model import trust
from fulltune.model.files import require_json, require_whole
from fulltune.recipe.schema import ModelSection

_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json and merges.txt", "tokenizer_config.json")


def section_of(model: str | os.PathLike[str], like: ModelSection | None = None) -> ModelSection:
    """A model by its name alone, a folder counted from here or a hub id; in all else as `like`.

    Trust in code of `like` covers the same code in a folder, and no other.
    """
    folder = Path(model).resolve() if Path(model).is_dir() else None
    path = os.fspath(model) if folder is None else str(folder)
    if like is None:
        return ModelSection(path=path)
    trusts = like.trust_remote_code is not False and folder is not None
    code = trust.carried(folder, base_folder(like)) if trusts and folder is not None else False
    return like.model_copy(update={"path": path, "revision": None, "trust_remote_code": code})


def load_tokenizer(section: ModelSection) -> Any:
    """The model's tokenizer; DataError if there is none or it cannot report which characters a token stands for."""
    hush()
    folder = base_folder(section)
    load_config(section)  # AutoTokenizer reads it too, and would call a fault in it one of the tokenizer
    known = any((folder / name).exists() for name in ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt"))
    if Path(section.path).is_dir() and not known:  # of a hub id only the config is here yet
        raise DataError(
            "the folder has no tokenizer",
            where=section.path,
            mend=f"copy the model's tokenizer files there; looked for {', '.join(_TOKENIZER_FILES)}",
        )
    try:
        tokenizer = AutoTokenizer.from_pretrained(section.path, **trust.options(section))
    except Exception as fault:  # foreign code on foreign files: the tokenizers library raises plain Exceptions
        raise unusable("tokenizer", section, fault) from fault
    if not tokenizer.is_fast:
        raise DataError(
            f"{type(tokenizer).__name__} does not report offsets",
            where=section.path,
            mend="save a tokenizer.json beside the model (transformers converts most tokenizers when it saves them)",
        )
    return tokenizer


def load_config(section: ModelSection) -> Any:
    """The model's config. DataError if it, or a file of weights beside it, is damaged."""
    folder = base_folder(section)
    require_whole(folder)
    trust.require_weights(section, folder)
    try:
        return AutoConfig.from_pretrained(section.path, **trust.options(section))
    except Exception as fault:  # foreign code on a foreign file
        raise unusable("config", section, fault) from fault


def base_folder(section: ModelSection) -> Path:
    """The folder with the model's files: the one named, or the hub's cache of it."""
    folder = Path(section.path)
    if folder.is_dir():
        if not folder.is_absolute():
            raise RecipeError(
                f"{section.path!r} is no folder beside the recipe, but there is one of that name here",
                where="model.path",
                mend=f"for the folder write {folder.resolve()}; for the hub id run the command elsewhere",
            )
        if not (folder / "config.json").exists():
            raise DataError("there is no config.json", where=section.path, mend="name a Hugging Face model folder")
        require_json(folder)
        trust.require_trust(section, folder)
        return folder
    if section.path.startswith((".", "/", "~")):
        raise RecipeError(
            "there is no such folder", where=section.path, mend="check model.path; it counts from the recipe"
        )
    try:
        found = cached_file(section.path, "config.json", revision=trust.revision(section))
    except OSError as fault:
        raise unusable("model", section, fault) from fault
    folder = Path(cast(str, found)).parent
    require_json(folder)
    trust.require_trust(section, folder)
    return folder


def stop_ids(section: ModelSection) -> tuple[int, ...]:
    """What ends generation with this model: eos of its generation config, or of its config where that is not there."""
    folder = base_folder(section)
    try:
        path = Path(cast(str, cached_file(section.path, "generation_config.json", revision=trust.revision(section))))
    except OSError:  # as in transformers, which then makes one of the config
        path = folder / "config.json"
    values = json.loads(path.read_text(encoding="utf-8"))
    inner = values.get("text_config") if path.name == "config.json" else None
    named = values.get("eos_token_id", inner.get("eos_token_id") if isinstance(inner, dict) else None)
    found = named if isinstance(named, list) else [] if named is None else [named]
    if not all(type(number) is int and number >= 0 for number in found):
        raise DataError(f"eos_token_id is {named!r}", where=str(path), mend="write a token id, or a list of them")
    return tuple(sorted(set(found)))


def require_rows(model: Any, tokenizer: Any, where: str) -> None:
    """DataError if the tokenizer knows ids for which the embedding has no row."""
    rows = model.get_input_embeddings().weight.shape[0]
    beyond = sorted((number, token) for token, number in tokenizer.get_vocab().items() if number >= rows)
    if beyond:
        named = ", ".join(f"{token!r} ({number})" for number, token in beyond[:8])
        raise DataError(
            f"the tokenizer knows {len(beyond)} tokens for which the embedding, with {rows} rows, has none: {named}",
            where=where,
            mend="enlarge the embedding with transformers' resize_token_embeddings and save the model, or use the "
            "tokenizer that belongs to it",
        )


def tokenizer_digest(tokenizer: Any) -> str:
    """Fingerprint of everything that decides how text becomes tokens."""
    special = {name: str(token) for name, token in tokenizer.special_tokens_map.items()}
    return fingerprint([tokenizer.backend_tokenizer.to_str(), special])


def hush() -> None:
    """Our own errors and progress say what matters; transformers' bars and warnings would bury them."""
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()


def unusable(what: str, section: ModelSection, fault: Exception) -> DataError | RecipeError:
    """What transformers could not load, and what may mend it."""
    said = " ".join(str(fault).split())
    if not isinstance(fault, ValueError | OSError | ImportError | RuntimeError):
        said = f"{type(fault).__name__}: {said}"  # the text of a KeyError is the key alone
    if "trust_remote_code" in said:
        return trust.refused(section, None)
    if "use_safetensors" in said:  # what transformers advises against when a hub id has pickles alone
        return trust.pickled(section)
    mend = (
        "check the files there, or model.path"
        if Path(section.path).is_dir()
        else "check the hub id, the network, and your access to it"
    )
    return DataError(f"the {what} cannot be loaded: {said[:300]}", where=section.path, mend=mend)
