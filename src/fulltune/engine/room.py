"""How much memory may be taken, whether an error says that it ran out, and what is said then."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from fulltune.base.errors import MachineError
from fulltune.base.memory import GIB

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


def keep_within(budget: float | None, device: str) -> None:
    """Let this process take no more than so many GiB of its GPU, as if it had no more; elsewhere nothing is limited.

    It holds for torch's allocator. What CUDA itself takes besides, half a GiB or so, does not count.
    """
    if budget is not None and device.startswith("cuda"):
        whole = torch.cuda.get_device_properties(device).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, budget * GIB / whole), device)


@contextmanager
def explained(what: str, *, where: str, mend: str) -> Iterator[None]:
    """In here a lack of memory is a MachineError: out of memory `what`, and what would help."""
    try:
        yield
    except (RuntimeError, MemoryError) as fault:
        if not out_of_memory(fault):
            raise
        raise MachineError(f"out of memory {what}: {first_line(fault)}", where=where, mend=mend) from fault
