"""All sources of all splits -> parts on disk, by as many processes as are asked for."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from fulltune.base.processors import cores
from fulltune.data.augment import augments
from fulltune.data.findings import Findings
from fulltune.data.intake import Intake, Placed
from fulltune.data.parts import Part
from fulltune.data.pool import Work, do
from fulltune.data.reading.places import Place
from fulltune.data.sources import places, whole_digest
from fulltune.data.work import Task
from fulltune.recipe.data import DataSection, Source

ROWS, CHARACTERS = 4096, 8 << 20
"""Most rows of a part, and about how many characters: what a process holds in memory."""


@dataclass(frozen=True, slots=True)
class Gathered:
    """What was read of one source."""

    split: str
    number: int
    source: Source
    files: tuple[str, ...]
    format: str
    sha256: str
    unread: int
    """Rows that could not even be read; they stand in no part."""


class Gathering:
    """Reads every source once, in order, and lets workers turn the rows into parts."""

    def __init__(self, data: DataSection, folder: Path, findings: Findings, *, looked_for: bool) -> None:
        """`looked_for`: whether the texts of training and measured rows are kept to be compared."""
        self._data, self._folder, self._findings, self._looked_for = data, folder, findings, looked_for
        self.sources: list[Gathered] = []
        self.parts: list[Part] = []

    def run(
        self,
        splits: Mapping[str, Sequence[Source]],
        here: Callable[[], Work],
        elsewhere: Callable[[], Work] | None,
    ) -> None:
        """Fills `sources` and `parts`. What stands in the folder from an earlier try is not made again."""
        do(self._tasks(splits), here, elsewhere, self._data.processes or cores())

    def _tasks(self, splits: Mapping[str, Sequence[Source]]) -> Iterator[Task]:
        for split, sources in splits.items():
            listed: set[tuple[Place, str | None, str | None]] = set()
            for number, source in enumerate(sources):
                fresh = []
                for place in places(source, self._findings):
                    if (key := (place, source.name, source.split)) in listed:
                        mend = "name it once; the `share` of a source says how often it is seen"
                        what = f"data.{split} names this file twice"
                        self._findings.bad_file(place.path, "listed_twice", what, mend)
                    else:
                        fresh.append(place)
                    listed.add(key)
                yield from self._source(split, number, source, fresh)

    def _source(self, split: str, number: int, source: Source, fresh: Sequence[Place]) -> Iterator[Task]:
        dropped, unreadable = self._findings.dropped.total(), len(self._findings.unreadable)
        intake = Intake(source, fresh, self._findings)
        files = tuple(place.path for place in fresh)
        looked_for = self._looked_for and split != "retention"
        sided = split == "train" and number < len(self._data.train)
        makes_more = augments(source, f"data.{split}.{number}") if split == "train" else ()
        for count, rows in enumerate(_portions(intake)):
            folder = self._folder / f"{split}-{number:03}-{count:06}"
            self.parts.append(Part(split, number, folder))
            yield Task(source, intake.format, files, rows, folder, looked_for, sided, makes_more)
        fine = len(self._findings.unreadable) == unreadable
        self.sources.append(
            Gathered(
                split=split,
                number=number,
                source=source,
                files=files,
                format=intake.format,
                sha256=whole_digest(source, fresh) if fine else "",
                unread=self._findings.dropped.total() - dropped,
            )
        )


def _portions(rows: Intake) -> Iterator[list[Placed]]:
    """Rows that follow each other, so few that they may lie in memory."""
    together: list[Placed] = []
    size = 0
    for row in rows:
        together.append(row)
        size += len(repr(row[2]))
        if len(together) == ROWS or size >= CHARACTERS:
            yield together
            together, size = [], 0
    if together:
        yield together
