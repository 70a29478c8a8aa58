"""How processes meet, and what machine they are on."""

import faulthandler
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import cast

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import HashStore, PrefixStore
from torch.distributed.rendezvous import rendezvous

from fulltune.base.allocator import hold_few_kernels
from fulltune.base.errors import RankError, RecipeError
from fulltune.base.place import Place, place
from fulltune.base.processors import cores, total_bytes
from fulltune.base.records import Machine
from fulltune.engine.contract import World
from fulltune.engine.crew import Alone, Crew, Several, lost, parted

_START = 300.0
"""Seconds that processes have at least to meet: imports from a slow disk take their time."""


def world() -> World:
    """This process alone. RecipeError under a launcher of several: a stage that one process does is done once."""
    size = place().size
    if size > 1:
        raise RecipeError(
            f"started as one of {size} processes, but only training is done by several",
            where="WORLD_SIZE",
            mend="start this command without torchrun, accelerate or srun",
        )
    return World(rank=0, size=1, device="cuda:0" if torch.cuda.is_available() else "cpu")


@dataclass(frozen=True, slots=True)
class Meeting:
    """This process's place among those of a run, and what they can tell each other."""

    world: World
    crew: Crew


def alone() -> Meeting:
    """One process, by itself."""
    hold_few_kernels()
    return Meeting(world(), Alone())


@contextmanager
def joined(timeout: float, *, grouped: bool = False) -> Iterator[Meeting]:
    """In here the processes that the launcher started can talk.

    `timeout`: seconds that one waits for another in a collective. `grouped`: also one process is to be a group, as DDP
    and FSDP2 ask for. RankError if they do not meet.
    """
    here = place()
    if here.size == 1:
        if grouped:
            backend = "gloo" if not torch.cuda.is_available() else "cpu:gloo,cuda:nccl"
            dist.init_process_group(backend, store=HashStore(), rank=0, world_size=1)
        try:
            yield alone()
        finally:
            if grouped:
                dist.destroy_process_group()
        return
    hold_few_kernels()
    device = f"cuda:{here.local}" if torch.cuda.is_available() else "cpu"
    _require_device(here)
    limit = timedelta(seconds=timeout)
    _meet_by_slurm()
    try:
        start = timedelta(seconds=max(timeout, _START))
        store, rank, size = next(rendezvous("env://", here.rank, here.size, timeout=start))
        if device != "cpu":
            torch.cuda.set_device(device)
        backend = "gloo" if device == "cpu" else "cpu:gloo,cuda:nccl"
        meeting = PrefixStore("fulltune", store)
        dist.init_process_group(backend, store=meeting, rank=rank, world_size=size, timeout=limit)
        control = dist.new_group(backend="gloo", timeout=limit)
    except (RuntimeError, ValueError) as fault:
        raise _not_met(fault) from fault
    assert control is not None
    crew = Several(cast(dist.ProcessGroup, control), PrefixStore("told", store), timeout)
    try:
        yield Meeting(World(rank=rank, size=size, device=device), crew)
        crew.any(False)  # nobody leaves before all are done: what is left of a collective would fail
    except RuntimeError as fault:
        if not parted(fault):
            raise
        faulthandler.dump_traceback()
        raise lost(fault) from fault
    finally:
        crew.leave()
        dist.destroy_process_group()


def _not_met(fault: RuntimeError | ValueError) -> RankError:
    if "EADDRINUSE" in str(fault):
        return RankError(
            f"port {os.environ['MASTER_PORT']}, where the processes are to meet, belongs to another program",
            where="MASTER_PORT",
            mend="give it another number, the same for all processes of this run",
        )
    return lost(RuntimeError(fault))


def _require_device(here: Place) -> None:
    if torch.cuda.is_available() and here.local >= torch.cuda.device_count():
        raise RecipeError(
            f"process {here.local} of this machine has no GPU of its own: there are {torch.cuda.device_count()}",
            where="LOCAL_RANK",
            mend="start as many processes on each machine as it has GPUs",
        )


def _meet_by_slurm() -> None:
    """Where srun alone started the processes: they meet on the job's first machine, at a port made of its number."""
    said = os.environ
    if "MASTER_ADDR" in said or "SLURM_PROCID" not in said:
        return
    said["MASTER_ADDR"] = first_host(said["SLURM_STEP_NODELIST"])
    said.setdefault("MASTER_PORT", str(20000 + int(said["SLURM_JOB_ID"]) % 20000))


def first_host(listed: str) -> str:
    """Of Slurm's short form of host names: `gpu[03-07,12],big1` begins with `gpu03`."""
    name, bracket, rest = listed.partition("[")
    if not bracket or "," in name:
        return name.partition(",")[0]
    numbers, _, behind = rest.partition("]")
    return name + re.split("[-,]", numbers)[0] + behind.partition(",")[0]


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
    # Without instructions for it, bf16 on a CPU is emulated, or half as fast as float32. Measured with them: products
    # 2 to 4 times as fast by AVX-512's, and updates 1.6 times; products 9 times as fast by AMX's.
    capabilities = torch.cpu.get_capabilities()
    return Machine(
        kind="cpu",
        name=str(capabilities.get("cpu_name", "CPU")),
        devices=1,
        bytes_per_device=total_bytes(),
        cores=cores(),
        bf16=bool(capabilities.get("amx_bf16") or capabilities.get("avx512_bf16")),
    )
