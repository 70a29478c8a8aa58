"""What glibc's allocator does with memory that is freed: keeps it for the next one, or gives it back to the system."""

import ctypes
import gc
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
"""Names of `mallopt` (malloc.h)."""
_MIB = 1 << 20
LARGEST = 32 * _MIB
"""Bytes up to which a block may come from the heap by default: glibc learns it, as blocks are freed."""
_USUAL = (LARGEST, 2 * LARGEST)
_RETURNING = (_MIB, _MIB)
_KEEPING = (1 << 30, -1)
"""Blocks of less than a GiB come from the heap, whose free end is never given back."""
_VARIABLES = ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "MALLOC_TOP_PAD_")
"""By which a user says it; in GLIBC_TUNABLES they are called otherwise."""

_KERNELS = {"ONEDNN_PRIMITIVE_CACHE_CAPACITY": 16, "LRU_CACHE_CAPACITY": 48}
"""Those of oneDNN are asked only for what torch does not have."""

_now = [_USUAL]
"""What holds, behind what held around it."""


@contextmanager
def returning() -> Iterator[None]:
    """In here a block of a MiB goes back to the system when it is freed, and all that is free does at the end.

    Weights that are gathered and dropped, layer by layer, otherwise leave holes that the next ones do not fit into:
    600 MiB of shards then grew to 2,000. It costs the system's work for each block: of training it is for what is to
    take little memory, and may take longer. What a user set by glibc's variables is left alone, here and afterwards;
    without glibc nothing changes.
    """
    with _tuned(_RETURNING):
        yield


@contextmanager
def keeping() -> Iterator[None]:
    """In here freed memory is kept for the next block, and given back at the end.

    By default glibc gives each large block back to the system when it is freed, which then has to provide the next one
    anew, page by page: 79,000 of them in one update of 28 million weights, in place of few or none. What a user set by
    glibc's variables is left alone, and without glibc nothing changes.
    """
    with _tuned(_KEEPING):
        yield


def hold_few_kernels() -> None:
    """Before the first product in 16 bits on a CPU: keep fewer of the kernels that are made for each new shape.

    oneDNN, and what torch has in front of it, would keep 1,024 of each, half a MiB a pair: half a GiB after some dozens
    of updates, between whose pieces large blocks fit ever less. Rows have other lengths in the next pass anyhow, so
    that few are used again. What a user set is left alone.
    """
    for name, kept in _KERNELS.items():
        os.environ.setdefault(name, str(kept))


@contextmanager
def _tuned(how: tuple[int, int]) -> Iterator[None]:
    """`how`: from which size a block is a mapping of its own, and how much may lie free at the heap's end."""
    said = any(name in os.environ for name in _VARIABLES) or "glibc.malloc" in os.environ.get("GLIBC_TUNABLES", "")
    if said or platform.libc_ver()[0] != "glibc" or how == _now[-1]:
        yield
        return
    _tell(how)
    _now.append(how)
    try:
        yield
    finally:
        _now.pop()
        _tell(_now[-1])
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)


def _tell(how: tuple[int, int]) -> None:
    libc = ctypes.CDLL(None)
    for name, value in zip((_MMAP_THRESHOLD, _TRIM_THRESHOLD), how, strict=True):
        if libc.mallopt(name, value) != 1:
            raise AssertionError(f"mallopt({name}, {value}) was refused")
