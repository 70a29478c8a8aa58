"""Weights where they lie in a model's files, by the names that the model has for them: any rows, without the rest."""

import json
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch
import transformers
from safetensors import safe_open
from torch import Tensor, nn
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter, WeightRenaming, dot_natural_key, rename_source_key
from transformers.utils.hub import cached_file

from fulltune.model import trust
from fulltune.model.facts import may_lack
from fulltune.model.folder import base_folder, load_config, unusable
from fulltune.model.load import unfit
from fulltune.recipe.schema import ModelSection

_FILE, _INDEX = "model.safetensors", "model.safetensors.index.json"
_AT_ONCE = 1 << 24
"""Numbers of two tensors that are compared at once."""


class Stored:
    """Every weight of a model, in its files or, of one that was loaded, what was kept of it."""

    def __init__(self, places: Mapping[str, Any], twins: Sequence[tuple[str, Any, Any]]) -> None:
        """`places`: by name, what gives rows of a weight. `twins`: those that are tied, and in the files twice."""
        self._places, self._twins = places, twins
        self.broken: Counter[str] = Counter()
        """By weight: how many of the numbers read so far are not finite."""

    def read(self, name: str, rows: slice | None) -> Tensor:
        """These rows of a weight, or all of it, in the number format of the file."""
        place = self._places[name]
        found = cast(Tensor, place[...] if rows is None else place[rows])
        if found.is_floating_point():
            known = found if found.element_size() > 1 else found.float()  # torch does not know this of 8 bits
            self.broken[name] += int((~torch.isfinite(known)).sum())
        return found

    def apart(self) -> str | None:
        """A weight that is tied to one of another value, so that transformers would not tie them; reads both."""
        return next((name for name, one, other in self._twins if not _equal(one, other)), None)


def locate(section: ModelSection, model: nn.Module) -> Stored | str:
    """Where the weights of a model lie, or why they can only be had by loading the whole model.

    `model`: its outline, whose names they get as transformers would give them. DataError if one is missing or has
    another shape.
    """
    if section.trust_remote_code:
        return "it brings code of its own"
    paths = _files(section)
    if paths is None:
        return "its weights are not in safetensors files of the usual names"
    held: dict[str, Any] = {}
    for path in paths:
        file: Any = safe_open(path, "pt")
        held |= {key: file.get_slice(key) for key in file.keys()}  # noqa: SIM118 - it is no mapping
    named = _named(held, model)
    if isinstance(named, str):
        return named
    places, twins, missing = {}, [], []
    for names in _groups(model):
        there = [key for name in names for key in named.get(name, [])]
        if not there:
            missing.append(names[0])
            continue
        places[names[0]] = held[there[0]]
        twins += [(names[0], held[there[0]], held[other]) for other in there[1:]]
    if missing and may_lack(model):
        return "it may lack weights, which its own code then makes"
    _require_shapes(model, places, missing, section.path)
    return Stored(places, twins)


def _files(section: ModelSection) -> list[Path] | None:
    """The files that transformers would read, fetched if they are not here; None if they are no safetensors."""
    if load_config(section).to_dict().get("transformers_weights"):
        return None
    if (base_folder(section) / "adapter_config.json").exists():
        return None
    whole = _fetched(section, _FILE)
    if whole is not None:
        return [whole]
    index = _fetched(section, _INDEX)
    if index is None:
        return None
    names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    found = [_fetched(section, name) for name in names]
    return None if None in found else cast(list[Path], found)


def _fetched(section: ModelSection, name: str) -> Path | None:
    if Path(section.path).is_dir():
        path = Path(section.path) / name
        return path if path.is_file() else None
    try:
        found = cached_file(
            section.path, name, revision=trust.revision(section), _raise_exceptions_for_missing_entries=False
        )
    except OSError as fault:
        raise unusable("model", section, fault) from fault
    return None if found is None else Path(found)


def _named(held: Mapping[str, Any], model: nn.Module) -> dict[str, list[str]] | str:
    """By the model's names, the files' names of the same tensors; what the model has no name for is left out.

    transformers renames what older versions wrote. What it makes of several tensors, such as the weights of all
    experts of a layer, is not to be read by rows.
    """
    foreign = cast(Any, model)
    changes = get_model_conversion_mapping(foreign)
    renamings = [change for change in changes if isinstance(change, WeightRenaming)]
    converters = [change for change in changes if isinstance(change, WeightConverter)]
    prefix, state = foreign.base_model_prefix, model.state_dict()
    named: defaultdict[str, list[str]] = defaultdict(list)
    for key in sorted(held, key=dot_natural_key):  # the order matters to some renamings
        name, converted = rename_source_key(key, renamings, converters, prefix, state)
        if name not in state and key in state:  # as when transformers loads
            name, converted = rename_source_key(key, [], [], prefix, state)
        if converted is not None:
            return f"transformers {transformers.__version__} makes {name} of several tensors"
        if name in state:
            named[name].append(key)
    doubled = next((name for name, keys in named.items() if len(keys) > 1), None)
    if doubled is not None:
        return f"the files have {doubled} twice"
    foreign._weight_conversions = [change for change in changes if change.was_used()]  # which saving turns back
    return named


def _groups(model: nn.Module) -> Iterator[list[str]]:
    """The names of each weight and each buffer that is saved; tied ones have several."""
    groups: defaultdict[int, list[str]] = defaultdict(list)
    for name, value in model.state_dict(keep_vars=True).items():
        groups[id(value)].append(name)
    return iter(groups.values())


def _require_shapes(model: nn.Module, places: Mapping[str, Any], missing: Sequence[str], where: str) -> None:
    faults = ["missing: " + ", ".join(sorted(missing)[:8])] if missing else []
    wanted = model.state_dict()
    faults += [
        f"{name}: the file has shape {tuple(place.get_shape())}, the config wants {tuple(wanted[name].shape)}"
        for name, place in sorted(places.items())
        if tuple(place.get_shape()) != tuple(wanted[name].shape)
    ][:8]
    if faults:
        raise unfit(faults, where)


def _equal(one: Any, other: Any) -> bool:
    """Whether two tensors of files are the same, looked at piece by piece."""
    shape = one.get_shape()
    if shape != other.get_shape() or one.get_dtype() != other.get_dtype():
        return False
    rows = max(1, _AT_ONCE // max(1, torch.Size(shape[1:]).numel()))
    return all(torch.equal(one[at : at + rows], other[at : at + rows]) for at in range(0, shape[0], rows))
