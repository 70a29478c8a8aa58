"""Where DeepSpeed keeps a process's part of weights and moments, and how its half-made gradients are dropped.

ZeRO (Rajbhandari et al. 2020, arXiv 1910.02054) lays the weights of a parameter group end to end and gives each process
a stretch of the line. What of a weight lies in it is a fragment: it may begin in the middle of a row. All that fulltune
knows of DeepSpeed's insides is in this module, and `tests/distributed/test_zero.py` fails where they change.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from fulltune.engine.contract import Pull
from fulltune.engine.pieces import Piece


@dataclass(frozen=True, slots=True)
class Fragment:
    """What this process has of one weight: `count` float32 numbers, from `start` of the weight as one line."""

    name: str
    shape: tuple[int, ...]
    group: int
    line: Tensor
    """The stretch that it lies in: what the optimizer moves, and has its state for."""
    offset: int
    """Where in `line`."""
    start: int
    count: int

    @property
    def piece(self) -> Piece:
        """How a checkpoint tells where it belongs."""
        total = 1
        for width in self.shape:
            total *= width
        return Piece(self.start, total, self.shape)

    def of(self, line: Tensor) -> Tensor:
        """Its part of a tensor that is as long as `line`; the memory is that tensor's."""
        return line.detach().narrow(0, self.offset, self.count)

    @property
    def master(self) -> Tensor:
        """Its float32 numbers."""
        return self.of(self.line)


class Fragments(Protocol):
    """What of a model lies in this process, by which stage and optimizer of DeepSpeed it may be."""

    def __iter__(self) -> Iterator[Fragment]:
        """One for each trained weight of which anything lies here."""

    def lines(self) -> Sequence[tuple[int, Tensor]]:
        """What the optimizer moves here: parameter groups and stretches."""

    def publish(self) -> None:
        """What was written into masters is what the model computes with, on all processes. All call it."""

    def spare(self, group: int) -> None:
        """Before an update: the gradients of a parameter group count nothing in the norm."""

    def clear(self) -> None:
        """Drop the gradients of whole passes, and begin to count them anew."""


@torch.no_grad()
def pulled(fragments: Fragments, pulls: Sequence[Pull], rates: Sequence[float]) -> None:
    """Let pulls act behind an update, on what its rates have moved. All processes call it."""
    for fragment in fragments:
        for pull in pulls if rates[fragment.group] else ():
            pull.after(fragment.name, fragment.master, rates[fragment.group])
    fragments.publish()


def fragments_of(model: nn.Module, wrapped: Any) -> Fragments:
    """`wrapped`: DeepSpeed's optimizer around ours."""
    match type(wrapped).__name__:
        case "DeepSpeedZeroOptimizer":
            return _Flat(model, wrapped)
        case "BF16_Optimizer":
            return _FlatBfloat16(model, wrapped)
        case "DeepSpeedZeroOptimizer_Stage3":
            return _Partitioned(model, wrapped)
        case name:
            raise AssertionError(f"an optimizer of DeepSpeed that is not known: {name}")


def _trained(model: nn.Module) -> Iterator[tuple[str, Any]]:
    return ((name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad)


class _Flat:
    """Stages 1 and 2 with float32 gradients or offload: weights lie whole in each process, in lines of their group."""

    def __init__(self, model: nn.Module, wrapped: Any) -> None:
        self._model, self._wrapped = model, wrapped

    def lines(self) -> Sequence[tuple[int, Tensor]]:
        groups = self._wrapped.optimizer.param_groups
        return [(number, group["params"][0]) for number, group in enumerate(groups)]

    def __iter__(self) -> Iterator[Fragment]:
        lines = dict(self.lines())
        for name, parameter in _trained(self._model):
            mapped = parameter._hp_mapping
            if mapped is not None:
                number, here, there = mapped.param_group_index, mapped.hp_fragment_address, mapped.lp_fragment_address
                shape = tuple(parameter.shape)
                yield Fragment(name, shape, number, lines[number], here.start, there.start, here.numel)

    def publish(self) -> None:
        self._wrapped.update_lp_params()

    def spare(self, group: int) -> None:
        wrapped = self._wrapped
        if wrapped.cpu_offload:
            _silence(wrapped, wrapped.bit16_groups[group])
        else:
            _zero(wrapped.averaged_gradients[group])

    def clear(self) -> None:
        wrapped = self._wrapped
        wrapped.zero_grad(set_to_none=True)
        wrapped._release_preflattened_grad_buffers()
        for number in range(len(wrapped.bit16_groups)):
            wrapped.averaged_gradients[number] = wrapped.all_grad_tensors[number] = None
        wrapped.micro_step_id = -1
        if wrapped.cpu_offload:
            wrapped.reset_cpu_buffers()
            wrapped._offload_accumulated_param_ids = set()


class _FlatBfloat16(_Flat):
    """Stage 1 with bfloat16 weights whose gradients are added up in float32: DeepSpeed has an optimizer of its own."""

    def spare(self, group: int) -> None:
        self._wrapped.fp32_groups_gradients_flat[group].zero_()

    def clear(self) -> None:
        self._wrapped.zero_grad(set_to_none=True)


class _Partitioned:
    """Stage 3: each weight is one line, of which every process has an equal part; parts of a group lie end to end."""

    def __init__(self, model: nn.Module, wrapped: Any) -> None:
        self._model, self._wrapped = model, wrapped

    def lines(self) -> Sequence[tuple[int, Tensor]]:
        groups = self._wrapped.sub_group_to_group_id
        return [(groups[number], line) for number, line in enumerate(self._wrapped.fp32_partitioned_groups_flat)]

    def __iter__(self) -> Iterator[Fragment]:
        lines = self.lines()
        for name, parameter in _trained(self._model):
            number, offset, width = self._wrapped.grad_position[self._wrapped.get_param_id(parameter)]
            start = width * self._wrapped._get_param_partition_rank(parameter)
            count = min(width, parameter.ds_numel - start)  # the last part is filled up
            if count > 0:
                group, line = lines[number]
                yield Fragment(name, tuple(parameter.ds_shape), group, line, offset, start, count)

    def publish(self) -> None:
        self._wrapped._partition_all_parameters()
        for number in range(len(self._wrapped.fp16_groups)):
            self._wrapped._reassign_or_swap_out_partitioned_parameters(number)
        if self._wrapped.persistent_parameters:  # small ones, which stay whole between passes
            self._wrapped.persistent_parameters[0].all_gather(self._wrapped.persistent_parameters)

    def spare(self, group: int) -> None:
        for number, (owner, _) in enumerate(self.lines()):
            if owner == group and self._wrapped.offload_optimizer:
                _silence(self._wrapped, self._wrapped.fp16_groups[number])
            elif owner == group:
                _zero(self._wrapped.averaged_gradients[number])

    def clear(self) -> None:
        self._wrapped._overflow_clean_up(1.0)


def _silence(wrapped: Any, parameters: Sequence[Any]) -> None:
    """With offload norms are taken as gradients arrive, one for each weight."""
    for parameter in parameters:
        number = wrapped.get_param_id(parameter)
        if number in wrapped.norm_for_param_grads:
            wrapped.norm_for_param_grads[number] = 0.0 * wrapped.norm_for_param_grads[number]


def _zero(gradients: Sequence[Tensor]) -> None:
    for gradient in gradients:
        gradient.zero_()
