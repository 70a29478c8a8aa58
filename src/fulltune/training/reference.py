"""What the base predicts of texts: worked out once, before the first update, and kept as files beside the run.

Of each token the likeliest next tokens with their probabilities, and that of all others together (`divergence.py`). A
folder of rows of tensors (`docs/decisions/0012`): each process writes those of the texts that it saw, some MiB to a
file, and any number of processes reads them. `card.json` says what they belong to, and has their digests.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import safe_open
from torch import Tensor, nn

from fulltune.base import stop
from fulltune.base.errors import CheckpointError
from fulltune.base.files import discard, flush, private_folder, read_record, remove, sha256, write_record
from fulltune.base.log import LOGGER
from fulltune.batch import Batch, Reference
from fulltune.divergence import Likely
from fulltune.engine.contract import Engine
from fulltune.engine.crew import Crew
from fulltune.engine.tensors import write_tensors
from fulltune.objectives import NextToken

_CARD = "card.json"
_FILE = 64 << 20
"""Bytes after which the next file is begun: so much is held of what is not written yet."""


def bytes_of(tokens: int, top: int) -> int:
    """What is kept of so many tokens, on disk."""
    return tokens * (8 * top + 4)


@dataclass(frozen=True, slots=True, kw_only=True)
class Card:
    """What a folder holds."""

    key: str
    """Of the model, the texts and how they are looked at: another key, other predictions."""
    top: int
    tokens: int
    rest: float
    """Mean probability of all tokens but the likeliest ones: what counts as one."""
    files: dict[str, str]
    """Name -> sha256."""


class References:
    """What the base predicts of some examples, read from disk batch by batch; made by `make`."""

    def __init__(self, folder: Path, key: str, top: int, cut: Mapping[int, int]) -> None:
        """`cut`: examples of which the first so many supervised tokens are looked at; of all others all of them."""
        self._folder, self._key, self._top, self._cut = folder, key, top, cut
        self._read: _Files | None = None

    def stand(self, crew: Crew) -> bool:
        """Whether they are there, just these, and whole: every byte is looked at."""
        return crew.told(self._are_whole)

    def _are_whole(self) -> bool:
        if not (self._folder / _CARD).exists():
            return False
        try:
            card = read_record(self._folder / _CARD, Card)
        except CheckpointError as fault:
            LOGGER.warning(f"{fault}: what the base predicts is worked out anew")
            return False
        files = {name: self._folder / name for name in card.files}
        broken = [name for name, path in files.items() if not path.is_file() or sha256(path) != card.files[name]]
        if broken:
            LOGGER.warning(f"{self._folder}: {', '.join(broken)} is damaged: what the base predicts is worked out anew")
        return card.key == self._key and not broken

    def make(self, batches: Iterable[Batch], engine: Engine, objective: NextToken, crew: Crew) -> None:
        """Write them by the model that the engine has now. All processes call it, with equally many batches.

        Interrupted where a signal came.
        """
        draft = Path(crew.told(self._draft))
        writer, mass, tokens = _Writer(draft, crew.rank), 0.0, 0
        with engine.evaluating():
            for batch in batches:
                stop.check_all(engine.any)
                counts, rows = self._looked_at(batch)
                here, rows = batch.to(engine.world.device), rows.to(engine.world.device)
                found = engine.inside(partial(self._asked, objective, here, rows))
                mass += float(found.rest.double().exp().sum())
                tokens += len(rows)
                writer.add(batch.examples, counts, [column.cpu() for column in found])
        writer.flush()
        mass, tokens = float(crew.sum(torch.tensor(mass, dtype=torch.float64))), int(crew.sum(torch.tensor(tokens)))
        files = {name: digest for part in crew.gathered(writer.files) for name, digest in part.items()}
        card = Card(key=self._key, top=self._top, tokens=tokens, rest=mass / max(1, tokens), files=files)
        crew.told(lambda: self._publish(draft, card))
        self._read = None

    def _asked(self, objective: NextToken, batch: Batch, rows: Tensor, model: nn.Module) -> Likely:
        assert model is objective.model
        return objective.likeliest(batch, rows, self._top)

    def _draft(self) -> str:
        """An empty folder that `sweep` removes if the run is killed."""
        draft = self._folder.with_name(f".{self._folder.name}.part-draft")
        if draft.exists():
            remove(draft)
        private_folder(draft)
        return str(draft)

    def _looked_at(self, batch: Batch) -> tuple[list[int], Tensor]:
        """How many supervised tokens of each example of a padded batch, and which of all that it has."""
        taught = np.bincount(batch.taught.numpy() // batch.ids.shape[1], minlength=len(batch.examples)).tolist()
        counts = [self._cut.get(example, count) for example, count in zip(batch.examples, taught, strict=True)]
        return counts, torch.from_numpy(_ranges([sum(taught[:number]) for number in range(len(taught))], counts))

    def _publish(self, draft: Path, card: Card) -> None:
        write_record(draft / _CARD, card)
        if self._folder.exists():
            discard(self._folder)
        draft.replace(self._folder)
        flush(self._folder.parent)
        share = f"{card.rest:.2%} of the probability is that of others"
        LOGGER.info(f"{self._folder.name}: the {card.top} likeliest next tokens at {card.tokens:,} tokens; {share}")

    def __call__(self, members: Sequence[int], counts: Sequence[int], weights: NDArray[Any]) -> Reference:
        """Of a batch's examples, as data/feed.py asks for it; one without rows where nothing is known of any of them.

        So every batch passes through the head for it: where that is gathered for each pass, all processes wait.
        """
        if self._read is None:
            self._read = _Files(self._folder)
        return self._read.reference(members, counts, weights)


def _ranges(starts: Sequence[int], counts: Sequence[int]) -> NDArray[np.int64]:
    parts = [np.arange(start, start + count) for start, count in zip(starts, counts, strict=True)]
    return np.concatenate([np.zeros(0, np.int64), *parts])


class _Writer:
    """One process's files, written as they fill."""

    def __init__(self, folder: Path, rank: int) -> None:
        self._folder, self._rank = folder, rank
        self._examples: list[int] = []
        self._counts: list[int] = []
        self._columns: list[list[Tensor]] = []
        self._held = 0
        self.files: dict[str, str] = {}

    def add(self, examples: Sequence[int], counts: Sequence[int], columns: Sequence[Tensor]) -> None:
        """Ids, logs and rest of these examples, one behind the other."""
        self._examples += examples
        self._counts += counts
        self._columns.append(list(columns))
        self._held += sum(column.nbytes for column in columns)
        if self._held >= _FILE:
            self.flush()

    def flush(self) -> None:
        """Write what is held."""
        if self._examples:
            ids, logs, rest = (torch.cat(column) for column in zip(*self._columns, strict=True))
            tensors = {"ids": ids.int(), "logs": logs, "rest": rest}
            tensors |= {"examples": torch.tensor(self._examples), "counts": torch.tensor(self._counts)}
            name = f"rows-{self._rank:05d}-{len(self.files):05d}.safetensors"
            self.files[name] = write_tensors(self._folder / name, tensors)
            flush(self._folder / name)
        self._examples, self._counts, self._columns, self._held = [], [], [], 0


class _Files:
    """Which rows of which file belong to which example: an index of some bytes for each; the rows stay on disk."""

    def __init__(self, folder: Path) -> None:
        card = read_record(folder / _CARD, Card)
        self._opened: list[Any] = [safe_open(folder / name, "pt") for name in card.files]
        columns: list[list[NDArray[np.int64]]] = [[], [], [], []]
        for number, file in enumerate(self._opened):
            examples, counts = (file.get_tensor(name).numpy() for name in ("examples", "counts"))
            found = (examples, np.full_like(examples, number), np.cumsum(counts) - counts, counts)
            for column, values in zip(columns, found, strict=True):
                column.append(values)
        whole = [np.concatenate([np.zeros(0, np.int64), *column]) for column in columns]
        order = np.argsort(whole[0])
        self._examples, self._file, self._start, self._count = (column[order] for column in whole)

    def reference(self, members: Sequence[int], counts: Sequence[int], weights: NDArray[Any]) -> Reference:
        """What is known of the supervised tokens of these examples, of which each has so many."""
        parts: list[list[Tensor]] = []
        starts: list[int] = []
        lengths: list[int] = []
        first = 0
        for member, count in zip(members, counts, strict=True):
            at = int(np.searchsorted(self._examples, member))
            if at < len(self._examples) and self._examples[at] == member:
                file, start, length = (int(column[at]) for column in (self._file, self._start, self._count))
                parts.append([self._rows(file, name, start, length) for name in ("ids", "logs", "rest")])
                starts.append(first)
                lengths.append(length)
            first += count
        rows, nothing = _ranges(starts, lengths), [torch.zeros(0, 1), torch.zeros(0, 1), torch.zeros(0)]
        ids, logs, rest = (torch.cat(column) for column in zip(*(parts or [nothing]), strict=True))
        return Reference(torch.from_numpy(rows), ids.long(), logs, rest, float(weights[rows].sum(dtype=np.float64)))

    def _rows(self, file: int, name: str, start: int, length: int) -> Tensor:
        rows: Tensor = self._opened[file].get_slice(name)[start : start + length]
        return rows
