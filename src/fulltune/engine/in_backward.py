"""The optimizer in the backward pass: each weight is moved as soon as its gradient is whole, which is freed then.

So gradients of the whole model never lie in memory at once (Lv et al. 2023, arXiv 2306.09782, section 3.1).
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fulltune.base.errors import MachineError
from fulltune.batch import Batch
from fulltune.engine.contract import Pull, Update
from fulltune.engine.native import NativeEngine


@dataclass(frozen=True, slots=True)
class _Pass:
    """A forward pass, and all that it takes to make it again."""

    batch: Batch
    draws: tuple[Tensor, ...]
    """States of the generators that it began with."""
    sums: Mapping[str, Tensor]
    """With their graph."""
    leaves: Mapping[str, Tensor]
    """What was given out in their place; their gradients say how the loss hangs on the sums."""


class InBackward(NativeEngine):
    """The whole model in one process, an update of one micro-batch, no gradient kept.

    With `two_passes` the first backward pass takes the norm of each gradient and frees it. Only if that of all is
    finite are forward and backward pass made again, from the same random draws, and in the second one weights move,
    clipped by the norm that is known then. The update is that of any other engine, for twice the arithmetic.

    Without it there is one backward pass, in which weights move. So there is no clipping by a norm, and where a
    gradient turns out not to be finite those before it have been applied: `Update.applied` is False then, and the
    weights are neither the old nor the new ones. Whoever asks for it must go back to a checkpoint, or stop.
    """

    def __init__(self, *given: Any, two_passes: bool, **named: Any) -> None:
        """As NativeEngine, on one process; `clip` is None unless there are two passes."""
        super().__init__(*given, **named)
        assert self.world.size == 1 and self._scale is None
        assert two_passes or self._limit == math.inf
        self._two_passes = two_passes
        self._on_gradients = [pull for pull in self._pulls if pull.on_gradients]
        shards = {name: shard for shard, name in self._names.items()}
        self._shards = {weight: shards[name] for name, weight in self._model.named_parameters()}
        for weight in self._shards:
            if weight.requires_grad:
                weight.register_post_accumulate_grad_hook(self._arrived)  # type: ignore[no-untyped-call]
        self._act: Callable[[nn.Parameter], None] = self._measure
        self._norms: dict[nn.Parameter, Tensor] = {}
        self._pass: _Pass | None = None
        self._rehearses = self._broken = False

    def micro(self, *, last: bool) -> AbstractContextManager[None]:
        if not last:
            raise MachineError(
                "an update whose weights move in the backward pass is one micro-batch, and it does not fit",
                where="optim.in_backward",
                mend="a lower train.batch_examples, memory.checkpointing=full, or more memory",
            )
        return super().micro(last=last)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """What is given out are leaves: `backward` needs to know how the loss hangs on them, to do it again."""
        if not torch.is_grad_enabled():
            return super().forward(batch)
        draws = self._draws()
        sums = super().forward(batch)
        leaves = {term: value.detach().requires_grad_() for term, value in sums.items()}
        self._pass = _Pass(batch, draws, sums, leaves)
        return dict(leaves)

    def backward(self, share: Tensor) -> None:
        super().backward(share)
        if self._two_passes or self._rehearses:
            self._act = self._measure
            self._go_back()

    def update(self, rates: Sequence[float]) -> Update:
        resting: set[nn.Parameter] = set()
        for group, rate in zip(self._optimizer.param_groups, rates, strict=True):
            group["lr"] = rate
            resting |= set(group["params"] if rate == 0 else ())
        norm = self._norm_without(resting) if self._two_passes else 0.0
        if math.isfinite(norm):
            self._release()
            self._broken = False
            self._act = lambda shard: self._move(shard, norm, resting)
            self._go_back()
            norm = norm if self._two_passes else self._norm_without(resting)
        self.clear()
        return Update(norm, math.isfinite(norm))

    def look(self, pull: Pull) -> None:
        self._act = lambda _: self._weights.pull((pull,))
        self._go_back()
        self.clear()

    def clear(self) -> None:
        super().clear()
        self._pass = None
        self._norms.clear()

    @contextmanager
    def rehearsing(self) -> Iterator[None]:
        self._rehearses = True
        try:
            with super().rehearsing():
                yield
        finally:
            self._rehearses = False

    def _step_in_place(self) -> None:
        """One weight after the other: not even gradients of 0 are there for all."""
        for group in self._optimizer.param_groups:
            group["lr"] = 0.0
        for shard in self._shards.values():
            if shard.requires_grad:
                self._weights.rest([shard])
                self._weights.step(0.0, math.inf, ())
                self._weights.spare([shard])
        self.clear()

    def _go_back(self) -> None:
        """The backward pass through the model; the forward pass is made again if it was gone through already."""
        made = self._pass
        assert made is not None
        slopes = {term: leaf.grad for term, leaf in made.leaves.items() if leaf.grad is not None}
        sums = made.sums or self._again(made)
        # What the sums hold goes as it is used, as it would without us.
        self._pass = _Pass(made.batch, made.draws, {}, made.leaves)
        del made
        torch.autograd.backward([sums[term] for term in slopes], list(slopes.values()))

    def _again(self, made: _Pass) -> dict[str, Tensor]:
        """The same numbers: dropout draws as it drew the first time."""
        devices = [self.world.device] if self.world.device.startswith("cuda") else []
        with torch.random.fork_rng(devices), torch.enable_grad():
            torch.set_rng_state(made.draws[0])
            for device, state in zip(devices, made.draws[1:], strict=True):
                torch.cuda.set_rng_state(state, device)
            return super().forward(made.batch)

    def _draws(self) -> tuple[Tensor, ...]:
        cuda = self.world.device.startswith("cuda")
        return torch.get_rng_state(), *((torch.cuda.get_rng_state(self.world.device),) if cuda else ())

    def _arrived(self, weight: nn.Parameter) -> None:
        """Called by autograd as soon as the gradient of one weight is whole; no other weight has one now."""
        shard = self._shards[weight]
        self._act(shard)
        self._weights.spare([shard])

    def _measure(self, shard: nn.Parameter) -> None:
        self._weights.pull(self._on_gradients)
        for gradient in self._weights.gradients():
            self._norms[shard] = torch.linalg.vector_norm(gradient, dtype=torch.float32)

    def _move(self, shard: nn.Parameter, norm: float, resting: set[nn.Parameter]) -> None:
        if shard in resting or self._broken:
            return
        self._measure(shard)
        self._broken = not self._two_passes and not bool(torch.isfinite(self._norms[shard]))
        if not self._broken:
            self._weights.step(norm, self._limit, self._pulls)

    def _norm_without(self, resting: set[nn.Parameter]) -> float:
        """Of all gradients but those of weights at rest, in the order of the groups."""
        order = (shard for group in self._optimizer.param_groups for shard in group["params"])
        norms = [self._norms[shard] for shard in order if shard in self._norms and shard not in resting]
        return float(torch.linalg.vector_norm(torch.stack(norms))) if norms else 0.0
