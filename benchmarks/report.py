"""Results as tables and files: one Markdown page, shown and kept, and every number as JSON."""

import dataclasses
import datetime
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.machine import Occasion

RESULTS = Path(__file__).with_name("results")


def table(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """A Markdown table whose columns are aligned also as plain text; all but the first are numbers."""
    widths = [max(map(len, column)) for column in zip(head, *lines, strict=True)]

    def line(cells: Sequence[str]) -> str:
        first, *others = (
            cell.ljust(width) if place == 0 else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(cells, widths, strict=True))
        )
        return f"| {' | '.join([first, *others])} |"

    first, *others = widths
    rule = f"|{'|'.join(['-' * (first + 2), *('-' * (width + 1) + ':' for width in others)])}|"
    return "\n".join([line(head), rule, *map(line, lines)])


def size(count: float) -> str:
    """Bytes for people."""
    return f"{count / 2**20:,.0f} MiB"


def facts(values: Mapping[str, str]) -> str:
    """What holds for the whole result, as a list."""
    return "\n".join(f"- {name}: {value}" for name, value in values.items())


def heading(when: Occasion) -> Iterator[tuple[str, str]]:
    """What stands beside any number: when, how, of what, on what."""
    machine = when.machine
    yield "date", when.date
    yield "command", f"`{when.command}`"
    yield "commit", when.commit
    yield (
        "machine",
        f"{machine.cpu}, {machine.cores} cores, {machine.memory / 2**30:.0f} GiB, {machine.system}; "
        f"load {machine.load} before it began",
    )


def versions(found: Mapping[str, Mapping[str, str]]) -> str:
    """Every package once; where contestants have different versions, with the names of those."""
    packages = dict.fromkeys(package for inner in found.values() for package in inner)
    return ", ".join(f"{package} {_version(package, found)}" for package in packages)


def _version(package: str, found: Mapping[str, Mapping[str, str]]) -> str:
    having: dict[str, list[str]] = {}
    for name, inner in found.items():
        if package in inner:
            having.setdefault(inner[package], []).append(name)
    if len(having) == 1:
        return next(iter(having))
    return ", ".join(f"{version} ({', '.join(names)})" for version, names in having.items())


def write(folder: Path, name: str, page: str, record: Mapping[str, Any]) -> tuple[Path, Path]:
    """`name`.md, which is the latest, and `name`-<date>.json, of which every one is kept. Returns both places."""
    folder.mkdir(parents=True, exist_ok=True)
    kept = _free(folder, f"{name}-{datetime.datetime.now(datetime.UTC).date().isoformat()}")
    kept.write_text(json.dumps(record, indent=2, ensure_ascii=False, default=_plain) + "\n", encoding="utf-8")
    latest = folder / f"{name}.md"
    latest.write_text(f"{page.rstrip()}\n\nEvery run of it: [{kept.name}]({kept.name})\n", encoding="utf-8")
    return latest, kept


def _free(folder: Path, stem: str) -> Path:
    """The first name of the day that is not taken."""
    number, path = 1, folder / f"{stem}.json"
    while path.exists():
        number += 1
        path = folder / f"{stem}-{number}.json"
    return path


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    if isinstance(value, Path):
        return value.name
    raise TypeError(f"no JSON for {type(value).__name__}")
