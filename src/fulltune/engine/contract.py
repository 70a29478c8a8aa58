"""What the training loop may ask of an engine.

The contract: for the same micro-batches and the same rates, every engine makes the same update.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

from torch import Tensor, nn
from torch.optim import Optimizer

from fulltune.batch import Batch
from fulltune.engine.capture import Capture

T = TypeVar("T")

MakeOptimizer = Callable[[Iterable[tuple[str, nn.Parameter]]], Optimizer]
"""Called by the engine once the parameters have their final form."""

Read = Callable[[str, slice | None], Tensor]
"""Rows of a named weight, or all of it, from wherever weights lie."""

Visitor = Callable[[str, Tensor], None]
Extra = Mapping[str, Tensor]
"""Named shards of pulls and averages, saved with the weights they belong to."""


@dataclass(frozen=True, slots=True)
class World:
    """Where this process stands among the others, and the device it computes on (`cpu`, `cuda:0`)."""

    rank: int
    size: int
    device: str


@dataclass(frozen=True, slots=True)
class Update:
    """What came of one update: the gradient's norm before clipping, and whether the weights were moved."""

    grad_norm: float
    applied: bool
    again: bool = False
    """The gradient overflowed the loss scale, which was lowered: nothing moved, and the same update is to be made
    again. Never for ever: at the lowest scale it is a gradient that is not finite.
    """


class Pull(Protocol):
    """What holds weights near where they began: acts on each float32 shard, never on an update that is skipped.

    What a pull remembers (start weights, Fisher information) goes into checkpoints as `Extra`.
    """

    @property
    def on_gradients(self) -> bool:
        """Whether `before` does anything; only then is it called."""

    def before(self, name: str, shard: Tensor, grad: Tensor) -> None:
        """Add to the gradient before it is clipped: a penalty such as L2-SP."""

    def after(self, name: str, shard: Tensor, lr: float) -> None:
        """Move the weights after the update, as decoupled weight decay does; `lr` is the rate of their group."""


class Engine(Protocol):
    """A model, its objective and optimizer, and the processes that share them."""

    @property
    def world(self) -> World:
        """This process's place."""

    @property
    def whole(self) -> bool:
        """Whether the model in this process has all of its weights, so that it may be called by itself."""

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """The objective's sums for one micro-batch, in the engine's precision."""

    def micro(self, *, last: bool) -> AbstractContextManager[None]:
        """Around forward AND backward of one micro-batch; gradients are exchanged at the last."""

    def backward(self, share: Tensor) -> None:
        """`share` is this rank's addend of the loss; the gradient is that of the SUM of shares over ranks."""

    def update(self, rates: Sequence[float]) -> Update:
        """Clip by the global norm and step, one rate for each group; nothing moves if the norm is not finite.

        `training.step.reseed` goes before each update: what an engine draws (stochastic rounding) it draws from that
        seed. A group whose rate is 0 is left untouched, its moments too. Gradients are cleared in any case.
        """

    def clear(self) -> None:
        """Drop half-made gradients."""

    def rehearsing(self) -> AbstractContextManager[None]:
        """Inside, all memory is taken that an update needs besides its passes, optimizer state included.

        Nothing has moved behind it. Gradients made inside are dropped.
        """

    def evaluating(self) -> AbstractContextManager[None]:
        """Inside: eval mode, no gradients, the engine's precision; the mode is restored behind."""

    def inside(self, act: Callable[[nn.Module], T]) -> T:
        """`act` on the model, which may be called in it, on all ranks alike: what it computes is exchanged."""

    def visit(self, act: Visitor) -> None:
        """`act(name, shard)` on each float32 shard of the weights that this rank holds; changes are kept."""

    def sum(self, value: Tensor) -> Tensor:
        """The sum over ranks, the same on every rank."""

    def any(self, flag: bool) -> bool:
        """Whether the flag is set on any rank. Asked after every micro-batch: it should not wait for the device."""

    @property
    def files(self) -> frozenset[str]:
        """What it takes to load a state; a checkpoint that lacks one of them is damaged."""

    def capture(self, extra: Extra) -> Capture:
        """What this rank has to write of weights, optimizer state and `extra`, as they are now; in any thread.

        All ranks call it. The engine moves nothing before they have been copied.
        """

    def load(self, folder: Path, *, weights_only: bool = False) -> Extra:
        """Read them back, also what another native engine or number of ranks saved; returns `extra`.

        With `weights_only` the optimizer is left as it is.
        """

    def fill(self, read: Read) -> None:
        """Take the weights to begin with: each process reads what it holds. For a model that came without memory."""

    def full_weights(self) -> Iterator[tuple[str, Tensor]]:
        """The whole model on rank 0, one tensor at a time, under the names that the model has for them.

        The other ranks run through it too, and get nothing.
        """
