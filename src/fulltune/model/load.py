"""Any transformers causal language model and its tokenizer, checked: what is missing or damaged is named."""

import json
import math
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import torch
import transformers
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from transformers.utils.hub import cached_file

from fulltune.base.errors import DataError, RecipeError
from fulltune.base.files import fingerprint
from fulltune.model import trust
from fulltune.model.buffers import outline, require_buffers
from fulltune.model.files import header, require_json, require_whole
from fulltune.recipe.schema import ModelSection

_DTYPES = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}
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
    _hush()
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


def load_model(section: ModelSection) -> nn.Module:
    """The model with float32 weights, whatever its file holds, all of them read from it and finite; in eval mode."""
    config = _trainable(section)
    try:
        # Without dtype the file's own is kept; AdamW on bf16 weights leaves 85% of them unchanged at a rate of 1e-5.
        model, info = AutoModelForCausalLM.from_pretrained(
            section.path,
            dtype=torch.float32,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
            **_attention(section),
            **trust.options(section),
            **trust.weights(section),
        )
    except Exception as fault:  # foreign code on foreign files
        raise unusable("model", section, fault) from fault
    _check_weights(model, info, section.path)
    if section.trust_remote_code:
        require_buffers(model, config, section.path)
    return cast(nn.Module, model)


def outline_model(section: ModelSection) -> nn.Module:
    """As `load_model` gives it but for its parameters, which have no memory (the meta device); buffers are made.

    Not for models with code of their own: whether loading them gives the same buffers is known when they are loaded.
    """
    config = _trainable(section)
    try:
        return outline(config, **_attention(section), **trust.for_config(section, config)).eval()
    except Exception as fault:  # foreign code on a foreign config
        raise unusable("model", section, fault) from fault


def _trainable(section: ModelSection) -> Any:
    """The model's config; DataError if its weights are rounded."""
    _hush()
    config = load_config(section)
    if config.to_dict().get("quantization_config"):
        raise DataError(
            "the weights are quantised, and rounded weights cannot be trained",
            where=section.path,
            mend="start from the model that it was made from",
        )
    return config


def _attention(section: ModelSection) -> dict[str, str]:
    return {} if section.attention == "auto" else {"attn_implementation": section.attention}


def empty_model(section: ModelSection) -> nn.Module:
    """The model's shape without its weights (on the meta device): enough to plan by, at no cost."""
    _hush()
    config = load_config(section)
    try:
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config, **trust.for_config(section, config))
    except Exception as fault:  # foreign code on a foreign config: an unknown activation is a KeyError
        raise unusable("model", section, fault) from fault
    return cast(nn.Module, model)


def load_config(section: ModelSection) -> Any:
    """The model's config. DataError if it, or a file of weights beside it, is damaged."""
    folder = base_folder(section)
    require_whole(folder)
    trust.require_weights(section, folder)
    try:
        return AutoConfig.from_pretrained(section.path, **trust.options(section))
    except Exception as fault:  # foreign code on a foreign file
        raise unusable("config", section, fault) from fault


def stored_dtype(section: ModelSection) -> str | None:
    """Number format of most weights on disk (`bfloat16`); None if the files do not say."""
    counts: Counter[str] = Counter()
    for path in base_folder(section).glob("*.safetensors"):
        for entry in header(path)[0].values():
            counts[entry["dtype"]] += math.prod(entry["shape"])
    known = [_DTYPES[name] for name, _ in counts.most_common() if name in _DTYPES]
    return known[0] if known else None


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


def require_rows(model: nn.Module, tokenizer: Any, where: str) -> None:
    """DataError if the tokenizer knows ids for which the embedding has no row."""
    rows = cast(Any, model).get_input_embeddings().weight.shape[0]
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


def _hush() -> None:
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


def _check_weights(model: Any, info: dict[str, Any], where: str) -> None:
    """Every weight came from the file, with the right shape, and is a number."""
    faults = []
    if info["missing_keys"]:
        faults.append("missing: " + ", ".join(sorted(info["missing_keys"])[:8]))
    for name, found, wanted in sorted(info["mismatched_keys"])[:8]:
        faults.append(f"{name}: the file has shape {tuple(found)}, the config wants {tuple(wanted)}")
    faults += [str(message) for message in info["error_msgs"]]
    if not faults:
        faults = [
            f"{name}: {int((~torch.isfinite(weight)).sum())} values are not finite"
            for name, weight in model.named_parameters()
            if not bool(torch.isfinite(weight).all())
        ]
    if faults:
        raise unfit(faults, where)


def unfit(faults: Sequence[str], where: str) -> DataError:
    """Weights that no run may start from."""
    return DataError(
        "the weights cannot be trained from: " + "; ".join(faults),
        where=where,
        mend="get the model's files again; a weight that is not read would start at random",
    )
