"""Weights -> a Hugging Face folder: the base's own files, changed only where they must be."""

import contextlib
import json
import shutil
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn
from transformers import GenerationConfig

from fulltune.base import stop

_COPIED = (
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "chat_template.jinja",
    "LICENSE",
    "NOTICE",
)
"""Files of the base that the result takes over byte for byte; a `.py` that a config names is taken too."""

_NAMED_TEMPLATES = "additional_chat_templates"
"""Folder of the chat templates besides the default one, as transformers writes them."""

_SPECIAL = ("bos_token_id", "eos_token_id", "pad_token_id")


@dataclass(frozen=True, slots=True)
class Target:
    """How a result is to be written."""

    base: Path
    """Folder of the model it started from."""
    dtype: str
    """`float32`, `bfloat16` or `float16`."""
    template: str | Mapping[str, str] | None
    """The chat template to ship (by name if there are several), if it is not the base's own."""
    stop_ids: tuple[int, ...]
    """Tokens that training taught to end a turn with."""


def write(model: nn.Module, state: Mapping[str, torch.Tensor], target: Target, folder: Path) -> None:
    """Write weights (`state`), config, generation config, tokenizer and chat template into an existing folder.

    Weights go through the model's own `save_pretrained`, which knows how its names differ from those on disk. Its
    config does not: the base's `config.json` is taken over as it is, so that nothing that training set slips in.
    """
    foreign = cast(Any, model)
    own = foreign.generation_config
    stop.check()
    foreign.generation_config = GenerationConfig()  # a base may bring one that save_pretrained refuses to write
    try:
        with contextlib.redirect_stdout(sys.stderr):  # it loads DeepSpeed where that is installed, which says so there
            foreign.save_pretrained(folder, state_dict=dict(state))
    finally:
        foreign.generation_config = own
    stop.check()
    _write_json(folder / "config.json", _config(target))
    generation = _generation(target)
    if generation:
        _write_json(folder / "generation_config.json", generation)
    for name in (*_COPIED, *(path.name for path in target.base.glob("*.py"))):
        if (target.base / name).exists():
            shutil.copyfile(target.base / name, folder / name)
    if target.template is not None:
        _write_template(folder, target.template)
    elif (target.base / _NAMED_TEMPLATES).is_dir():
        shutil.copytree(target.base / _NAMED_TEMPLATES, folder / _NAMED_TEMPLATES)


def state_for(target: Target, weights: Iterable[tuple[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """What is to be written: each weight once, floating numbers in the wanted format, on the host."""
    dtype = cast(torch.dtype, vars(torch)[target.dtype])
    return {name: value.to(dtype) if value.is_floating_point() else value for name, value in weights}


def _config(target: Target) -> dict[str, Any]:
    """The base's config; only the number format is written anew, under whichever of its names the base uses."""
    config = _read_json(target.base / "config.json")
    for place in (config, config.get("text_config")):
        if isinstance(place, dict):
            for name in ("dtype", "torch_dtype"):
                if name in place:
                    place[name] = target.dtype
    if "dtype" not in config and "torch_dtype" not in config:
        config["dtype"] = target.dtype
    return config


def _generation(target: Target) -> dict[str, Any]:
    """The base's generation config, or what its config says of special tokens; every taught stop token ends it."""
    path = target.base / "generation_config.json"
    if path.exists():
        config = _read_json(path)
    else:
        base = _read_json(target.base / "config.json")
        config = {name: base[name] for name in _SPECIAL if base.get(name) is not None}
    known = config.get("eos_token_id")
    stops = [] if known is None else list(known) if isinstance(known, list) else [known]
    stops += [stop for stop in target.stop_ids if stop not in stops]
    if stops:
        config["eos_token_id"] = stops if len(stops) > 1 else stops[0]
    return config


def _write_template(folder: Path, template: str | Mapping[str, str]) -> None:
    """One template in its own file, where transformers looks first; several in the tokenizer's config.

    A template in both places would confuse, and a name from the base's files is no name for a file of ours.
    """
    path, config = folder / "chat_template.jinja", folder / "tokenizer_config.json"
    values = _read_json(config) if config.exists() else {}
    found = values.pop("chat_template", None)
    if isinstance(template, str):
        path.write_text(template, encoding="utf-8")
    else:
        path.unlink(missing_ok=True)
        values["chat_template"] = [{"name": name, "template": text} for name, text in template.items()]
    if found is not None or "chat_template" in values:
        _write_json(config, values)


def _read_json(path: Path) -> dict[str, Any]:
    values: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return values


def _write_json(path: Path, values: dict[str, Any]) -> None:
    path.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
