"""What optimizer and pulls act on: a protocol, and float32 weights as they are (of bfloat16 ones: rounded.py)."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from fulltune.adding import drop, settle
from fulltune.engine.away import Away, portions
from fulltune.engine.contract import MakeOptimizer, Pull, Visitor


class Weights(Protocol):
    """A model's weights and the optimizer that moves them."""

    @property
    def optimizer(self) -> Optimizer:
        """Its parameters are the model's own, or stand for them."""

    @property
    def names(self) -> Mapping[nn.Parameter, str]:
        """The model's names of the optimizer's parameters."""

    def begin(self, *, last: bool) -> None:
        """A micro-batch follows; `last` says whether it is the last of its update."""

    def gather(self) -> None:
        """All passes of an update are made: gradients are what they are."""

    def gradients(self) -> Iterator[Tensor]:
        """Of the weights that the update will move."""

    def spare(self, parameters: Iterable[nn.Parameter]) -> None:
        """Drop the gradients of these parameters of the optimizer, so that they stay as they are, their moments too."""

    def rest(self, parameters: Iterable[nn.Parameter]) -> None:
        """Gradients of zero for these parameters of the optimizer."""

    def pull(self, pulls: Sequence[Pull]) -> None:
        """Let pulls add to the gradients."""

    def norm(self) -> float:
        """Of all gradients together."""

    def step(self, norm: float, limit: float, pulls: Sequence[Pull]) -> None:
        """Clip to `limit`, move, let pulls move."""

    def visit(self, act: Visitor) -> None:
        """`act(name, shard)` on each float32 shard; changes are kept."""

    def clear(self) -> None:
        """Drop all gradients."""

    def settle(self) -> None:
        """What is under way between device and host has arrived: the optimizer's state can be read."""


class FullWeights:
    """Float32 weights: the optimizer has the model's own parameters, or of sharded ones the rows that are here.

    Those share their memory with the model's, so that what moves one moves the other. The optimizer sees plain tensors:
    it treats each number by itself, and knows nothing of other processes.
    """

    def __init__(self, model: nn.Module, make_optimizer: MakeOptimizer, *, moments_wait: bool = False) -> None:
        self._of = {_here(parameter): parameter for parameter in model.parameters()}
        shards = {parameter: shard for shard, parameter in self._of.items()}
        self.names = {shards[parameter]: name for name, parameter in model.named_parameters()}
        self.optimizer = make_optimizer([(name, shard) for shard, name in self.names.items()])
        self._away = Away(self.optimizer.state, next(iter(self.names)).device) if moments_wait else None

    def begin(self, *, last: bool) -> None:
        """Nothing to do: autograd adds up in float32."""

    def gather(self) -> None:
        settle(self._of.values())
        for shard, parameter in self._of.items():
            if isinstance(parameter, DTensor):
                shard.grad = None if parameter.grad is None else local(parameter.grad)

    def gradients(self) -> Iterator[Tensor]:
        return (parameter.grad for parameter in self._moved() if parameter.grad is not None)

    def _moved(self) -> list[nn.Parameter]:
        members = (parameter for group in self.optimizer.param_groups for parameter in group["params"])
        return [parameter for parameter in members if parameter.grad is not None]

    def spare(self, parameters: Iterable[nn.Parameter]) -> None:
        for parameter in parameters:
            parameter.grad = None

    def rest(self, parameters: Iterable[nn.Parameter]) -> None:
        for parameter in parameters:
            parameter.grad = torch.zeros_like(parameter)

    def pull(self, pulls: Sequence[Pull]) -> None:
        for pull in pulls:
            for parameter, name in self.names.items():
                if parameter.grad is not None:
                    pull.before(name, parameter.data, parameter.grad)

    def norm(self) -> float:
        return float(torch.nn.utils.get_total_norm(list(self.gradients()), foreach=True))

    def step(self, norm: float, limit: float, pulls: Sequence[Pull]) -> None:
        if norm > limit:
            torch.nn.utils.clip_grads_with_norm_(self._moved(), limit, torch.tensor(norm), foreach=True)
        if self._away is None:
            self.optimizer.step()
        else:
            self._step_in_turn(self._away)
        with torch.no_grad():
            for pull in pulls:
                for group in self.optimizer.param_groups:
                    for parameter in group["params"]:
                        if parameter.grad is not None:
                            pull.after(self.names[parameter], parameter.data, group["lr"])

    def _step_in_turn(self, away: Away) -> None:
        """As one step, by portions: the optimizer moves what has a gradient."""
        gradients = {parameter: parameter.grad for parameter in self._moved()}
        self.spare(gradients)
        for portion in away.in_turn(portions(gradients)):
            for parameter in portion:
                parameter.grad = gradients[parameter]
            self.optimizer.step()
            self.spare(portion)
        for parameter, gradient in gradients.items():
            parameter.grad = gradient

    def visit(self, act: Visitor) -> None:
        for parameter, name in self.names.items():
            act(name, parameter.data)

    def clear(self) -> None:
        drop(self._of.values())
        for shard, parameter in self._of.items():
            shard.grad = parameter.grad = None
        if self._away is not None:
            self._away.drain()

    def settle(self) -> None:
        if self._away is not None:
            self._away.settle()


def local(tensor: Tensor) -> Tensor:
    """What of a tensor is in this process; the memory is the tensor's own."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def _here(parameter: nn.Parameter) -> nn.Parameter:
    if not isinstance(parameter, DTensor):
        return parameter
    return nn.Parameter(local(parameter.detach()), requires_grad=parameter.requires_grad)
