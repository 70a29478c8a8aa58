"""A prepared split on disk: an index of examples over flat arrays of tokens, read by memory map.

Tokens lie in shards, written once by whichever process rendered them. A split is a list of places in them, so that
which example belongs where is decided without touching a token. Nothing but the lengths is held in memory.
"""

import json
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from fulltune.base.errors import CheckpointError
from fulltune.base.records import IGNORE, SplitFacts
from fulltune.data.render import Encoded

TOKENS: dict[str, np.dtype[Any]] = {"ids": np.dtype("<i4"), "labels": np.dtype("<i4"), "weights": np.dtype("<f4")}
"""What a shard holds of each token."""
INDEX = np.dtype(
    [
        ("shard", "<i4"),
        ("start", "<i8"),
        ("length", "<i4"),
        ("source", "<i4"),
        ("file", "<i4"),
        ("line", "<i8"),
    ]
)
"""What a split holds of each example: where its tokens lie, and where its row stood."""
_WAITING = 1 << 18
"""Tokens that are written at once: 3 MiB."""
_OPEN = 128
"""Shards whose files are mapped at a time; each takes three of the process's open files."""
_QUANTILES = {"min": 0.0, "p50": 0.5, "p90": 0.9, "p99": 0.99, "max": 1.0}
_AGAIN = "delete its folder and run `fulltune prepare` again"


class ShardWriter:
    """Appends the tokens of examples to the files of one shard."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._files: dict[str, BinaryIO] = {name: (folder / f"{name}.bin").open("wb") for name in TOKENS}
        self._waiting: list[Encoded] = []
        self.tokens = self._written = 0

    def __enter__(self) -> "ShardWriter":
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, at: TracebackType | None) -> None:
        try:
            if kind is None:
                self._write()
        finally:
            for file in self._files.values():
                file.close()

    def append(self, encoded: Encoded) -> int:
        """Where the example's tokens start."""
        start = self.tokens
        self._waiting.append(encoded)
        self.tokens += len(encoded.ids)
        if self.tokens - self._written >= _WAITING:
            self._write()
        return start

    def _write(self) -> None:
        waiting = self._waiting
        columns = {"ids": [e.ids for e in waiting], "labels": [e.labels for e in waiting]}
        for name, values in (columns | {"weights": [e.weights for e in waiting]}).items() if waiting else ():
            self._files[name].write(np.concatenate(values, dtype=TOKENS[name]).data)
        self._waiting, self._written = [], self.tokens


class SplitWriter:
    """Writes the index of a split, in pieces that are arrays of INDEX."""

    def __init__(self, folder: Path, shards: Sequence[tuple[str, int]]) -> None:
        """`shards`: the folder of each, seen from the split's, and how many tokens it holds."""
        folder.mkdir(parents=True)
        listed = [{"folder": name, "tokens": tokens} for name, tokens in shards]
        (folder / "shards.json").write_text(json.dumps(listed))
        self._file = (folder / "examples.bin").open("wb")

    def __enter__(self) -> "SplitWriter":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def append(self, examples: NDArray[Any]) -> None:
        """INDEX [examples]."""
        self._file.write(np.ascontiguousarray(examples, INDEX).data)


class Store:
    """One prepared split, mapped from disk. `store[i]` is example i, in the same time wherever it lies."""

    def __init__(self, folder: Path, files: Sequence[tuple[str, ...]]) -> None:
        """`files`: those of each source, in the order in which the index numbers them."""
        self._files, self._folder = tuple(files), folder
        self._index = _mapped(folder / "examples.bin", INDEX)
        self.lengths: NDArray[np.int32] = np.ascontiguousarray(self._index["length"])
        self._shards = [folder / shard["folder"] for shard in _listed(folder)]
        self._columns = lru_cache(maxsize=_OPEN)(self._map)

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, index: int) -> Encoded:
        shard, start, length = (int(self._index[name][index]) for name in ("shard", "start", "length"))
        columns = self._columns(shard)
        ids, labels, weights = (columns[name][start : start + length] for name in TOKENS)
        return Encoded(ids, labels, weights)

    def origin(self, index: int) -> str:
        """`file:line` of an example."""
        source, file, line = (int(self._index[name][index]) for name in ("source", "file", "line"))
        return f"{self._files[source][file]}:{line}"

    @property
    def sources(self) -> NDArray[np.int32]:
        """int32 [examples], the number of the source that each came from."""
        return np.ascontiguousarray(self._index["source"])

    def prompt_and_answer(self, index: int) -> tuple[list[int], list[int]]:
        """Tokens up to the last taught stretch of an example, and that stretch."""
        encoded = self[index]
        taught = np.flatnonzero(encoded.labels != IGNORE)
        breaks = np.flatnonzero(np.diff(taught) > 1)
        stretch = taught[breaks[-1] + 1 :] if len(breaks) else taught
        return encoded.ids[: stretch[0] + 1].tolist(), encoded.labels[stretch].tolist()

    def _map(self, shard: int) -> dict[str, NDArray[Any]]:
        return {name: _mapped(self._shards[shard] / f"{name}.bin", dtype) for name, dtype in TOKENS.items()}


def facts_of(lengths: NDArray[np.int32], taught: NDArray[np.int32], sources: NDArray[np.int32]) -> SplitFacts:
    """The card of a split, from the tokens, the taught tokens and the source of each example."""
    count = int(sources.max()) + 1 if len(sources) else 0
    known = lengths if len(lengths) else np.zeros(1, np.int32)
    return SplitFacts(
        examples=len(lengths),
        tokens=int(lengths.sum(dtype=np.int64)),
        supervised_tokens=int(taught.sum(dtype=np.int64)),
        lengths={name: int(np.quantile(known, q, method="higher")) for name, q in _QUANTILES.items()},
        by_source=tuple(np.bincount(sources, minlength=count).tolist()),
        tokens_by_source=tuple(np.bincount(sources, lengths, minlength=count).astype(np.int64).tolist()),
    )


def _listed(folder: Path) -> list[dict[str, Any]]:
    """The shards of a split; CheckpointError if one is not as it was written."""
    try:
        shards: list[dict[str, Any]] = json.loads((folder / "shards.json").read_text())
    except (OSError, ValueError) as fault:
        what = "the prepared data is damaged: the list of its shards cannot be read"
        raise CheckpointError(what, where=str(folder), mend=_AGAIN) from fault
    for shard in shards:
        for name, dtype in TOKENS.items():
            path = folder / shard["folder"] / f"{name}.bin"
            found = path.stat().st_size // dtype.itemsize if path.exists() else -1
            if found != shard["tokens"]:
                has = "is missing" if found < 0 else f"has {found} of {shard['tokens']} tokens"
                what = f"the prepared data is damaged: {shard['folder']}/{name}.bin {has}"
                raise CheckpointError(what, where=str(folder), mend=_AGAIN)
    return shards


def _mapped(path: Path, dtype: np.dtype[Any]) -> NDArray[Any]:
    if not path.exists():
        raise CheckpointError("the prepared data is damaged: a file is missing", where=str(path), mend=_AGAIN)
    if path.stat().st_size == 0:  # an empty file cannot be mapped
        return np.empty(0, dtype)
    return np.memmap(path, dtype, mode="r")
