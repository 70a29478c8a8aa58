"""Bfloat16 weights, moved through float32 copies part by part, and rounded stochastically."""

from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor, nn

from fulltune.base.formats import MomentFormat, PrecisionPlan
from fulltune.base.memory import MOVED_AT_ONCE
from fulltune.engine.away import Away
from fulltune.engine.contract import MakeOptimizer, Pull, Visitor
from fulltune.engine.moments import narrow, widen
from fulltune.engine.parts import in_parts
from fulltune.engine.rounding import generator_of_this_update, stochastic
from fulltune.engine.weights import FullWeights, Weights


class RoundedWeights:
    """Bfloat16 weights whose updates are rounded stochastically (Zamirai et al. 2020, arXiv 2010.06192).

    Plain bfloat16 loses every step that is smaller than half the distance to a weight's neighbour, about w / 512:
    at a rate of 1e-5 that is nearly all of them. Here the optimizer computes in float32, on a copy of one weight tensor
    at a time, or of a part of it where that is right (`engine/parts.py`), and only the result is rounded, so that small
    steps are taken now and then and are right on average.

    A micro-batch's gradients are bfloat16. Those of several micro-batches are added up in float32, each as soon as the
    backward pass has it: in bfloat16 the sum of a thousand would stop growing half way.
    Moments lie in the format of the plan, and are float32 only while their weight moves (`engine/moments.py`).
    Buffers are left as they are: rotary frequencies rounded to bfloat16 put later tokens elsewhere.

    Holds for optimizers that treat each weight by itself (`planning/precision.py` names them).
    """

    def __init__(
        self,
        model: nn.Module,
        make_optimizer: MakeOptimizer,
        *,
        moments: MomentFormat,
        parts: bool = False,
        moments_wait: bool = False,
    ) -> None:
        """`parts`: the optimizer treats each number by itself, so that a large weight may be moved part by part."""
        self._weights: dict[nn.Parameter, nn.Parameter] = {}
        self.names: dict[nn.Parameter, str] = {}
        for name, weight in model.named_parameters():
            weight.data = weight.data.to(torch.bfloat16)
            if weight.requires_grad:
                weight.register_post_accumulate_grad_hook(self._gather)  # type: ignore[no-untyped-call]
            shard = nn.Parameter(_outline(weight), requires_grad=weight.requires_grad)
            self._weights[shard], self.names[shard] = weight, name
        self.optimizer = make_optimizer([(name, shard) for shard, name in self.names.items()])
        self._moments, self._parts = moments, parts
        self._away = Away(self.optimizer.state, next(model.parameters()).device) if moments_wait else None
        self._sums: dict[Tensor, Tensor] = {}
        """By weight: gradients of micro-batches, added up in float32."""
        self._several = False
        self._draws: torch.Generator | None = None
        """Of this update: one, also where weights are moved one by one in a backward pass."""

    def begin(self, *, last: bool) -> None:
        self._several = self._several or not last

    def gather(self) -> None:
        """Nothing to do: they were added up as they came."""

    def _gather(self, weight: Tensor) -> None:
        """Called by autograd as soon as one weight's gradient of one micro-batch is there."""
        if self._several:
            self._widen(weight)

    def _widen(self, weight: Tensor) -> Tensor | None:
        """The gradient in float32, of all micro-batches so far; what came last is added."""
        if weight.grad is not None:
            if weight in self._sums:
                self._sums[weight] += weight.grad
            else:
                self._sums[weight] = weight.grad.float()
            weight.grad = None
        return self._sums.get(weight)

    def _moved(self) -> Iterator[tuple[nn.Parameter, Tensor]]:
        """Shards with their gradients, in the order of the groups."""
        for group in self.optimizer.param_groups:
            for shard in group["params"]:
                weight = self._weights[shard]
                gradient = self._sums.get(weight, weight.grad)
                if gradient is not None:
                    yield shard, gradient

    def gradients(self) -> Iterator[Tensor]:
        return (gradient for _, gradient in self._moved())

    def spare(self, parameters: Iterable[nn.Parameter]) -> None:
        for shard in parameters:
            self._drop(self._weights[shard])

    def rest(self, parameters: Iterable[nn.Parameter]) -> None:
        for shard in parameters:
            self._weights[shard].grad = torch.zeros_like(self._weights[shard])

    def _drop(self, weight: nn.Parameter) -> None:
        weight.grad = None
        self._sums.pop(weight, None)

    def pull(self, pulls: Sequence[Pull]) -> None:
        for shard, name in self.names.items() if pulls else ():
            weight = self._weights[shard]
            gradient = self._widen(weight)
            if gradient is not None:
                copy = weight.data.float()
                for pull in pulls:
                    pull.before(name, copy, gradient)

    def norm(self) -> float:
        norms = [torch.linalg.vector_norm(gradient, dtype=torch.float32) for gradient in self.gradients()]
        return float(torch.linalg.vector_norm(torch.stack(norms))) if norms else 0.0

    def step(self, norm: float, limit: float, pulls: Sequence[Pull]) -> None:
        generator = self._draws = self._draws or self._generator()
        factor = limit / (norm + 1e-6) if norm > limit else 1.0  # as torch's own clipping
        rates = {shard: group["lr"] for group in self.optimizer.param_groups for shard in group["params"]}
        moved = dict(self._moved())
        each = [[shard] for shard in moved]
        for (shard,) in each if self._away is None else self._away.in_turn(each):
            weight, gradient = self._weights[shard], moved.pop(shard)
            self._drop(weight)
            for here, slope in self._parts_of(shard, weight.data, gradient, whole=bool(pulls)):
                shard.data, shard.grad = here.float(), slope.float().mul_(factor)
                widen(self.optimizer.state[shard])
                self.optimizer.step()  # moves this one alone, since no other has a gradient
                for pull in pulls:
                    pull.after(self.names[shard], shard.data, rates[shard])
                here.copy_(stochastic(shard.data, generator))
                narrow(self.optimizer.state[shard], self._moments, generator)
            shard.data, shard.grad = _outline(weight), None

    def _parts_of(
        self, shard: nn.Parameter, weight: Tensor, gradient: Tensor, *, whole: bool
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Of a weight and its gradient what is moved at once; all where pulls remember something of all of it."""
        numbers = MOVED_AT_ONCE[weight.device.type]
        if whole or not self._parts or weight.numel() <= numbers or not weight.is_contiguous():
            yield weight, gradient
            return
        line, slope = weight.view(-1), gradient.reshape(-1)
        for part in in_parts(self.optimizer.state[shard], weight.shape, numbers):
            yield line[part], slope[part]

    def visit(self, act: Visitor) -> None:
        generator = self._generator()
        for shard, name in self.names.items():
            copy = self._weights[shard].data.float()
            act(name, copy)
            self._weights[shard].data.copy_(stochastic(copy, generator))  # exact where nothing was changed

    def clear(self) -> None:
        self._several, self._draws = False, None
        for weight in self._weights.values():
            self._drop(weight)
        if self._away is not None:
            self._away.drain()

    def settle(self) -> None:
        if self._away is not None:
            self._away.settle()

    def _generator(self) -> torch.Generator:
        return generator_of_this_update(next(iter(self._weights.values())).device)


def _outline(weight: Tensor) -> Tensor:
    """A float32 tensor of the weight's shape that takes no memory."""
    return torch.zeros((), dtype=torch.float32, device=weight.device).expand(weight.shape)


def weights_for(
    model: nn.Module, make_optimizer: MakeOptimizer, precision: PrecisionPlan, *, moments_wait: bool = False
) -> Weights:
    """The model's float32 weights as they are, or rounded to what the plan says.

    `moments_wait`: on the host, from update to update; for optimizers that treat each weight by itself.
    """
    if precision.weights == "float32":
        return FullWeights(model, make_optimizer, moments_wait=moments_wait)
    return RoundedWeights(
        model, make_optimizer, moments=precision.moments, parts=precision.parts, moments_wait=moments_wait
    )
