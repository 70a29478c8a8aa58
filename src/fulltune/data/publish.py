"""From parts and a choice to the prepared data: shards, an index for each split, and the rows that were left out."""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fulltune.base import stop
from fulltune.base.records import SourceFacts, SplitFacts
from fulltune.data.choose import GONE, SPLITS, Choice, Rows
from fulltune.data.findings import Findings
from fulltune.data.gather import Gathered
from fulltune.data.intake import Intake, Placed
from fulltune.data.parts import Part, ship
from fulltune.data.sources import places
from fulltune.data.store import INDEX, SplitWriter, facts_of
from fulltune.recipe.checks import PER_ROW

_WHAT: Mapping[str, str] = {
    "duplicate": "the same content stood before",
    "leak": "another split holds the same content",
    "too_long": "it has more tokens than data.max_length",
    **PER_ROW,
}
"""What is said of rows that were left out after they had been read and rendered."""


def publish(rows: Rows, choice: Choice, folder: Path) -> dict[str, SplitFacts]:
    """Write shards and splits into the folder."""
    shards = []
    for number, part in enumerate(rows.tables.parts):
        ship(part, folder / "shards" / f"{number:06}")
        shards.append((f"../shards/{number:06}", part.said.tokens))
    facts = {}
    for split in SPLITS:
        with SplitWriter(folder / split, shards) as writer:
            pieces = list(_written(rows, choice, split, writer))
        columns = [np.concatenate(column) for column in zip(*pieces, strict=True)]
        facts[split] = facts_of(*(columns or [np.empty(0, np.int32)] * 3))
    return facts


def _written(
    rows: Rows, choice: Choice, split: str, writer: SplitWriter
) -> Iterator[tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.int32]]]:
    """Tokens, taught tokens and source of the examples of each part that belong to the split."""
    for number, (part, here) in enumerate(rows.tables.slices()):
        found = kept_examples(part, choice.side[here], split)
        table = part.rows[found["row"]]
        index = np.empty(len(found), INDEX)
        index["shard"], index["start"], index["length"] = number, found["start"], found["length"]
        index["source"], index["file"], index["line"] = part.source, table["file"], table["line"]
        writer.append(index)
        yield index["length"].copy(), found["taught"].copy(), index["source"].copy()


def kept_examples(part: Part, side: NDArray[np.int8], split: str) -> NDArray[Any]:
    """The examples of a part that belong to a split: copies of a row are only ever taught. EXAMPLE [examples]."""
    examples = part.examples
    here = side[examples["row"]] == SPLITS.index(split)
    found: NDArray[Any] = examples[here if split == "train" else here & (examples["augmented"] == 0)]
    return found


def source_facts(rows: Rows, choice: Choice, gathered: Sequence[Gathered]) -> dict[str, tuple[SourceFacts, ...]]:
    """What became of each source, by split; what is kept back from training has the sources of training."""
    counted: dict[tuple[str, int], list[int]] = {(one.split, one.number): [one.unread, 0, 0] for one in gathered}
    for part, here in rows.tables.slices():
        count = counted[part.split, part.source]
        count[0] += int(part.rows["rows"].sum())
        for split in SPLITS:
            found = kept_examples(part, choice.side[here], split)
            count[1] += len(found)
            count[2] += int(found["augmented"].sum())
    made: dict[str, list[SourceFacts]] = {split: [] for split in SPLITS}
    for one in gathered:
        read, examples, augmented = counted[one.split, one.number]
        made[one.split].append(
            SourceFacts(
                path=one.source.path,
                files=one.files,
                format=one.format,
                sha256=one.sha256,
                rows=read,
                examples=examples,
                augmented=augmented,
            )
        )
    for split in ("heldout", "test"):
        made[split] = made[split] or made["train"]
    return {split: tuple(facts) for split, facts in made.items()}


def write_rejected(rows: Rows, choice: Choice, gathered: Sequence[Gathered], path: Path) -> None:
    """Every row that was left out, with its reason, as one JSON object a line. The sources are read once more."""
    with path.open("w", encoding="utf-8") as file:
        for one, together in zip(gathered, parts_of(rows, gathered), strict=True):
            if one.unread or any((choice.side[here] == GONE).any() for _, here in together):
                for line in _rejected(one, together, choice):
                    file.write(json.dumps(line, ensure_ascii=False, default=str) + "\n")


def parts_of(rows: Rows, gathered: Sequence[Gathered]) -> Iterator[list[tuple[Part, slice]]]:
    """The parts of each source, and where their rows lie among all."""
    found: Mapping[Any, list[tuple[Part, slice]]] = {
        (together[0][0].split, together[0][0].source): together for together in rows.by_source()
    }
    for one in gathered:
        yield found.get((one.split, one.number), [])


def _rejected(one: Gathered, together: Sequence[tuple[Part, slice]], choice: Choice) -> Iterator[dict[str, Any]]:
    findings = Findings()
    raw = iter(Intake(one.source, places(one.source, Findings()), findings))
    for part, here in together:
        stop.check()
        said = {number: (code, what) for number, code, what, _ in part.said.faults}
        for number, entry in enumerate(part.rows):
            own: list[Placed] = [next(raw) for _ in range(int(entry["rows"]))]
            yield from _unread(one, findings)
            if choice.side[here.start + number] == GONE:
                code = choice.codes[choice.reason[here.start + number]]
                what = said.get(number, (code, _WHAT.get(code, "")))[1]
                for file, line, row in own:
                    yield _line(one, f"{one.files[file]}:{line}", code, what, row)
    for _ in raw:
        pass
    yield from _unread(one, findings)


def _unread(one: Gathered, findings: Findings) -> Iterator[dict[str, Any]]:
    """What could not be read since the last call."""
    for fault in findings.faults:
        yield _line(one, fault.where, fault.code, fault.what, None)
    findings.faults.clear()


def _line(one: Gathered, origin: str, code: str, what: str, row: Any) -> dict[str, Any]:
    return {"origin": origin, "split": one.split, "code": code, "what": what, "row": row}
