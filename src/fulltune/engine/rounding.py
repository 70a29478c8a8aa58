"""Stochastic rounding: float32 to bfloat16 so that what is too small for one step is not lost over many."""

import torch
from torch import Tensor

_LARGEST = torch.finfo(torch.bfloat16).max
_SALT = 0x5EED0B16
"""Keeps the draws of rounding apart from those of dropout, which begin at the same seed."""


def stochastic(value: Tensor, generator: torch.Generator) -> Tensor:
    """float32 -> bfloat16: one of the two neighbours, each as likely as the value is near to it.

    So the expected value is exact (Zamirai et al. 2020, arXiv 2010.06192). A bfloat16 is the upper half of a float32:
    16 random bits are added to the lower half, and what carries over decides. What bfloat16 holds exactly stays as it
    is; finite values stay finite; NaN and infinities are rounded as usual.
    """
    bits = torch.randint(1 << 16, value.shape, dtype=torch.int32, device=value.device, generator=generator)
    bits += value.clamp(-_LARGEST, _LARGEST).view(torch.int32)  # beyond the largest a carry would make infinities
    near = bits.bitwise_and_(-1 << 16).view(torch.float32).to(torch.bfloat16)
    return torch.where(torch.isfinite(value), near, value.to(torch.bfloat16))


def generator_of_this_update(device: torch.device) -> torch.Generator:
    """Begins anew at the seed that `training.step.reseed` set for this update.

    Not at the state of torch's generator, which has moved on by then, with dropout and with the micro-batches' layout:
    an update is rounded the same way however it is cut. The seed is this rank's own: ranks that hold the same weights
    must all take the first one's.
    """
    generator = torch.Generator(device)
    generator.manual_seed(torch.initial_seed() ^ _SALT)
    return generator
