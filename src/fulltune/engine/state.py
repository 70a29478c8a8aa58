"""An optimizer's state as named tensors and plain numbers, and back. No pickle."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from fulltune.base.errors import CheckpointError

SEPARATOR = "/"
GROUP = "group:"
"""Before a group's number, where a key is of no weight."""


def flatten(optimizer: Optimizer, names: Mapping[nn.Parameter, str]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """`(tensors, numbers)`, both keyed `parameter/entry`; the tensors are the optimizer's own."""
    tensors: dict[str, Tensor] = {}
    numbers: dict[str, Any] = {}
    for parameter, name in names.items():
        state = optimizer.state.get(parameter, {})
        for entry, value in state.items():
            key = f"{name}{SEPARATOR}{entry}"
            if isinstance(value, Tensor):
                tensors[key] = value.detach()
            else:
                numbers[key] = value
    counted, plain = group_numbers(optimizer.param_groups)
    return tensors | counted, numbers | plain


def group_numbers(groups: Sequence[Mapping[str, Any]]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """What stands in an optimizer's groups themselves.

    Some optimizers (schedule-free ones, Prodigy) count in their groups; what the recipe sets stands there too.
    """
    tensors: dict[str, Tensor] = {}
    numbers: dict[str, Any] = {}
    for index, group in enumerate(groups):
        for key in sorted(group.keys() - {"params"}):
            value, place = group[key], f"{GROUP}{index}{SEPARATOR}{key}"
            if isinstance(value, Tensor):
                tensors[place] = value.detach()
            else:
                numbers[place] = value
    return tensors, numbers


def restore_group(groups: Sequence[dict[str, Any]], name: str, entry: str, value: Any) -> None:
    """Put one of them back; `name` is the group's."""
    group = groups[int(name.removeprefix(GROUP))]
    group[entry] = tuple(value) if isinstance(group.get(entry), tuple) else value  # JSON has lists only


def restore(
    optimizer: Optimizer,
    names: Mapping[nn.Parameter, str],
    tensors: Mapping[str, Tensor],
    numbers: Mapping[str, Any],
    *,
    here: bool = True,
) -> None:
    """Put a flattened state back; CheckpointError if it speaks of parameters that the model has not.

    `here`: whether moments are brought to their weights' device, or are left where they are.
    """
    parameters = {name: parameter for parameter, name in names.items()}
    optimizer.state.clear()
    for key, value in [*tensors.items(), *numbers.items()]:
        name, _, entry = key.rpartition(SEPARATOR)
        if name.startswith(GROUP):
            restore_group(optimizer.param_groups, name, entry, value)
            continue
        if name not in parameters:
            raise CheckpointError(
                f"the optimizer state speaks of {name!r}, which the model has not",
                mend="the checkpoint belongs to another model; use a new run folder",
            )
        parameter = parameters[name]
        placed = isinstance(value, Tensor) and (here or value.ndim == 0)
        optimizer.state[parameter][entry] = _placed(value, parameter) if placed else value


def _placed(value: Tensor, parameter: nn.Parameter) -> Tensor:
    """Moments live where their weights live; a step counter stays where torch's optimizers keep it."""
    if value.ndim == 0:
        return value.to(parameter.device) if parameter.device.type == "cuda" else value.clone()
    return value.to(parameter.device, dtype=value.dtype, memory_format=torch.contiguous_format)
