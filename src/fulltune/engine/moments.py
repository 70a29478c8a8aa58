"""How moments lie between updates: in float32, in bfloat16, or in 8 bits; while their weight moves they are float32.

In 8 bits they have a code of 256 values that is finest where most moments lie, and a scale for every 256 of them, by
Dettmers et al. 2022 (arXiv 2110.02861), but for three things:

- Which of two neighbouring codes a number gets is drawn, so that its expected value is exact. To the nearest, a second
  moment would never come down: an update takes a thousandth of it, and codes lie up to half of themselves apart.
- The code of a second moment is that of its *root*, by which an update is divided, so 14 powers of ten lie in a block
  instead of 7. What the draw keeps exact is the second moment, or it would grow by each one.
- A second moment above 0 never becomes 0, where it would divide a first moment that is not. Below the smallest code it
  gets that one, and its weight moves less than it would.
"""

from collections.abc import Collection
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from fulltune.base.errors import CheckpointError
from fulltune.base.formats import BLOCK, MomentFormat
from fulltune.base.memory import CODED_AT_ONCE
from fulltune.engine.rounding import stochastic

SCALES = ".scales"
"""Behind the name of what lies in 8 bits: the name of its scales, `[numbers / 256]` in float32."""
_SECOND = frozenset({"exp_avg_sq", "max_exp_avg_sq"})
"""Moments that are never negative, and whose root divides an update, as torch's optimizers call them."""


def widen(state: dict[str, Any]) -> None:
    """Of one weight: every moment becomes float32, in whichever format it was left; counters are left alone."""
    for key in _moments(state):
        scales = state.pop(key + SCALES, None)
        state[key] = state[key].float() if scales is None else decoded(state[key], scales, second=key in _SECOND)


def narrow(state: dict[str, Any], number: MomentFormat, generator: torch.Generator) -> None:
    """Of one weight: every moment, in float32 now, is left in this format."""
    for key in _moments(state) if number != "float32" else ():
        if number == "bfloat16":
            # The second moment's steps are a thousandth of it: rounded to the nearest it would stand still.
            state[key] = stochastic(state[key], generator)
        else:
            state[key], state[key + SCALES] = encoded(state[key], generator, second=key in _SECOND)


def require_numbers(keys: Collection[str], folder: Path) -> None:
    """CheckpointError if some of these entries of an optimizer's state are codes, which bf16-sr alone reads."""
    if any(key.endswith(SCALES) for key in keys):
        raise CheckpointError(
            "the moments lie there in 8 bits, which train.precision=bf16-sr alone reads, in one process",
            where=str(folder),
            mend="go on with the precision and the engine that saved it, or use a new run folder",
        )


def _moments(state: dict[str, Any]) -> list[str]:
    """In order of their names, so that draws do not hang on the order that a checkpoint gives them back in."""
    return sorted(k for k, v in state.items() if isinstance(v, Tensor) and v.ndim > 0 and not k.endswith(SCALES))


def encoded(value: Tensor, generator: torch.Generator, *, second: bool) -> tuple[Tensor, Tensor]:
    """float32 -> codes in uint8 of its shape, and the largest magnitude of each 256 numbers, in float32.

    That largest number and every 0 stay exactly what they are. A block with a number that is not finite has a scale
    that is not, and comes back with none that is.
    """
    code, line = _code(second, value.device), value.reshape(-1)
    codes = torch.empty_like(line, dtype=torch.uint8)
    scales = torch.empty(-(-line.numel() // BLOCK), dtype=torch.float32, device=value.device)
    for start in range(0, line.numel(), CODED_AT_ONCE):
        stop = min(start + CODED_AT_ONCE, line.numel())
        blocks = _blocks(line[start:stop])
        largest = blocks.abs().amax(1, keepdim=True)
        share = blocks / torch.where(largest == 0, 1, largest)
        below = torch.bucketize(share, code, out_int32=True, right=True).sub_(1).clamp_(0, len(code) - 2)
        low, high = (code.index_select(0, (below + n).view(-1)).view_as(share) for n in (0, 1))
        apart, above = high.sub_(low), share.sub_(low)
        below += torch.rand(share.shape, device=value.device, generator=generator).mul_(apart) < above
        if second:
            below.masked_fill_((below == 0) & (blocks > 0), 1)
        codes[start:stop] = below.view(-1)[: stop - start]
        scales[start // BLOCK : -(-stop // BLOCK)] = largest.view(-1)
    return codes.view(value.shape), scales


def decoded(codes: Tensor, scales: Tensor, *, second: bool) -> Tensor:
    """What was encoded, in float32."""
    code, line = _code(second, codes.device), codes.reshape(-1)
    value = torch.empty_like(line, dtype=torch.float32)
    for start in range(0, line.numel(), CODED_AT_ONCE):
        stop = min(start + CODED_AT_ONCE, line.numel())
        blocks = _blocks(code.index_select(0, line[start:stop].int()))
        blocks *= scales[start // BLOCK : -(-stop // BLOCK), None]
        value[start:stop] = blocks.view(-1)[: stop - start]
    return value.view(codes.shape)


def _blocks(line: Tensor) -> Tensor:
    """[blocks, 256], the last one filled up with 0."""
    return pad(line, (0, -line.numel() % BLOCK)).view(-1, BLOCK)


@cache
def _code(second: bool, device: torch.device) -> Tensor:
    """The numbers that codes stand for, in order: from 0 to 1, or from -1 to 1 with 0 in the middle."""
    steps = _steps(8 if second else 7)
    nothing = torch.zeros(1, dtype=torch.float64)
    both = [nothing, steps.square()] if second else [-steps.flip(0), nothing, steps]
    return torch.cat(both).float().to(device)


def _steps(powers: int) -> Tensor:
    """Numbers above 0 up to 1, by so many powers of ten: in each twice as many as in the one below it, evenly laid.

    As the paper's dynamic tree has them: the zeros that a code begins with say which power, its other bits where in it.
    """
    even = [torch.linspace(0.1, 1, 2**bits + 1, dtype=torch.float64)[1:] for bits in range(powers)]
    return torch.cat([10.0 ** (bits + 1 - powers) * numbers for bits, numbers in enumerate(even)])
