"""Whether freed memory goes back to the system: seen from outside, in a process of its own."""

import os
import platform
import subprocess
import sys
from typing import Any

import pytest

from fulltune.base import allocator
from fulltune.engine.contract import World
from fulltune.engines import By, reusing

LOOK = """
import sys
from contextlib import nullcontext
from fulltune.base.allocator import returning

def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096

with returning() if sys.argv[1] == "returning" else nullcontext():
    for _ in range(3):  # by then glibc has learned that blocks of this size come and go
        block = bytearray(24 << 20)
        del block
    before = resident()
    # Small ones between them, which stay: what is free below them cannot be given back from the end of the heap.
    blocks = [(bytearray(24 << 20), [bytearray(900) for _ in range(50)]) for _ in range(4)]
    blocks = [small for _, small in blocks]
    print((resident() - before) >> 20)
print(sum(map(len, blocks)), file=sys.stderr)
"""

PASSES = """
import resource
import sys
from contextlib import nullcontext
from fulltune.base.allocator import keeping, returning

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(4):
        bytearray(b"x") * (48 << 20)  # beyond 32 MiB glibc maps each anew, whatever it has learned
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

with keeping() if sys.argv[1] == "keeping" else nullcontext():
    faults()
    print(faults())
    with returning():
        print(faults())
    faults()
    print(faults())
print(faults())
"""
GLIBC = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="it is glibc's allocator that is told")


def provided(how: str, **variables: str) -> list[int]:
    """Pages that the system provided for four blocks of 12,288: inside, returning within, inside again, outside."""
    plain = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    command = [sys.executable, "-c", PASSES, how]
    done = subprocess.run(command, env=plain | variables, capture_output=True, text=True, check=True)
    return [int(line) for line in done.stdout.split()]


@GLIBC
def test_blocks_that_are_kept_are_not_provided_anew() -> None:
    pages = 4 * 12288
    inside, returned, again, outside = provided("keeping")
    assert inside < pages / 100 and again < pages / 100
    assert returned >= pages / 2 and outside >= pages / 2, "what held before holds again, but for what lay free"
    assert provided("as ever")[0] >= pages, "else this looks at nothing"


@GLIBC
def test_what_a_user_told_glibc_is_left_alone() -> None:
    pages = 4 * 12288
    assert provided("keeping", MALLOC_MMAP_THRESHOLD_="1048576")[0] >= pages
    kept = {"MALLOC_MMAP_THRESHOLD_": str(1 << 30), "MALLOC_TRIM_THRESHOLD_": str(1 << 30)}
    assert max(provided("as ever", **kept)) < pages / 100, "also behind a time in which it would all be given back"


@GLIBC
def test_large_blocks_go_back_to_the_system_at_once() -> None:
    def held(how: str) -> int:
        done = subprocess.run([sys.executable, "-c", LOOK, how], capture_output=True, text=True, check=True)
        return int(done.stdout)

    assert held("returning") <= 2
    assert held("as ever") >= 24, "else this looks at nothing"


@GLIBC
@pytest.mark.parametrize(
    ("device", "engine", "largest", "keeps"),
    [
        ("cpu", "single", 0, True),
        ("cpu", "ddp", allocator.LARGEST, True),
        ("cpu", "single", allocator.LARGEST + 1, False),
        ("cpu", "fsdp2", 0, False),
        ("cpu", "zero1", 0, False),
        ("cuda:0", "single", 0, False),
    ],
)
def test_it_is_kept_for_passes_of_small_tensors_by_a_model_that_is_whole_on_the_host(
    monkeypatch: pytest.MonkeyPatch, device: str, engine: Any, largest: int, keeps: bool
) -> None:
    for name in (*allocator._VARIABLES, "GLIBC_TUNABLES"):
        monkeypatch.delenv(name, raising=False)
    before = allocator._now[-1]
    with reusing(World(rank=0, size=1, device=device), By(engine), largest):
        assert (allocator._now[-1] == allocator._KEEPING) is keeps
    whole_here = device == "cpu" and engine in ("single", "ddp")
    with reusing(World(rank=0, size=1, device=device), By(engine), largest, frugal=True):
        assert allocator._now[-1] == (allocator._RETURNING if whole_here else before)
    assert allocator._now[-1] == before


KERNELS = """
import ctypes, sys, torch
from fulltune.base.allocator import hold_few_kernels

if sys.argv[1] == "few":
    hold_few_kernels()

class Found(ctypes.Structure):
    names = "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost"
    _fields_ = [(name, ctypes.c_size_t) for name in names.split()]

def used():
    ask = ctypes.CDLL(None).mallinfo2
    ask.restype = Found
    return ask().uordblks

weight = torch.zeros(256, 256, dtype=torch.bfloat16)
torch.zeros(64, 256, dtype=torch.bfloat16) @ weight
before = used()
for rows in range(100, 700):
    torch.zeros(rows, 256, dtype=torch.bfloat16) @ weight
print(used() - before)
"""


def test_few_kernels_are_held_and_what_a_user_said_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ONEDNN_PRIMITIVE_CACHE_CAPACITY", raising=False)
    monkeypatch.setenv("LRU_CACHE_CAPACITY", "77")
    allocator.hold_few_kernels()
    assert 0 < int(os.environ["ONEDNN_PRIMITIVE_CACHE_CAPACITY"]) < 77 == int(os.environ["LRU_CACHE_CAPACITY"])
    monkeypatch.delenv("LRU_CACHE_CAPACITY")
    allocator.hold_few_kernels()
    assert 0 < int(os.environ["LRU_CACHE_CAPACITY"]) <= 256, "0 makes torch crash"
    os.environ.pop("LRU_CACHE_CAPACITY")
    os.environ.pop("ONEDNN_PRIMITIVE_CACHE_CAPACITY")


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc tells what is held")
def test_products_in_16_bits_hold_less_for_many_shapes() -> None:
    clean = {k: v for k, v in os.environ.items() if k not in ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY")}
    clean["OMP_NUM_THREADS"] = "1"

    def held(how: str) -> int:
        done = subprocess.run([sys.executable, "-c", KERNELS, how], env=clean, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return int(done.stdout)

    many = held("many")
    if many < 50 << 20:
        pytest.skip("this processor multiplies bfloat16 without kernels that are kept")
    assert held("few") < 0.6 * many
