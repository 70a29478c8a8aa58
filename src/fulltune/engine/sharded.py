"""FSDP2: each process holds a part of every weight, gradient and moment; a block is gathered while it computes."""

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import (
    CPUOffloadPolicy,
    FSDPModule,
    MixedPrecisionPolicy,
    OffloadPolicy,
    fully_shard,
    register_fsdp_forward_method,
)
from torch.distributed.tensor import DTensor

from fulltune.engine.contract import World
from fulltune.engine.crew import Crew
from fulltune.engine.pieces import Piece, part

T = TypeVar("T")


class Sharded:
    """torch's `fully_shard` on each block, then on the rest with the objective around it (arXiv 2304.11277).

    A model without memory (on the meta device) gets some for what this process holds of it, with nothing in it yet.
    Embedding and head lie in the outermost group, tied or not. With `replicas` the processes form a grid: a model is
    sharded over one row of it, and rows are replicas (hybrid sharding).
    """

    whole = moments_wait = False

    def __init__(
        self,
        world: World,
        crew: Crew,
        blocks: Sequence[nn.Module],
        *,
        reshard: bool = True,
        replicas: int = 1,
        compute: torch.dtype = torch.float32,
        offload: bool = False,
    ) -> None:
        """`reshard`: free a block's weights between its forward and backward pass (ZeRO-3), or keep them (ZeRO-2).

        `compute`: number format in which weights are gathered. `offload`: keep shards and moments on the host.
        """
        self.world, self.crew = world, crew
        self._blocks, self._reshard, self._replicas = list(blocks), reshard, replicas
        self._compute, self._offload = compute, offload
        self._objective: nn.Module | None = None

    def lay(self, objective: nn.Module) -> nn.Module:
        kind = self.world.device.split(":")[0]
        memoryless = any(parameter.is_meta for parameter in objective.parameters())
        if not memoryless:
            objective.to(self.world.device)
        shards = self.crew.size // self._replicas
        grid = (self._replicas, shards) if self._replicas > 1 else (shards,)
        names = ("replicate", "shard")[-len(grid) :]
        how: dict[str, Any] = {
            "mesh": init_device_mesh(kind, grid, mesh_dim_names=names),
            "mp_policy": self._policy(),
            "offload_policy": CPUOffloadPolicy(pin_memory=kind == "cuda") if self._offload else OffloadPolicy(),
            "reshard_after_forward": self._reshard,
        }
        for block in self._blocks:
            fully_shard(block, **how)
        fully_shard(objective, **how)
        if memoryless:
            _take_memory(objective, "cpu" if self._offload else self.world.device, self.world.device)
        register_fsdp_forward_method(objective, "through")
        self._objective = objective
        return objective

    def _policy(self) -> MixedPrecisionPolicy:
        """Gradients are added up over ranks in float32, in whatever format they were made."""
        if self._compute == torch.float32:
            return MixedPrecisionPolicy()
        return MixedPrecisionPolicy(param_dtype=self._compute, reduce_dtype=torch.float32, cast_forward_inputs=False)

    def exchanging(self, *, last: bool) -> AbstractContextManager[None]:
        # Gradients that wait for the last micro-batch wait whole: that is the memory which resharding is to save.
        cast(FSDPModule, self._objective).set_requires_gradient_sync(last or self._reshard)
        return nullcontext()

    @property
    def divisor(self) -> int:
        return self.crew.size

    def norm(self, own: float) -> float:
        squares = self.crew.sum(torch.tensor(own, dtype=torch.float64).square())
        return math.sqrt(float(squares) / self._replicas)

    def forget(self) -> None:
        # With `reshard=False` they stay whole behind an evaluation, in which averages may have stood in their place.
        for module in cast(nn.Module, self._objective).modules():
            if isinstance(module, FSDPModule):
                module.reshard()

    def piece(self, weight: Tensor) -> Piece | None:
        if not isinstance(weight, DTensor):
            return None
        mesh = weight.device_mesh
        shards, number = mesh.size(mesh.ndim - 1), mesh.get_local_rank(mesh.ndim - 1)
        total = weight.shape[0]
        return Piece(part(total, shards, number).start, total)

    @property
    def writers(self) -> int:
        return self.crew.size // self._replicas

    def inside(self, act: Callable[[nn.Module], T]) -> T:
        result: T = cast(Any, self._objective).through(act)
        return result


def _take_memory(objective: nn.Module, place: str, device: str) -> None:
    """Memory for the shards at `place`; buffers, which have theirs, go to the device.

    A parameter that is sharded gets its memory in place (torch swaps it), so that tied ones stay one.
    """
    buffers = [
        (module, name, value.to(device))
        for module in objective.modules()
        for name, value in module.named_buffers(recurse=False)
    ]
    objective.to_empty(device=place)  # of everything, buffers too
    for module, name, value in buffers:
        module._buffers[name] = value
