"""Full-parameter fine-tuning of language models: prepare, inspect, plan, train, evaluate, export.

The stages are loaded when first used, so that importing the package costs nothing.
"""

from typing import TYPE_CHECKING, Any

from fulltune.base.version import __version__

if TYPE_CHECKING:
    from fulltune.stages import check, dry_run, evaluate, export, inspect, plan, prepare, train

__all__ = ["__version__", "check", "dry_run", "evaluate", "export", "inspect", "plan", "prepare", "train"]


def __getattr__(name: str) -> Any:
    if name.startswith("_") or name not in __all__:
        raise AttributeError(f"module 'fulltune' has no attribute {name!r}")
    from fulltune import stages

    return vars(stages)[name]
