"""Full-parameter fine-tuning of language models: prepare, inspect, plan, train, evaluate, export.

The stages are loaded when first used, so that importing the package costs nothing.
"""

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

from fulltune.base.collector import paused
from fulltune.base.version import __version__

if TYPE_CHECKING:
    from fulltune.stages import (
        blend,
        blind,
        check,
        compare,
        count_choices,
        dry_run,
        evaluate,
        examine,
        export,
        inspect,
        judge,
        plan,
        prepare,
        report,
        sweep,
        train,
    )

# Read when huggingface_hub is first imported, so they stand here. Nothing is told to anybody about runs, and weights of
# a hub id are those that lie there, not those that a converter makes of pickles.
for _name in ("HF_HUB_DISABLE_TELEMETRY", "DO_NOT_TRACK", "DISABLE_SAFETENSORS_CONVERSION"):
    os.environ.setdefault(_name, "1")

__all__ = [
    "__version__",
    "blend",
    "blind",
    "check",
    "compare",
    "count_choices",
    "dry_run",
    "evaluate",
    "examine",
    "export",
    "inspect",
    "judge",
    "plan",
    "prepare",
    "report",
    "sweep",
    "train",
]


_HOMES = {
    "check": "fulltune.preparing",
    "compare": "fulltune.account",
    "inspect": "fulltune.preparing",
    "prepare": "fulltune.preparing",
    "report": "fulltune.account",
}
"""Where a stage is written that needs nothing of the others; to load all of them takes seconds."""


def __getattr__(name: str) -> Any:
    if name.startswith("_") or name not in __all__:
        raise AttributeError(f"module 'fulltune' has no attribute {name!r}")
    with paused():
        module = import_module(_HOMES.get(name, "fulltune.stages"))
    return vars(module)[name]
