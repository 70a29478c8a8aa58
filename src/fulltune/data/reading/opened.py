"""A place -> its bytes, whether they lie here or at an address, compressed or not."""

import gzip
import hashlib
import importlib
import io
import zlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, BinaryIO, cast

from fulltune.base.errors import DataError, RecipeError
from fulltune.data.reading.places import Place

GZIP = b"\x1f\x8b"
ZSTD = b"\x28\xb5\x2f\xfd"
DAMAGED = (EOFError, gzip.BadGzipFile, zlib.error)
"""What reading compressed data raises if it is damaged."""
_PIECE = 1024
"""Bytes of zstd data that are unpacked in one go. They make at most 32 MiB: a block of 128 KiB takes four bytes."""
_WIDEST = 128 << 20
"""Bytes of memory that unpacking zstd data may take."""

Opener = Callable[[], AbstractContextManager[io.BufferedReader]]
"""Opens the same unpacked bytes anew, from their beginning."""


@contextmanager
def raw(place: Place) -> Iterator[BinaryIO]:
    """The bytes as they lie there. RecipeError if an address needs a package that is not installed."""
    if place.kind != "remote":
        with Path(place.path).open("rb") as stream:
            yield stream
        return
    try:
        file = importlib.import_module("fsspec").open(place.path, "rb")
    except (ImportError, ValueError) as fault:
        raise RecipeError(f"{fault}", where=place.path, mend="install that package, or copy the file here") from fault
    with _reached(place):
        stream = file.open()
    with stream, _reached(place):
        yield stream


@contextmanager
def _reached(place: Place) -> Iterator[None]:
    """Every file system raises its own kinds of faults; all mean that the address cannot be read."""
    try:
        yield
    except (*DAMAGED, DataError, GeneratorExit):
        raise
    except Exception as fault:
        told = f"{type(fault).__name__}: {fault}"
        raise DataError(
            f"this address cannot be read: {told}", where=place.path, mend="check the address and your access to it"
        ) from fault


def unpacking(place: Place) -> tuple[Opener, str]:
    """How to open the unpacked bytes of a place, and how they are packed: `gzip`, `zstd` or nothing."""
    with raw(place) as stream:
        head = stream.read(4)
    packed = "gzip" if head.startswith(GZIP) else "zstd" if head == ZSTD else ""

    @contextmanager
    def opened() -> Iterator[io.BufferedReader]:
        with raw(place) as stream:
            if packed == "gzip":
                with gzip.GzipFile(fileobj=stream) as unpacked:
                    yield io.BufferedReader(cast(io.RawIOBase, unpacked))
            elif packed == "zstd":
                yield io.BufferedReader(_Zstd(stream))
            elif isinstance(stream, io.BufferedReader):
                yield stream
            else:
                yield io.BufferedReader(cast(io.RawIOBase, stream))

    return opened, packed


def digest(place: Place) -> str:
    """sha256 of the bytes as they lie there."""
    made = hashlib.sha256()
    with raw(place) as stream:
        while piece := stream.read(1 << 20):
            made.update(piece)
    return made.hexdigest()


class _Zstd(io.RawIOBase):
    """Unpacks all frames of zstd data. A stream that is cut off is an error, which zstandard's own reader hides."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self._library: Any = importlib.import_module("zstandard")
        self._frame: Any = None
        self._packed, self._made = b"", memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._made:
            self._packed = self._packed or self._stream.read(_PIECE)
            if not self._packed:
                if self._frame is not None:
                    raise EOFError("the data is cut off")
                return 0
            self._unpack()
        size = min(len(buffer), len(self._made))
        buffer[:size], self._made = self._made[:size], self._made[size:]
        return size

    def _unpack(self) -> None:
        if self._frame is None:
            self._frame = self._library.ZstdDecompressor(max_window_size=_WIDEST).decompressobj()
        try:
            self._made = memoryview(self._frame.decompress(self._packed))
        except self._library.ZstdError as fault:
            raise zlib.error(str(fault)) from fault
        self._packed = self._frame.unused_data if self._frame.eof else b""
        if self._frame.eof:
            self._frame = None
