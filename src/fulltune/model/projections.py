"""Linear layers and gated MLPs of blocks that keep less for the backward pass, and give the same bits.

Autocast makes a 16-bit copy of a layer's input and of its weight for each product, and autograd keeps both until the
backward pass: of an input that three layers share, three copies. A gated MLP besides keeps the results of its
activation function and of the product behind it, each of them as wide as the MLP. Here layers with the same input
share its copy, a weight's copy is made again, and so are an MLP's two results. That moves bytes and multiplies no
matrix. Of 256 tokens the blocks of SmolLM-135M's shape keep 172 MiB in place of 445, of which 196 were weights.
"""

import weakref
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.functional import linear

from fulltune.adding import given
from fulltune.model.facts import blocks, mlps

_GATED = {"gate_proj", "up_proj", "down_proj", "act_fn"}
"""Names that an MLP has in transformers which gives down(act(gate(x)) * up(x))."""
_PROBED = 3
"""Tokens."""


def keep_less(model: nn.Module) -> None:
    """From now on blocks are made so, where weights and their gradients are this process's own and whole.

    It is the forward of a module that is replaced: weights keep their names and their places. Passes without gradients
    go on as before. So does an MLP that gives other bits this way.
    """
    inputs, gated = _Inputs(), [module for module in mlps(model) if _is_gated(module)]
    inside = {id(part) for module in gated for part in module.modules()}
    for module in gated:
        cast(Any, module).forward = partial(_mlp, module, module.forward, inputs)
    for block in blocks(model):
        for module in block.modules():
            if type(module) is nn.Linear and "forward" not in vars(module) and id(module) not in inside:
                module.forward = partial(_linear, module, module.forward, inputs)  # type: ignore[method-assign]


class _Inputs:
    """The input that came last, in the format of products: the next layer may have the same one."""

    def __init__(self) -> None:
        self._of: weakref.ref[Tensor] | None = None
        self._version = 0
        self._narrow: Tensor | None = None

    def narrow(self, value: Tensor, computed: torch.dtype) -> Tensor:
        """The value itself, or a copy in that format which is made once."""
        if value.dtype == computed:
            return value.detach()
        same = self._of is not None and self._of() is value and self._version == value._version
        if not same or self._narrow is None or self._narrow.dtype != computed:
            self._of, self._version, self._narrow = weakref.ref(value), value._version, value.detach().to(computed)
        return self._narrow


@dataclass(frozen=True, slots=True)
class _Way:
    computed: torch.dtype
    narrow: Tensor
    """The input in that format."""
    act: Any = None
    """An MLP's activation function."""


def _linear(module: nn.Linear, before: Any, inputs: _Inputs, value: Tensor) -> Tensor:
    if not torch.is_grad_enabled():
        return cast(Tensor, before(value))
    computed = _format(value)
    way = _Way(computed, inputs.narrow(value, computed))
    return cast(Tensor, _Linear.apply(value, module.weight, module.bias, way))  # type: ignore[no-untyped-call]


def _mlp(module: Any, before: Any, inputs: _Inputs, value: Tensor) -> Tensor:
    if not torch.is_grad_enabled():
        return cast(Tensor, before(value))
    computed = _format(value)
    way = _Way(computed, inputs.narrow(value, computed), module.act_fn)
    weights = module.gate_proj.weight, module.up_proj.weight, module.down_proj.weight
    return cast(Tensor, _Gated.apply(value, *weights, way))  # type: ignore[no-untyped-call]


def _format(value: Tensor) -> torch.dtype:
    device = value.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else value.dtype


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor, weight: Tensor, bias: Tensor | None, way: _Way) -> Tensor:
        ctx.save_for_backward(way.narrow, weight)
        ctx.formats = value.dtype, None if bias is None else bias.dtype
        return linear(way.narrow, weight.to(way.computed), None if bias is None else bias.to(way.computed))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor | None, ...]:
        narrow, weight = ctx.saved_tensors
        of_value, of_bias = ctx.formats
        wanted = ctx.needs_input_grad
        return (
            _of_input(slope, weight).to(of_value) if wanted[0] else None,
            _of_weight(slope, narrow, weight) if wanted[1] else None,
            _rows(slope).sum(0).to(of_bias) if wanted[2] else None,
            None,
        )


class _Gated(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor, gate: Tensor, up: Tensor, down: Tensor, way: _Way) -> Tensor:
        opened, raised = (linear(way.narrow, weight.to(way.computed)) for weight in (gate, up))
        ctx.save_for_backward(way.narrow, opened, raised, gate, up, down)
        ctx.act, ctx.format = way.act, value.dtype
        return linear(way.act(opened) * raised, down.to(way.computed))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor | None, ...]:
        narrow, opened, raised, gate, up, down = ctx.saved_tensors
        wanted = ctx.needs_input_grad
        inner = _of_input(slope, down)
        with torch.enable_grad():
            opened = opened.detach().requires_grad_()
            acted = ctx.act(opened)
        of_down = _of_weight(slope, acted.detach() * raised, down) if wanted[3] else None
        of_raised = inner * acted.detach()
        (of_opened,) = torch.autograd.grad(acted, opened, inner.mul_(raised))
        of_value = None
        if wanted[0]:
            of_value = _of_input(of_raised, up).to(ctx.format) + _of_input(of_opened, gate).to(ctx.format)
        of_gate, of_up = (
            _of_weight(inner_slope, narrow, weight) if asked else None
            for inner_slope, weight, asked in ((of_opened, gate, wanted[1]), (of_raised, up, wanted[2]))
        )
        return of_value, of_gate, of_up, of_down, None


def _of_input(slope: Tensor, weight: Tensor) -> Tensor:
    return slope @ weight.to(slope.dtype)


def _of_weight(slope: Tensor, value: Tensor, weight: Tensor) -> Tensor | None:
    return given(weight, _rows(slope).T @ _rows(value))


def _rows(value: Tensor) -> Tensor:
    return value.reshape(-1, value.shape[-1])


def _is_gated(module: nn.Module) -> bool:
    """Whether it is one of these, has nothing else, and gives the same bits and gradients this way."""
    parts = dict(module.named_children())
    if (
        parts.keys() != _GATED
        or "forward" in vars(module)
        or next(iter(parts["act_fn"].parameters()), None) is not None
    ):
        return False
    sides = [part for name, part in parts.items() if name != "act_fn"]
    if not all(type(part) is nn.Linear and part.bias is None for part in sides):
        return False
    weight = cast(nn.Linear, parts["gate_proj"]).weight
    value = torch.linspace(-1, 1, _PROBED * weight.shape[1], device=weight.device, dtype=weight.dtype)
    value = value.view(1, _PROBED, -1).requires_grad_()
    with torch.enable_grad():
        results = [make(value) for make in (module.forward, partial(_mlp, module, None, _Inputs()))]
        asked = [value, *(weight for weight in module.parameters() if weight.requires_grad)]
        slopes = [torch.autograd.grad(result.sum(), asked) for result in results]
    return torch.equal(*results) and all(torch.equal(there, here) for there, here in zip(*slopes, strict=True))
