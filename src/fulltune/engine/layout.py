"""How a model lies over the processes of a run: all that differs between the native engines."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Protocol, TypeVar

from torch import Tensor, nn

from fulltune.engine.contract import World
from fulltune.engine.crew import Crew
from fulltune.engine.pieces import Piece

T = TypeVar("T")


class Layout(Protocol):
    """One of: whole in one process, whole in each (`replicated`), a part in each (`sharded`)."""

    @property
    def world(self) -> World:
        """This process's place, and its device."""

    @property
    def crew(self) -> Crew:
        """The processes of the run."""

    def lay(self, objective: nn.Module) -> nn.Module:
        """Bring it to the device and wrap it, or shard its parameters in place. Once, at the start.

        What comes back is called in place of it.
        """

    def exchanging(self, *, last: bool) -> AbstractContextManager[None]:
        """Around one micro-batch: gradients are exchanged in it if they have to be."""

    @property
    def divisor(self) -> int:
        """By which exchanged gradients are divided: torch takes the mean over ranks, the contract is the sum."""

    def norm(self, own: float) -> float:
        """Of all gradients, from that of this process's."""

    def forget(self) -> None:
        """Weights were written into: what was gathered of them for the next pass is gathered anew."""

    def piece(self, weight: Tensor) -> Piece | None:
        """Which rows of a weight this process holds; None if all of them."""

    @property
    def whole(self) -> bool:
        """Whether each process has all weights."""

    @property
    def writers(self) -> int:
        """How many processes, the first ones, hold the whole state together."""

    @property
    def moments_wait(self) -> bool:
        """Whether an optimizer's moments wait on the host between updates, by `engine/away.py`."""

    def inside(self, act: Callable[[nn.Module], T]) -> T:
        """`act` on the model, which may be called in it."""
