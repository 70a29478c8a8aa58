"""Whether an error says that memory ran out, and what is said then."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from fulltune.base.errors import MachineError

_SAID = ("can't allocate memory", "not enough memory", "out of memory", "CUBLAS_STATUS_ALLOC_FAILED")
"""How allocators and the libraries behind torch say it where the type of the error does not."""


def out_of_memory(fault: BaseException) -> bool:
    """Whether an error says that memory ran out; on a CPU torch has only words for it."""
    if isinstance(fault, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(fault, RuntimeError) and any(words in str(fault) for words in _SAID)


def first_line(fault: BaseException) -> str:
    """What it says, in a line; its type where it says nothing."""
    return (str(fault) or type(fault).__name__).splitlines()[0]


@contextmanager
def explained(what: str, *, where: str, mend: str) -> Iterator[None]:
    """In here a lack of memory is a MachineError: out of memory `what`, and what would help."""
    try:
        yield
    except (RuntimeError, MemoryError) as fault:
        if not out_of_memory(fault):
            raise
        raise MachineError(f"out of memory {what}: {first_line(fault)}", where=where, mend=mend) from fault
