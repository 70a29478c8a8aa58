"""The state of an engine at one moment: copied while the next update is computed, written while others are."""

import threading
from collections.abc import Mapping
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

Staging = dict[str, Tensor]
"""Pinned host memory that copies go to, kept between them, since pinning takes long. Of a state that lies on the host
itself copies are dropped when they are written: it would be held twice for the whole run."""


class Capture:
    """Files of tensors and files of text, as they are now.

    Weights and moments stand still from the end of one update to the optimizer's step in the next: whole forward and
    backward passes. In that time another thread copies them (`copy`); whoever is about to move them calls `wait`.
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
        self._files, self._texts, self._staging = files, texts, staging
        self._pieces = pieces or {}
        self.writers = writers
        self._copies: dict[str, dict[str, Tensor]] = {}
        self._lock = threading.Lock()
        self.bytes = sum(tensor.nbytes for tensors in files.values() for tensor in tensors.values())
        missing = self.bytes - sum(tensor.nbytes for tensor in staging.values())
        self._pins = any(tensor.is_cuda for tensors in files.values() for tensor in tensors.values())
        self.held = missing > _MOST * available_bytes()
        """Whether the host has no room for a copy: then the files are written from what the engine holds, which must
        stand still until they are.
        """

    @torch.no_grad()
    def copy(self) -> None:
        """Copy to the host, once; in any thread. Returns when it is done, whoever did it."""
        with self._lock:
            if self._copies.keys() == self._files.keys():
                return
            if self.held:
                self._copies = {
                    file: {name: value.cpu() for name, value in t.items()} for file, t in self._files.items()
                }
                return
            for file, tensors in self._files.items():
                self._copies[file] = {name: self._copied(f"{file}/{name}", value) for name, value in tensors.items()}
            if self._pins:
                torch.cuda.current_stream().synchronize()
            self._files = {file: {} for file in self._files}  # the engine's own tensors are free to move

    def _copied(self, key: str, value: Tensor) -> Tensor:
        place = self._staging.get(key)
        if place is None or place.shape != value.shape or place.dtype != value.dtype:
            place = torch.empty(value.shape, dtype=value.dtype, pin_memory=True) if value.is_cuda else mapped(value)
            self._staging[key] = place
        return place.copy_(value, non_blocking=True)

    def wait(self) -> None:
        """Before weights or moments move: returns when they have been copied, here if nobody has begun."""
        self.copy()

    def write(self, folder: Path) -> dict[str, str]:
        """Write the files into an existing folder; returns the sha256 of each.

        DivergedError if a number in it is not finite: such a state is worth nothing, and is never to be published.
        """
        self.copy()
        for file, tensors in self._copies.items():
            for name, value in tensors.items():
                if not finite(value):
                    raise DivergedError(
                        f"{name} of {file} holds numbers that are not finite; the checkpoint is not written",
                        where=str(folder.parent),
                        mend="go on from the checkpoint before it with a lower optim.lr, or train.precision=float32",
                    )
        digests = {
            file: write_tensors(folder / file, tensors, metadata(self._pieces.get(file, {})))
            for file, tensors in self._copies.items()
        }
        for file, text in self._texts.items():
            (folder / file).write_text(text, encoding="utf-8")
        for key in [key for key, place in self._staging.items() if not (self._pins and place.is_pinned())]:
            del self._staging[key]
        self._copies = {file: {} for file in self._copies}
        return digests
