"""What of a machine's memory may be had: as the kernel says, or as a container's limit leaves."""

from pathlib import Path

from fulltune.base.processors import available_bytes, total_bytes

MEMINFO = "MemTotal:       1000 kB\nMemFree:         100 kB\nMemAvailable:    600 kB\n"


def files(root: Path, **contents: str) -> Path:
    """A small /proc and /sys; `__` stands for a slash."""
    for name, text in {"proc__meminfo": MEMINFO, **contents}.items():
        path = root / name.replace("__", "/").replace("-", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def test_files_in_memory_can_be_had() -> None:
    assert 0 < available_bytes() <= total_bytes()


def test_without_a_group_the_kernels_word_holds(tmp_path: Path) -> None:
    root = files(tmp_path)
    assert (available_bytes(root), total_bytes(root)) == (600 * 1024, 1000 * 1024)


def test_a_groups_limit_counts_where_it_is_lower_and_its_files_do_not(tmp_path: Path) -> None:
    inner = {"memory-current": "300000", "memory-stat": "anon 100000\nactive_file 120000\ninactive_file 60000\n"}
    group = {f"sys__fs__cgroup__box__job__{name}": text for name, text in inner.items()}
    root = files(
        tmp_path, **group, **{"sys__fs__cgroup__box__job__memory-max": "500000"}, proc__self__cgroup="0::/box/job\n"
    )
    assert available_bytes(root) == 500_000 - (300_000 - 180_000)
    assert total_bytes(root) == 500_000


def test_a_group_without_a_limit_is_none_but_the_one_around_it_may_have_one(tmp_path: Path) -> None:
    place = "sys__fs__cgroup__box"
    root = files(
        tmp_path,
        **{f"{place}__job__memory-max": "max", f"{place}__job__memory-current": "7"},
        **{f"{place}__memory-max": "400000", f"{place}__memory-current": "100000"},
        proc__self__cgroup="0::/box/job\n",
    )
    assert (available_bytes(root), total_bytes(root)) == (300_000, 400_000)


def test_a_container_may_see_its_group_as_the_top(tmp_path: Path) -> None:
    root = files(
        tmp_path,
        **{"sys__fs__cgroup__memory-max": "400000", "sys__fs__cgroup__memory-current": "100000"},
        proc__self__cgroup="0::/outside/name\n",
    )
    assert available_bytes(root) == 300_000


def test_groups_of_version_1_are_understood(tmp_path: Path) -> None:
    place = "sys__fs__cgroup__memory__job__memory-"
    stat = "cache 1\nactive_file 5\ninactive_file 5\ntotal_active_file 30000\ntotal_inactive_file 20000\n"
    root = files(
        tmp_path,
        **{f"{place}limit_in_bytes": "500000", f"{place}usage_in_bytes": "250000", f"{place}stat": stat},
        proc__self__cgroup="9:name=systemd:/\n4:memory:/job\n3:cpu:/job\n",
    )
    assert available_bytes(root) == 500_000 - 200_000
    unlimited = files(tmp_path, **{f"{place}limit_in_bytes": "9223372036854771712"})
    assert (available_bytes(unlimited), total_bytes(unlimited)) == (600 * 1024, 1000 * 1024)
