"""A prepared split on disk: flat arrays, written once, read by memory map. Nothing of it is held in memory."""

from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from fulltune.base.errors import CheckpointError
from fulltune.base.records import IGNORE, SplitFacts
from fulltune.data.render import Encoded

_DTYPES: dict[str, np.dtype[Any]] = {
    "ids": np.dtype("<i4"),
    "labels": np.dtype("<i4"),
    "weights": np.dtype("<f4"),
    "lengths": np.dtype("<i4"),
    "sources": np.dtype("<i4"),
    "files": np.dtype("<i4"),
    "lines": np.dtype("<i8"),
}
_PER_TOKEN = ("ids", "labels", "weights")
_QUANTILES = {"min": 0.0, "p50": 0.5, "p90": 0.9, "p99": 0.99, "max": 1.0}


class StoreWriter:
    """Appends examples to a new folder; `facts` after the last one."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True)
        self._files: dict[str, BinaryIO] = {name: (folder / f"{name}.bin").open("wb") for name in _DTYPES}
        self._lengths: list[int] = []
        self._supervised = 0
        self._by_source: list[int] = []
        self._tokens_by_source: list[int] = []

    def __enter__(self) -> "StoreWriter":
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, at: TracebackType | None) -> None:
        for file in self._files.values():
            file.close()

    def append(self, encoded: Encoded, *, source: int, line: int, file: int = 0) -> None:
        """Sources come one after the other; `line` is where the example stood in its file, one of the source's."""
        columns: dict[str, Any] = {
            "ids": encoded.ids,
            "labels": encoded.labels,
            "weights": encoded.weights,
            "lengths": [len(encoded.ids)],
            "sources": [source],
            "files": [file],
            "lines": [line],
        }
        for name, values in columns.items():
            self._files[name].write(np.asarray(values, _DTYPES[name]).tobytes())
        self._lengths.append(len(encoded.ids))
        self._supervised += encoded.supervised
        for counts, more in ((self._by_source, 1), (self._tokens_by_source, len(encoded.ids))):
            counts += [0] * (source + 1 - len(counts))
            counts[source] += more

    @property
    def facts(self) -> SplitFacts:
        """The card of what was written."""
        lengths = np.array(self._lengths or [0])
        return SplitFacts(
            examples=len(self._lengths),
            tokens=int(lengths.sum()),
            supervised_tokens=self._supervised,
            lengths={name: int(np.quantile(lengths, q, method="higher")) for name, q in _QUANTILES.items()},
            by_source=tuple(self._by_source),
            tokens_by_source=tuple(self._tokens_by_source),
        )


class Store:
    """One prepared split, mapped from disk. `store[i]` is example i."""

    def __init__(self, folder: Path, files: Sequence[tuple[str, ...]]) -> None:
        """`files`: those of each source, in the order in which the writer numbered them."""
        self._files = tuple(files)
        self._columns = {name: _mapped(folder / f"{name}.bin", dtype) for name, dtype in _DTYPES.items()}
        self.lengths: NDArray[np.int32] = self._columns["lengths"]
        self._ends = np.cumsum(self.lengths, dtype=np.int64)
        tokens = int(self._ends[-1]) if len(self._ends) else 0
        for name in _PER_TOKEN:
            if len(self._columns[name]) != tokens:
                raise CheckpointError(
                    f"the prepared data is damaged: {name}.bin has {len(self._columns[name])} of {tokens} tokens",
                    where=str(folder),
                    mend="delete the folder and run `fulltune prepare` again",
                )

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, index: int) -> Encoded:
        end = int(self._ends[index])
        here = slice(end - int(self.lengths[index]), end)
        ids, labels, weights = (self._columns[name][here] for name in _PER_TOKEN)
        return Encoded(ids, labels, weights)

    def origin(self, index: int) -> str:
        """`file:line` of an example."""
        source, file, line = (int(self._columns[name][index]) for name in ("sources", "files", "lines"))
        return f"{self._files[source][file]}:{line}"

    def prompt_and_answer(self, index: int) -> tuple[list[int], list[int]]:
        """Tokens up to the last taught stretch of an example, and that stretch."""
        encoded = self[index]
        taught = np.flatnonzero(encoded.labels != IGNORE)
        breaks = np.flatnonzero(np.diff(taught) > 1)
        stretch = taught[breaks[-1] + 1 :] if len(breaks) else taught
        return encoded.ids[: stretch[0] + 1].tolist(), encoded.labels[stretch].tolist()


def _mapped(path: Path, dtype: np.dtype[Any]) -> NDArray[Any]:
    if not path.exists():
        raise CheckpointError(
            "the prepared data is damaged: a file is missing",
            where=str(path),
            mend="delete its folder and run `fulltune prepare` again",
        )
    if path.stat().st_size == 0:  # an empty file cannot be mapped
        return np.empty(0, dtype)
    return np.memmap(path, dtype, mode="r")
