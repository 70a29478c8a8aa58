"""What of the machine this process may use."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_ROOT = Path("/")
_CACHE = ("active_file", "inactive_file", "slab_reclaimable")
"""What of a group's memory the kernel takes back when somebody wants it."""


def cores() -> int:
    """Those that it is allowed, which in a container may be fewer than the machine has."""
    return len(os.sched_getaffinity(0))


def available_bytes(root: Path = _ROOT) -> int:
    """Host memory that can still be had, as the kernel reckons it: files that it keeps in memory can be dropped.

    In a container no more than its limit leaves. `root`: where /proc and /sys lie.
    """
    free = _meminfo(root, "MemAvailable")
    return min([free, *(max(0, limit.bytes - limit.used) for limit in _limits(root))])


def total_bytes(root: Path = _ROOT) -> int:
    """Host memory, or what a container may have of it."""
    return min([_meminfo(root, "MemTotal"), *(limit.bytes for limit in _limits(root))])


def _meminfo(root: Path, wanted: str) -> int:
    for line in (root / "proc/meminfo").read_text().splitlines():
        name, _, value = line.partition(":")
        if name == wanted:
            return int(value.split()[0]) * 1024
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES")


@dataclass(frozen=True, slots=True)
class _Limit:
    """Of a control group, and what its processes hold besides files."""

    bytes: int
    used: int


def _limits(root: Path) -> Iterator[_Limit]:
    """Of all groups that this process is in; of a group without a limit none."""
    for folder in _groups(root):
        for limit, used in (("memory.max", "memory.current"), ("memory.limit_in_bytes", "memory.usage_in_bytes")):
            if (folder / limit).exists() and (folder / used).exists():
                said = (folder / limit).read_text().strip()
                if said != "max":
                    yield _Limit(int(said), int((folder / used).read_text()) - _cached(folder))


def _groups(root: Path) -> Iterator[Path]:
    """Folders of the groups, each within the next: of version 2, or of version 1's memory."""
    own = root / "proc/self/cgroup"
    for line in own.read_text().splitlines() if own.exists() else ():
        _, kinds, place = line.split(":", 2)
        if kinds not in ("", "memory"):
            continue
        top = root / "sys/fs/cgroup" / kinds
        inner = top / place.lstrip("/")
        # A container may see its own group as the top, under whatever name it has outside.
        yield from (folder for folder in (inner, *inner.parents) if folder.is_relative_to(top) and folder.is_dir())


def _cached(folder: Path) -> int:
    stat = folder / "memory.stat"
    lines = stat.read_text().splitlines() if stat.exists() else ()
    named = dict(line.split(maxsplit=1) for line in lines)
    prefix = "total_" if "total_active_file" in named else ""  # version 1 has the group's own besides
    return sum(int(named[prefix + name]) for name in _CACHE if prefix + name in named)
