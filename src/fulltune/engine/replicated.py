"""DDP: the whole model in each process, gradients exchanged while the last micro-batch's backward pass runs."""

import inspect
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypeVar, cast

from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from fulltune.engine.contract import World
from fulltune.engine.crew import Crew
from fulltune.engine.pieces import Piece

T = TypeVar("T")


class Replicated:
    """torch's DistributedDataParallel around the objective (Li et al. 2020, arXiv 2006.15704)."""

    whole = True

    def __init__(self, world: World, crew: Crew, *, some_unused: bool = False, moments_wait: bool = False) -> None:
        """`some_unused`: whether a backward pass may leave weights without a gradient, as experts of a mixture do."""
        self.world, self.crew, self.moments_wait = world, crew, moments_wait
        self._some_unused = some_unused
        self._wrapped: DistributedDataParallel | None = None

    def lay(self, objective: nn.Module) -> nn.Module:
        # Buffers are the same everywhere and nobody writes into them: sending them at each pass would cost for nothing.
        known = inspect.signature(DistributedDataParallel).parameters
        buffers = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"  # torch < 2.13
        quiet: dict[str, Any] = {buffers: False}
        self._wrapped = DistributedDataParallel(
            objective.to(self.world.device),
            **quiet,
            gradient_as_bucket_view=True,
            find_unused_parameters=self._some_unused,
        )
        return self._wrapped

    def exchanging(self, *, last: bool) -> AbstractContextManager[None]:
        # It must stand around the forward pass too: there DDP decides whether gradients will be exchanged.
        return nullcontext() if last else cast(DistributedDataParallel, self._wrapped).no_sync()

    @property
    def divisor(self) -> int:
        return self.crew.size

    def norm(self, own: float) -> float:
        return own

    def forget(self) -> None:
        """Nothing is gathered."""

    def piece(self, weight: Tensor) -> Piece | None:  # noqa: ARG002
        return None

    @property
    def writers(self) -> int:
        return 1

    def inside(self, act: Callable[[nn.Module], T]) -> T:
        assert self._wrapped is not None
        model: nn.Module = self._wrapped.module.get_submodule("model")
        return act(model)
