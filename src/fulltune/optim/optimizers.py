"""OPTIMIZERS: groups -> a torch optimizer. A new optimizer is one function and one line."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from fulltune.base.errors import RecipeError
from fulltune.base.table import Table
from fulltune.optim.groups import Group
from fulltune.optim.lion import Lion
from fulltune.optim.low_rank import Apollo, GaLore
from fulltune.optim.muon import MuonAdamW
from fulltune.optim.pulls import ScheduleFreeAverage
from fulltune.optim.schedule_free import ScheduleFreeAdamW

OptimizerMaker = Callable[..., Optimizer]
"""`(groups, *, lr, weight_decay, **options) -> Optimizer`, one torch group for each Group, in order."""


def adafactor(groups: Sequence[Group], *, lr: float, weight_decay: float, **options: Any) -> Optimizer:
    """Adafactor (Shazeer and Stern 2018, arXiv 1804.04235), torch's: of a matrix's second moment rows and columns.

    `lr` is relative: at update t a weight tensor moves by `min(lr, 1 / sqrt(t))` times its own root mean square, and by
    less where its gradients are in doubt. So 1e-3 moves weights of 0.02 about as AdamW does at 2e-5; the paper takes
    1e-2. It has no first moment. Options: `beta2_decay` (the second moment forgets as t to this power), `eps` (the
    smallest root of the second moment, and the smallest root mean square of a weight that steps are relative to), `d`
    (the largest root mean square of an update, before the rate).
    """
    return torch.optim.Adafactor(torch_groups(groups, weight_decay), lr=lr, **options)


def adamw(groups: Sequence[Group], *, lr: float, weight_decay: float, **options: Any) -> Optimizer:
    """AdamW (Loshchilov and Hutter 2019, arXiv 1711.05101): moments in float32, decoupled decay, fused kernel."""
    return torch.optim.AdamW(torch_groups(groups, weight_decay), lr=lr, **{"fused": True, **options})


def apollo(
    groups: Sequence[Group], *, lr: float, weight_decay: float, rank: int = 256, scale: float = 1.0, **options: Any
) -> Optimizer:
    """APOLLO (Zhu et al. 2024, arXiv 2412.05270) for matrices inside of blocks, AdamW for all else."""
    return _low_rank(Apollo, groups, weight_decay, lr=lr, rank=rank, scale=scale, whole=False, **options)


def apollo_mini(
    groups: Sequence[Group], *, lr: float, weight_decay: float, scale: float = 128.0, **options: Any
) -> Optimizer:
    """APOLLO-Mini (the same paper): of rank 1, and one factor for a whole matrix."""
    return _low_rank(Apollo, groups, weight_decay, lr=lr, rank=1, scale=scale, whole=True, **options)


def galore(
    groups: Sequence[Group], *, lr: float, weight_decay: float, rank: int = 128, scale: float = 0.25, **options: Any
) -> Optimizer:
    """GaLore (Zhao et al. 2024, arXiv 2403.03507) for matrices inside of blocks, AdamW for all else."""
    return _low_rank(GaLore, groups, weight_decay, lr=lr, rank=rank, scale=scale, **options)


def _low_rank(kind: Callable[..., Optimizer], groups: Sequence[Group], weight_decay: float, **given: Any) -> Optimizer:
    named: dict[nn.Parameter, str] = {
        p: n for g in groups for n, p in zip(g.names, g.parameters, strict=True) if n in g.matrices
    }
    return kind(torch_groups(groups, weight_decay), matrices=named, **given)


def muon(groups: Sequence[Group], *, lr: float, weight_decay: float, **options: Any) -> Optimizer:
    """Muon (Jordan et al. 2024) for matrices inside of blocks, AdamW for all else, at one rate (`optim/muon.py`)."""
    matrices = [p for g in groups for n, p in zip(g.names, g.parameters, strict=True) if n in g.matrices]
    return MuonAdamW(torch_groups(groups, weight_decay), matrices=matrices, lr=lr, **options)


def sgd(groups: Sequence[Group], *, lr: float, weight_decay: float, **options: Any) -> Optimizer:
    """Stochastic gradient descent: no state unless `momentum` is given; its decay is the coupled one of torch."""
    return torch.optim.SGD(torch_groups(groups, weight_decay), lr=lr, **{"fused": True, **options})


def lion(groups: Sequence[Group], *, lr: float, weight_decay: float, **options: Any) -> Optimizer:
    """Lion (Chen et al. 2023, arXiv 2302.06675): one moment; wants a third to a tenth of AdamW's rate."""
    return Lion(torch_groups(groups, weight_decay), lr=lr, **options)


def schedule_free_adamw(
    groups: Sequence[Group],
    *,
    lr: float,
    weight_decay: float,
    average: ScheduleFreeAverage | None = None,
    **options: Any,
) -> Optimizer:
    """Schedule-free AdamW (Defazio et al. 2024, arXiv 2405.15682): a constant rate, and the model is an average.

    `average` keeps that average; the recipe does not give it.
    """
    kept = ScheduleFreeAverage() if average is None else average
    return ScheduleFreeAdamW(groups, torch_groups(groups, weight_decay), average=kept, lr=lr, **options)


def torch_groups(groups: Sequence[Group], weight_decay: float) -> list[dict[str, Any]]:
    """Groups in the shape that torch optimizers take."""
    return [{"params": list(g.parameters), "weight_decay": weight_decay * g.decay} for g in groups]


OPTIMIZERS: Table[OptimizerMaker] = Table(
    "optimizer",
    {
        "adafactor": adafactor,
        "adamw": adamw,
        "apollo": apollo,
        "apollo_mini": apollo_mini,
        "galore": galore,
        "lion": lion,
        "muon": muon,
        "schedule_free_adamw": schedule_free_adamw,
        "sgd": sgd,
    },
)


def make(name: str, groups: Sequence[Group], *, lr: float, weight_decay: float, options: dict[str, Any]) -> Optimizer:
    """An entry of OPTIMIZERS with the recipe's options; RecipeError if it does not take one of them."""
    try:
        return OPTIMIZERS[name](groups, lr=lr, weight_decay=weight_decay, **options)
    except (TypeError, ValueError, RuntimeError, IndexError, AssertionError) as fault:  # what torch's own raise
        raise RecipeError(
            f"optimizer {name!r}: {fault}", where="optim.options", mend="see the optimizer's own parameters"
        ) from fault
