"""The files of a model folder, looked at before transformers does: what is damaged is named with its sizes."""

import json
import struct
from pathlib import Path
from typing import Any

from fulltune.base.errors import DataError

_JSON_FILES = (
    "config.json",
    "generation_config.json",
    "model.safetensors.index.json",
    "special_tokens_map.json",
    "tokenizer_config.json",
)
"""Each is a JSON object, if it is there. So is `tokenizer.json`, but that takes a second to read."""
_LONGEST_HEADER = 100_000_000
"""Bytes of a safetensors header; its own readers allow no more."""
_AGAIN = "copy or download it again"


def require_json(folder: Path) -> None:
    """Each JSON file is whole and holds an object; transformers would say so late, and not which file it is."""
    for path in (folder / name for name in _JSON_FILES):
        if not path.exists():
            continue
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as fault:
            raise DataError(f"the file is no JSON: {fault}", where=str(path), mend=_AGAIN) from fault
        if not isinstance(values, dict):
            raise DataError(f"the file holds no JSON object, but {type(values).__name__}", where=str(path), mend=_AGAIN)


def require_whole(folder: Path) -> None:
    """Each safetensors file is as long as its header says; transformers' own message names neither file nor size."""
    for path in sorted(folder.glob("*.safetensors")):
        entries, expected = header(path)
        size = path.stat().st_size
        expected += max((entry["data_offsets"][1] for entry in entries.values()), default=0)
        if expected != size:
            raise DataError(f"the file has {size:,} bytes, its header says {expected:,}", where=str(path), mend=_AGAIN)


def header(path: Path) -> tuple[dict[str, Any], int]:
    """What a safetensors file says of its tensors, and where they begin; empty if it ends before that."""
    with path.open("rb") as file:
        start = file.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else path.stat().st_size
        if 8 + length > path.stat().st_size:
            return {}, 8 + length
        said = file.read(min(length, _LONGEST_HEADER + 1))
    try:
        return _tensors(said), 8 + length
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError) as fault:
        what = "the file does not begin with the header of a safetensors file"
        raise DataError(what, where=str(path), mend=_AGAIN) from fault


def _tensors(said: bytes) -> dict[str, Any]:
    """The entries of a safetensors header. It may hold any JSON, or none: what is asked of it here must be there."""
    entries = {name: entry for name, entry in json.loads(said).items() if name != "__metadata__"}
    for entry in entries.values():
        begin, end = entry["data_offsets"]
        if not isinstance(entry["dtype"], str) or not all(
            type(n) is int and n >= 0 for n in (*entry["shape"], begin, end)
        ):
            raise ValueError
    return entries
