"""Tensors to a safetensors file, in one pass: each byte is hashed from memory and written, never copied."""

import hashlib
import json
import os
import struct
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

Still = AbstractContextManager[Any]
"""In which what is written stands still."""

_NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
_PIECE = 64 << 20
"""Bytes that are hashed and written at once: other threads run meanwhile, and what was hashed is still in the cache."""


def write_tensors(
    path: Path,
    tensors: Mapping[str, Tensor],
    metadata: Mapping[str, str] | None = None,
    *,
    still: Still | None = None,
    done: Callable[[str], object] | None = None,
) -> str:
    """Write host tensors in the safetensors format; returns the sha256 of what was to be written.

    Each is asked for once more with each piece that is written, within `still`, and `done` hears its name when it
    stands in the file. So another thread may put an equal one in its place between two pieces.
    The library's own writer copies all of them first (`tobytes`), and its digest could only be taken from the file, so
    a write that went wrong would be taken for right.
    """
    names = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))  # keeps each one aligned
    header: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    end = 0
    for name in names:
        tensor = tensors[name]
        start, end = end, end + tensor.nbytes
        header[name] = {
            "dtype": _NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [start, end],
        }
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    digest = hashlib.sha256()
    with path.open("wb", buffering=0) as file:
        for piece in (struct.pack("<Q", len(text)), text):
            digest.update(piece)
            _write(file.fileno(), memoryview(piece))
        for name in names:
            for at in range(0, tensors[name].nbytes, _PIECE):
                with still or nullcontext():
                    content = _bytes(tensors[name])[at : at + _PIECE]
                    digest.update(content)
                    _write(file.fileno(), content)
            if done is not None:
                done(name)
    return digest.hexdigest()


def _bytes(tensor: Tensor) -> memoryview:
    """A contiguous tensor's memory."""
    return memoryview(tensor.reshape(-1).view(torch.uint8).numpy().data)


def _write(handle: int, content: memoryview) -> None:
    """All of it: one call may write less, and on Linux never more than 2 GiB."""
    while len(content):
        content = content[os.write(handle, content) :]


def finite(tensor: Tensor) -> bool:
    """Whether every number in it is one; what holds no floating numbers is."""
    if not tensor.is_floating_point() or tensor.numel() == 0:
        return True
    low, high = torch.aminmax(tensor)  # one pass without a temporary; NaN comes through
    return bool(torch.isfinite(low) and torch.isfinite(high))
