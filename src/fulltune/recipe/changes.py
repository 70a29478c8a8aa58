"""What changed between the recipe that a run began with and the one it is to go on with, and what that takes."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from fulltune.base.errors import CheckpointError, RecipeError
from fulltune.recipe.schema import Recipe
from fulltune.recipe.write import as_values

HONOURED = (
    "train.epochs",
    "train.steps",
    "train.micro_examples",
    "train.micro_tokens",
    "train.compile",
    "train.max_skipped",
    "train.max_rollbacks",
    "train.on_nonfinite",
    "train.on_spike",
    "train.spike_window",
    "train.spike_score",
    "memory",
    "optim.in_backward",
    "engine",
    "evaluate",
    "checkpoint",
    "export",
    "data.processes",
)
"""Fields, or whole sections, that a run may change when it goes on: what was done stays right, and what comes follows
the new value. Everything else would make one run of two, and has to be accepted by name.
"""
DATA = ("data", "tokenizer", "template")
"""What is accepted by these names besides recipe fields: rows, tokenizer or chat template that are others now."""


@dataclass(frozen=True, slots=True)
class Change:
    """Something that is no longer as it was when the run began."""

    field: str
    before: Any
    now: Any
    is_setting: bool = True
    """Whether it stands in the recipe; if not, its first word says what it is of: data, tokenizer or template."""

    def __str__(self) -> str:
        return f"{self.field}: {self.before!r} -> {self.now!r}"


def differences(before: Mapping[str, Any], now: Mapping[str, Any], *, settings: bool = True) -> tuple[Change, ...]:
    """Leaves of two nested mappings that differ, by their dotted names.

    `settings`: they are recipes. A field that the older one lacks, since its version did not know it, had the default.
    """
    old, new = dict(leaves(before)), dict(leaves(now))
    if settings:
        old = {key: value for key, value in _defaults().items() if key in new} | old
    return tuple(
        Change(key, old.get(key), new.get(key), settings)
        for key in sorted(old.keys() | new.keys())
        if old.get(key) != new.get(key)
    )


@cache
def _defaults() -> Mapping[str, Any]:
    """What a recipe says that names a model and data, and no more."""
    return dict(leaves(as_values(Recipe.model_validate({"model": {"path": "-"}, "data": {"train": "-"}}))))


def require_accepted(changes: Sequence[Change], accepted: Collection[str], *, folder: str) -> None:
    """CheckpointError that shows the changes which need to be accepted and are not."""
    refused = [
        change for change in changes if not covers(HONOURED, change.field) and not covers(accepted, change.field)
    ]
    if refused:
        fields = dict.fromkeys(
            change.field if change.is_setting else change.field.partition(".")[0] for change in refused
        )
        names = " ".join(f"--accept-change {field}" for field in fields)
        raise CheckpointError(
            f"the folder was trained by another recipe: {'; '.join(map(str, refused))}",
            where=folder,
            mend=f"--fresh makes a new folder; {names} goes on with this one, and records it",
        )


def require_known(accepted: Collection[str], recipe: Mapping[str, Any]) -> None:
    """RecipeError for a name to be accepted that is none."""
    known = {name for name, _ in leaves(recipe)}
    for name in accepted:
        if name not in DATA and not any(covers((name,), field) for field in known):
            raise RecipeError(
                f"{name!r} is no field that could have changed",
                where="--accept-change",
                mend=f"a recipe field such as optim.lr, a section such as optim, or one of {', '.join(DATA)}",
            )


def covers(names: Collection[str], field: str) -> bool:
    """Whether a field, or a section that it lies in, is among the names."""
    return any(field == name or field.startswith(f"{name}.") for name in names)


def leaves(values: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted names and values of a nested mapping."""
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from leaves(value, f"{before}{key}.")
        else:
            yield f"{before}{key}", value
