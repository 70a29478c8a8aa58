"""What blocks keep for the backward pass waits on the host, and comes back block by block."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from fulltune.model.facts import blocks


def let_wait(model: nn.Module) -> None:
    """From now on, in every pass of a block that has gradients. Numbers come back as they went.

    Weights stay where they are. Of a block that is made again its input waits; what is kept of its results stays.
    """
    for block in blocks(model):
        waiting = _Waiting(block)
        block.register_forward_pre_hook(waiting.begin)
        block.register_forward_hook(waiting.end, always_call=True)


class _Waiting:
    """The passes of one block."""

    def __init__(self, block: nn.Module) -> None:
        self._block = block
        self._hooks: saved_tensors_hooks | None = None
        self._moved: dict[Any, tuple[Tensor, Tensor]] = {}

    def begin(self, *_: Any) -> None:
        self._hooks = saved_tensors_hooks(self._pack, _unpack)
        self._hooks.__enter__()

    def end(self, *_: Any) -> None:
        hooks, self._hooks = self._hooks, None
        self._moved.clear()
        if hooks is not None:
            hooks.__exit__(None, None, None)

    def _pack(self, tensor: Tensor) -> Tensor | tuple[torch.device, Tensor]:
        place = tensor.untyped_storage().data_ptr()
        if any(weight.untyped_storage().data_ptr() == place for weight in self._block.parameters()):
            return tensor
        # Several operations save the same tensor. It is held until the block's end, so that no other takes its place.
        key = (place, tensor.storage_offset(), tensor.shape, tensor.stride(), tensor.dtype, tensor._version)
        if key not in self._moved:
            there = torch.empty_like(tensor, device="cpu", pin_memory=tensor.is_cuda)
            self._moved[key] = tensor, there.copy_(tensor, non_blocking=tensor.is_cuda)
        return tensor.device, self._moved[key][1]


def _unpack(packed: Tensor | tuple[torch.device, Tensor]) -> Tensor:
    if isinstance(packed, Tensor):
        return packed
    device, there = packed
    return there.to(device, non_blocking=device.type == "cuda")
