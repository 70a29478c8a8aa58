"""What blocks keep for the backward pass waits on the host, and comes back block by block.

It goes while the next block computes, and comes while the one behind it goes back.
"""

from collections import deque
from collections.abc import Callable
from typing import Any
from weakref import ref

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from fulltune.lanes import Lanes
from fulltune.model.facts import blocks

_LEAVING = 1
"""Blocks whose results may be on their way to the host while another one computes."""


def let_wait(model: nn.Module) -> None:
    """From now on, in every pass of a block that has gradients. Numbers come back as they went.

    Weights stay where they are. Of a block that is made again its input waits; what is kept of its results stays.
    """
    road, before = _Road(), None
    for block in blocks(model):
        waiting = _Waiting(block, road, before)
        block.register_forward_pre_hook(waiting.begin, with_kwargs=True)
        block.register_forward_hook(waiting.end, always_call=True)
        before = waiting


class _Road:
    """The lanes that all blocks share, and what is on its way to the host."""

    def __init__(self) -> None:
        self.lanes = Lanes(torch.device("cpu"))
        self._leaving: deque[tuple[Any, list[Tensor]]] = deque()
        self._device = torch.device("cpu")

    def computes_on(self, device: torch.device) -> None:
        """Where blocks find what they are given: their weights may be elsewhere, or nowhere yet."""
        if device != self._device:
            self._device = device
            self.lanes = Lanes(device)

    def takes(self, tensor: Tensor) -> bool:
        """Whether it lies there."""
        return tensor.device == self._device

    def left(self, event: Any, tensors: list[Tensor]) -> None:
        """These were sent. They are held until what comes next on the device waits for their arrival."""
        self._leaving.append((event, tensors))
        self.drain(most=_LEAVING)

    def drain(self, most: int = 0) -> None:
        while len(self._leaving) > most:
            self.lanes.wait(self._leaving.popleft()[0])


class _Kept:
    """What one pass of a block kept; brought back all at once, and with it what the block before it kept."""

    def __init__(self, road: _Road, before: "_Kept | None") -> None:
        self._road, self._before = road, before
        self._places: list[Tensor] = []
        self.left: Any = None
        self._here: tuple[list[Tensor], Any] | None = None

    def leave(self, tensor: Tensor) -> int:
        """Which one of them it is."""
        self._places.append(torch.empty_like(tensor, device="cpu", pin_memory=tensor.is_cuda))
        self.left = self._road.lanes.send([(tensor, self._places[-1])])
        return len(self._places) - 1

    def give(self, number: int) -> Tensor:
        self._road.drain()
        made, event = self._bring()
        if self._before is not None:
            self._before._bring()
            self._before = None
        self._road.lanes.wait(event)
        return made[number]

    def _bring(self) -> tuple[list[Tensor], Any]:
        if self._here is None:
            self._here = self._road.lanes.bring(self._places, [self.left])
        return self._here

    def __del__(self) -> None:
        """Memory into which something comes that nobody asked for is given back behind it."""
        if self._here is not None:
            self._road.lanes.wait(self._here[1])


class _Waiting:
    """The passes of one block."""

    def __init__(self, block: nn.Module, road: _Road, before: "_Waiting | None") -> None:
        self._block, self._road, self._before = block, road, before
        self._hooks: saved_tensors_hooks | None = None
        self._now: _Kept | None = None
        self._latest: Callable[[], _Kept | None] = lambda: None
        self._moved: dict[Any, tuple[Tensor, int]] = {}

    def begin(self, _: nn.Module, given: tuple[Any, ...], named: dict[str, Any]) -> None:
        for tensor in [one for one in (*given, *named.values()) if isinstance(one, Tensor)][:1]:
            self._road.computes_on(tensor.device)
        self._now = _Kept(self._road, None if self._before is None else self._before._latest())
        self._latest = ref(self._now)
        self._hooks = saved_tensors_hooks(self._pack, _unpack)
        self._hooks.__enter__()

    def end(self, *_: Any) -> None:
        hooks, self._hooks, kept, self._now = self._hooks, None, self._now, None
        if kept is not None and self._moved:
            self._road.left(kept.left, [tensor for tensor, _ in self._moved.values()])
        self._moved = {}
        if hooks is not None:
            hooks.__exit__(None, None, None)

    def _pack(self, tensor: Tensor) -> Tensor | tuple[_Kept, int]:
        place, kept = tensor.untyped_storage().data_ptr(), self._now
        if kept is None or not self._road.takes(tensor):
            return tensor
        if any(weight.untyped_storage().data_ptr() == place for weight in self._block.parameters()):
            return tensor
        # Several operations save the same tensor. It is held until the block's end, so that no other takes its place.
        key = (place, tensor.storage_offset(), tensor.shape, tensor.stride(), tensor.dtype, tensor._version)
        if key not in self._moved:
            self._moved[key] = tensor, kept.leave(tensor)
        return kept, self._moved[key][1]


def _unpack(packed: Tensor | tuple[_Kept, int]) -> Tensor:
    if isinstance(packed, Tensor):
        return packed
    kept, number = packed
    return kept.give(number)
