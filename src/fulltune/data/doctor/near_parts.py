"""What a worker writes about its part of the rows for `near.py`, and the parts read by row number over all of them."""

import os
import struct
from bisect import bisect_right
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
from numpy.typing import NDArray

from fulltune.data.doctor.shingles import normalised
from fulltune.data.doctor.signatures import BANDS, WORDS, Signer, band_keys, sketches

_KEYS, _SKETCHES, _PLAIN, _ENDS = "near_keys.bin", "near_sketches.bin", "plain.bin", "plain_ends.bin"
_TOGETHER = 256
"""Texts signed in one call."""
_OPEN = 256
"""Files held open; the system allows a process 1,024."""


class NearWriter:
    """Takes the texts of one part in order; on disk, per row, 116 bytes of a signature, 8 of an end, and the text."""

    def __init__(self, folder: Path) -> None:
        """`folder` is made if it is not there; files of other kinds in it are let be."""
        folder.mkdir(parents=True, exist_ok=True)
        self._folder, self._signer = folder, Signer()
        self._waiting: list[str] = []
        self._keys: list[NDArray[np.uint32]] = []
        self._end = 0
        self._plain, self._ends, self._sketches = (
            (folder / name).open("wb") for name in (_PLAIN, _ENDS, _SKETCHES)
        )  # closed by __exit__
        self._ends.write(bytes(8))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, at: TracebackType | None) -> None:
        try:
            if kind is None:
                self._sign()
                keys = np.concatenate([np.empty((0, BANDS + 1), np.uint32), *self._keys])
                # Band after band, since one is read at a time.
                np.ascontiguousarray(keys.T, "<u4").tofile(self._folder / _KEYS)
        finally:
            for file in (self._plain, self._ends, self._sketches):
                file.close()

    def add(self, text: str) -> None:
        """The next row, as `plain_text` gives it; any text for one that will not be compared, such as an empty one."""
        self._waiting.append(normalised(text))
        if len(self._waiting) == _TOGETHER:
            self._sign()

    def _sign(self) -> None:
        texts = [text.encode("utf-8", "surrogatepass") for text in self._waiting]
        self._plain.write(b"".join(texts))
        ends = self._end + np.cumsum([len(text) for text in texts], dtype="<i8")
        self._ends.write(ends.tobytes())
        self._end = int(ends[-1]) if len(ends) else self._end
        signatures = self._signer.sign(self._waiting)
        self._keys.append(band_keys(signatures))
        self._sketches.write(sketches(signatures).astype("<u8").tobytes())
        self._waiting = []


class NearParts:
    """The rows of all parts, numbered through. A context manager: it holds files."""

    def __init__(self, folders: Sequence[Path]) -> None:
        self._folders = tuple(folders)
        self._sizes = [(folder / _ENDS).stat().st_size // 8 - 1 for folder in self._folders]
        self._starts = np.concatenate([[0], np.cumsum(self._sizes, dtype=np.int64)]).tolist()
        self._files: dict[tuple[int, str], int] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._close()

    def __len__(self) -> int:
        return int(self._starts[-1])

    def keys(self, band: int, chosen: NDArray[np.bool_]) -> NDArray[np.uint64]:
        """Of each chosen row, the key of a band above (32 bits) and its number below, in ascending order."""
        keys = np.empty(np.count_nonzero(chosen), np.uint64)
        end = 0
        for folder, start, size in zip(self._folders, self._starts, self._sizes, strict=False):
            rows = np.flatnonzero(chosen[start : start + size])
            read = np.fromfile(folder / _KEYS, "<u4", size, offset=4 * size * band)
            keys[end : end + len(rows)] = read[rows].astype(np.uint64) << np.uint64(32) | (rows + start).view(np.uint64)
            end += len(rows)
        keys.sort()
        return keys

    def sketches(self) -> NDArray[np.uint64]:
        """Of all rows."""
        made = np.empty((len(self), WORDS), np.uint64)
        for folder, start, size in zip(self._folders, self._starts, self._sizes, strict=False):
            made[start : start + size] = np.fromfile(folder / _SKETCHES, "<u8").reshape(size, WORDS)
        return made

    def text(self, row: int) -> str:
        """A normalised text."""
        part = bisect_right(self._starts, row) - 1
        local = row - self._starts[part]
        bounds = struct.unpack("<2q", os.pread(self._file(part, _ENDS), 16, 8 * local))
        return os.pread(self._file(part, _PLAIN), bounds[1] - bounds[0], bounds[0]).decode("utf-8", "surrogatepass")

    def _file(self, part: int, name: str) -> int:
        if (part, name) not in self._files:
            if len(self._files) == _OPEN:
                self._close()
            self._files[part, name] = os.open(self._folders[part] / name, os.O_RDONLY)
        return self._files[part, name]

    def _close(self) -> None:
        for file in self._files.values():
            os.close(file)
        self._files = {}
