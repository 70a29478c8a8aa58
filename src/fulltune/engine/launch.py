"""Which process this is, on which machine."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from fulltune.base.errors import RecipeError
from fulltune.base.processors import cores
from fulltune.base.records import Machine
from fulltune.engine.contract import World


def world() -> World:
    """This process's place. RecipeError under a launcher of several processes: each would train a model of its own."""
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size > 1:
        raise RecipeError(
            f"started as one of {size} processes, but this version trains on one device",
            where="WORLD_SIZE",
            mend="start `fulltune train` without torchrun, accelerate or srun",
        )
    return World(rank=0, size=1, device="cuda:0" if torch.cuda.is_available() else "cpu")


@contextmanager
def deterministic(asked: bool) -> Iterator[None]:
    """In here, if it is asked for, only kernels that give the same bits each time; what has none is an error."""
    if not asked:
        yield
        return
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read by cuBLAS when it first works
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)


def machine() -> Machine:
    """What this run may use."""
    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        return Machine(
            kind="cuda",
            name=properties.name,
            devices=torch.cuda.device_count(),
            bytes_per_device=properties.total_memory,
            cores=cores(),
            bf16=torch.cuda.is_bf16_supported(including_emulation=False),
        )
    # Without AMX, bf16 on a CPU is emulated or half as fast as float32 (measured: 9x faster with it).
    capabilities = torch.cpu.get_capabilities()
    return Machine(
        kind="cpu",
        name=str(capabilities.get("cpu_name", "CPU")),
        devices=1,
        bytes_per_device=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        cores=cores(),
        bf16=bool(capabilities.get("amx_bf16")),
    )
