"""How far the weights of a result lie from the base: both are read in pieces, so that neither is ever held whole."""

import json
import math
import re
from collections import defaultdict
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from safetensors import safe_open
from torch import Tensor

from fulltune.base import stop
from fulltune.base.records import WeightChange

_PIECE = 1 << 24
"""Numbers that are compared at a time: 64 MiB as float32, whatever the tensor's size."""
_LAYER = re.compile(r"^(?P<before>.*?)\.(?P<layer>\d+)\.(?P<part>[^.]+)")
"""`model.layers.7.self_attn.q_proj.weight`: the first number names the layer, the word behind it the part."""
_INDEX = "model.safetensors.index.json"
_ALONE = "model.safetensors"


def weight_changes(base: Path, result: Path) -> tuple[WeightChange, ...]:
    """||result - base|| / ||base|| (L2) of each part of each layer, layers in order, then what lies outside of them.

    Both are model folders; tensors are compared by name, as they lie on disk, in float64. A tensor that only one of
    them has, or that has another shape in it, is left out. Empty if the base has no safetensors files.
    """
    old, new = _files(base), _files(result)
    moved: dict[tuple[int | None, str], list[float]] = defaultdict(lambda: [0.0, 0.0])
    sizes: dict[tuple[int | None, str], int] = defaultdict(int)
    with ExitStack() as opened:
        handles: dict[Path, Any] = {}
        for name in sorted(old.keys() & new.keys()):
            stop.check()
            for path in (old[name], new[name]):
                if path not in handles:
                    handles[path] = opened.enter_context(safe_open(path, "pt"))
            before, after = (handles[path].get_slice(name) for path in (old[name], new[name]))
            if before.get_shape() != after.get_shape():
                continue
            place = _place(name)
            for was, now in _pieces(before, after):
                was, now = was.double(), now.double()
                moved[place][0] += float((now - was).square().sum())
                moved[place][1] += float(was.square().sum())
                sizes[place] += was.numel()
    return tuple(
        WeightChange(layer=layer, part=part, relative=_ratio(*moved[layer, part]), parameters=sizes[layer, part])
        for layer, part in sorted(moved, key=lambda key: (key[0] is None, key[0] or 0, key[1]))
    )


def _ratio(distance: float, size: float) -> float:
    if size > 0:
        return math.sqrt(distance / size)
    return math.inf if distance > 0 else 0.0


def _place(name: str) -> tuple[int | None, str]:
    """The layer and the part of it that a tensor belongs to."""
    found = _LAYER.match(name)
    if found is None:
        return None, name.removesuffix(".weight")
    return int(found["layer"]), found["part"]


def _files(folder: Path) -> dict[str, Path]:
    """In which file each tensor lies."""
    index = folder / _INDEX
    if index.exists():
        listed = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        return {name: folder / file for name, file in listed.items() if (folder / file).exists()}
    if not (folder / _ALONE).exists():
        return {}
    with safe_open(folder / _ALONE, "pt") as file:
        return dict.fromkeys(file.keys(), folder / _ALONE)


def _pieces(before: Any, after: Any) -> Iterator[tuple[Tensor, Tensor]]:
    """Both tensors in the same rows; a number alone is one piece."""
    shape = before.get_shape()
    if not shape:
        yield before[...], after[...]
        return
    rows = max(1, _PIECE // max(1, math.prod(shape[1:])))
    for start in range(0, shape[0], rows):
        yield before[start : start + rows], after[start : start + rows]
