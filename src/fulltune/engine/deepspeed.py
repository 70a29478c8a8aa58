"""The library DeepSpeed: asked for only where its engine is, and begun so that its processes are ours."""

import contextlib
import copy
import importlib.util
import io
import math
import os
import sys
import warnings
from collections.abc import Mapping
from datetime import timedelta
from typing import Any

import torch.distributed as dist
from torch import nn
from torch.optim import Optimizer

from fulltune.base.errors import RecipeError
from fulltune.base.log import LOGGER
from fulltune.engine.launch import Meeting


def require_library() -> None:
    """RecipeError where DeepSpeed is not installed."""
    if importlib.util.find_spec("deepspeed") is None:
        raise RecipeError(
            "ZeRO is DeepSpeed's, which is not installed",
            where="engine.name",
            mend="pip install 'fulltune[deepspeed]', or engine.name=fsdp2, which divides as ZeRO 3 does",
        )


def library() -> Any:
    """The package `deepspeed`."""
    with contextlib.redirect_stdout(sys.stderr):  # results of ours go there
        return importlib.import_module("deepspeed")


def begun(entry: nn.Module, optimizer: Optimizer, configuration: Mapping[str, Any], meeting: Meeting) -> Any:
    """DeepSpeed's engine around a module, over the processes that have met already."""
    device, patience = meeting.world.device, meeting.crew.patience
    if device == "cpu":
        os.environ.setdefault("DS_ACCELERATOR", "cpu")  # else it warns that it found nothing better
    # It calls collectives by names that torch is about to change; at every one of them torch would say so.
    warnings.filterwarnings("ignore", "`torch.distributed", FutureWarning)
    deepspeed, said = library(), io.StringIO()
    with contextlib.redirect_stdout(said):
        for handler in deepspeed.utils.logger.handlers:
            handler.setStream(sys.stderr)
        # Between processes of one CPU it would exchange through shared memory, by a kernel that takes a compiler and a
        # minute to make, and in which the others wait for ever for one that ended. gloo notices.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        os.environ.setdefault("LOCAL_RANK", device.partition(":")[2] or "0")  # which it reads, and srun does not set
        # It would make a group of its own, in which one waits half an hour for another that hangs.
        limit = None if math.isinf(patience) else timedelta(seconds=patience)
        deepspeed.utils.groups._WORLD_GROUP = dist.new_group(timeout=limit)
        engine, *_ = deepspeed.initialize(
            model=entry, optimizer=optimizer, config=copy.deepcopy(dict(configuration)), dist_init_required=False
        )
    LOGGER.debug(said.getvalue())
    return engine
