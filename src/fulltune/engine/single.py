"""One process has everything: nothing is wrapped, nothing is exchanged."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import TypeVar

from torch import Tensor, nn

from fulltune.engine.contract import World
from fulltune.engine.crew import Alone
from fulltune.engine.pieces import Piece

T = TypeVar("T")


class Single:
    """The model as it is, on one device."""

    divisor, writers, whole = 1, 1, True

    def __init__(self, world: World, *, moments_wait: bool = False) -> None:
        self.world, self.crew, self.moments_wait = world, Alone(), moments_wait
        self._objective: nn.Module | None = None

    def lay(self, objective: nn.Module) -> nn.Module:
        self._objective = objective.to(self.world.device)
        return objective

    def exchanging(self, *, last: bool) -> AbstractContextManager[None]:
        return nullcontext()

    def norm(self, own: float) -> float:
        return own

    def forget(self) -> None:
        """Nothing is gathered."""

    def piece(self, weight: Tensor) -> Piece | None:
        return None

    def inside(self, act: Callable[[nn.Module], T]) -> T:
        assert self._objective is not None
        return act(self._objective.get_submodule("model"))
