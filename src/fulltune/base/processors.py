"""What of the machine this process may use."""

import os
from pathlib import Path


def cores() -> int:
    """Those that it is allowed, which in a container may be fewer than the machine has."""
    return len(os.sched_getaffinity(0))


def available_bytes() -> int:
    """Host memory that can still be had, as the kernel reckons it."""
    for line in Path("/proc/meminfo").read_text().splitlines():
        name, _, value = line.partition(":")
        if name == "MemAvailable":
            return int(value.split()[0]) * 1024
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES")
