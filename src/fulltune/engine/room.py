"""Whether an error says that memory ran out."""

import torch

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
