"""The state of an engine at one moment: copied while the next update is computed, written while others are."""

import threading
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from fulltune.base.errors import DivergedError
from fulltune.base.processors import available_bytes
from fulltune.engine.pieces import Piece, metadata
from fulltune.engine.tensors import finite, write_tensors
from fulltune.lanes import mapped

_MOST = 0.8
"""Part of the memory that is free which a copy may take."""

_NOTHING = torch.empty(0)
"""In the place of what was written."""

Staging = dict[str, Tensor]
"""Pinned host memory that copies go to, kept between them, since pinning takes long. Of a state that lies on the host
itself copies are dropped when they are written: it would be held twice for the whole run."""


class Capture:
    """Files of tensors and files of text, as they are now.

    Weights and moments stand still from the end of one update to the optimizer's step in the next: whole forward and
    backward passes. In that time another thread writes them. Whoever is about to move them calls `wait`, which copies
    what is not written yet; where nothing is to be moved any more, nothing is held twice. Beside a GPU all is copied at
    once, since its memory is not what files are written from.
    """

    def __init__(
        self,
        files: Mapping[str, Mapping[str, Tensor]],
        texts: Mapping[str, str],
        staging: Staging,
        pieces: Mapping[str, Mapping[str, Piece]] | None = None,
        writers: int = 1,
    ) -> None:
        """`pieces`: by file, which rows its tensors are, where they are not whole.

        `writers`: of so many processes, the first ones, each has a part of the state to write.
        """
        self._texts, self._staging = texts, staging
        self._pieces = pieces or {}
        self.writers = writers
        self._tensors = {file: dict(tensors) for file, tensors in files.items()}
        """The engine's own, or copies of them."""
        self._own = {(file, name) for file, tensors in files.items() for name in tensors}
        """Those that are the engine's, and not written yet."""
        self._lock, self._copying = threading.Lock(), threading.Lock()
        self.bytes = sum(tensor.nbytes for tensors in files.values() for tensor in tensors.values())
        missing = self.bytes - sum(tensor.nbytes for tensor in staging.values())
        self._pins = any(tensor.is_cuda for tensors in files.values() for tensor in tensors.values())
        self.held = missing > _MOST * available_bytes()
        """Whether the host has no room for a copy: then the files are written from what the engine holds, which must
        stand still until they are.
        """

    @torch.no_grad()
    def copy(self) -> None:
        """Copy to the host what is not written yet; in any thread. Returns when it is done, whoever did it."""
        if self.held and not self._pins:
            return
        with self._copying:
            with self._lock:
                waiting, copied = sorted(self._own), False
            for file, name in waiting:
                with self._lock:
                    if (file, name) in self._own:
                        self._tensors[file][name] = self._copied(f"{file}/{name}", self._tensors[file][name])
                        self._own.discard((file, name))
                        copied = True
            if self._pins and copied:
                torch.cuda.current_stream().synchronize()

    def _copied(self, key: str, value: Tensor) -> Tensor:
        if self.held:
            return value.cpu()
        place = self._staging.get(key)
        if place is None or place.shape != value.shape or place.dtype != value.dtype:
            place = torch.empty(value.shape, dtype=value.dtype, pin_memory=True) if value.is_cuda else mapped(value)
            self._staging[key] = place
        return place.copy_(value, non_blocking=True)

    def wait(self) -> None:
        """Before weights or moments move: returns when this state no longer needs them."""
        self.copy()

    def write(self, folder: Path) -> dict[str, str]:
        """Write the files into an existing folder; returns the sha256 of each.

        DivergedError if a number in it is not finite: such a state is worth nothing, and is never to be published.
        """
        if self._pins:
            self.copy()
        for file, tensors in self._tensors.items():
            for name in tensors:
                with self._lock:
                    sound = finite(tensors[name])
                if not sound:
                    raise DivergedError(
                        f"{name} of {file} holds numbers that are not finite; the checkpoint is not written",
                        where=str(folder.parent),
                        mend="go on from the checkpoint before it with a lower optim.lr, or train.precision=float32",
                    )
        digests = {file: self._write(folder, file, tensors) for file, tensors in self._tensors.items()}
        for file, text in self._texts.items():
            (folder / file).write_text(text, encoding="utf-8")
        return digests

    def _write(self, folder: Path, file: str, tensors: dict[str, Tensor]) -> str:
        said = metadata(self._pieces.get(file, {}))
        return write_tensors(folder / file, tensors, said, still=self._lock, done=partial(self._written, file))

    def _written(self, file: str, name: str) -> None:
        """Neither the engine's tensor is needed now, nor its copy; a pinned one is kept for the next state."""
        with self._lock:
            self._own.discard((file, name))
            self._tensors[file][name] = _NOTHING
            place = self._staging.get(f"{file}/{name}")
            if place is not None and not (self._pins and place.is_pinned()):
                del self._staging[f"{file}/{name}"]
