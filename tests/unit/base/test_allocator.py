"""Whether freed memory goes back to the system: seen from outside, in a process of its own."""

import platform
import subprocess
import sys

import pytest

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


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="it is glibc's allocator that is told")
def test_large_blocks_go_back_to_the_system_at_once() -> None:
    def held(how: str) -> int:
        done = subprocess.run([sys.executable, "-c", LOOK, how], capture_output=True, text=True, check=True)
        return int(done.stdout)

    assert held("returning") <= 2
    assert held("as ever") >= 24, "else this looks at nothing"
