"""What glibc's allocator does with memory that is freed: keeps it for the next one, or gives it back to the system."""

import ctypes
import gc
import platform
from collections.abc import Iterator
from contextlib import contextmanager

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
"""Names of `mallopt` (malloc.h)."""
_MIB = 1 << 20
_LARGEST = 32 * _MIB
"""Up to which glibc raises the second by itself, as blocks are freed; the first is then twice as large."""


def _tuned(mapped: int, kept: int) -> None:
    """`mapped`: from which size a block is a mapping of its own. `kept`: how much may lie free at a heap's end."""
    libc = ctypes.CDLL(None)
    for name, value in ((_MMAP_THRESHOLD, mapped), (_TRIM_THRESHOLD, kept)):
        if libc.mallopt(name, value) != 1:
            raise AssertionError(f"mallopt({name}, {value}) was refused")


@contextmanager
def returning() -> Iterator[None]:
    """In here a block of a MiB goes back to the system when it is freed, and all that is free does at the end.

    Weights that are gathered and dropped, layer by layer, otherwise leave holes that the next ones do not fit into:
    600 MiB of shards then grew to 2,000. It costs the system's work for each block, so it is not for training. Without
    glibc nothing changes.
    """
    if platform.libc_ver()[0] != "glibc":
        yield
        return
    _tuned(_MIB, _MIB)
    try:
        yield
    finally:
        _tuned(_LARGEST, 2 * _LARGEST)
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)
