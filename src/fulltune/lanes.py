"""The two directions between a device and the host, each a stream of its own: copies run beside what the device does.

Memory of the device is taken from and given back to the stream that computes, in its order, so that what is held does
not hang on how far the host runs ahead: who sends holds the tensor until `wait` stands behind the copy, and what comes
is ordered behind all that used its memory before. On the host itself there are no streams, and a copy is a copy.
"""

import mmap
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any
from weakref import finalize

import torch
from torch import Tensor


class Lanes:
    """Between one device and the host. Events are None where the device is the host."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._inwards, self._outwards = _stream(device), _stream(device)

    def bring(self, tensors: Iterable[Tensor], after: Sequence[Any] = ()) -> tuple[list[Tensor], Any]:
        """Copies on the device, and the event that they are there; `after`: events of what is written there still."""
        pairs = [(place, torch.empty_like(place, device=self._device)) for place in tensors]
        return [made for _, made in pairs], self._copy(self._inwards, pairs, after)

    def send(self, pairs: Iterable[tuple[Tensor, Tensor]]) -> Any:
        """(on the device, its place on the host): copied. The event of it, until which both must be held."""
        return self._copy(self._outwards, pairs, ())

    def wait(self, event: Any) -> None:
        """What the device is told to do from now on comes behind this event."""
        if event is not None:
            torch.cuda.current_stream(self._device).wait_event(event)

    def settle(self) -> None:
        """All that was sent has arrived: the host may read it."""
        if self._outwards is not None:
            self._outwards.synchronize()

    def _copy(self, stream: Any, pairs: Iterable[tuple[Tensor, Tensor]], after: Sequence[Any]) -> Any:
        if stream is not None:
            stream.wait_stream(torch.cuda.current_stream(self._device))
            for event in after:
                if event is not None:
                    stream.wait_event(event)
        with _on(stream):
            for source, target in pairs:
                target.copy_(source, non_blocking=True)
        return None if stream is None else stream.record_event()


def mapped(value: Tensor) -> Tensor:
    """Memory of the host for a tensor, in pages of its own: dropped, they go back to the system at once."""
    pages = mmap.mmap(-1, max(1, value.nbytes), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    whole = torch.frombuffer(pages, dtype=torch.uint8, count=value.nbytes or 1)
    return whole[: value.nbytes].view(value.dtype).view(value.shape)


def lasting(value: Tensor) -> Tensor:
    """As `mapped`, pinned where the tensor comes from a GPU.

    For what stays: torch's own pinned memory, which is used again and again, has the next power of two of bytes.
    """
    place = mapped(value)
    if value.is_cuda and value.nbytes:
        runtime: Any = torch.cuda.cudart()  # type: ignore[no-untyped-call]
        torch.cuda.check_error(runtime.cudaHostRegister(place.data_ptr(), place.nbytes, 0))
        finalize(place, runtime.cudaHostUnregister, place.data_ptr()).atexit = False
    return place


def _on(stream: Any) -> AbstractContextManager[Any]:
    return nullcontext() if stream is None else torch.cuda.stream(stream)


def _stream(device: torch.device) -> Any:
    return torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]
