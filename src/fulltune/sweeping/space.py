"""The space of a sweep: `FIELD=LOW:HIGH:log` and `FIELD=A,B,C` as axes, each value allowed by the recipe's schema."""

import itertools
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from fulltune.base.errors import Fault, RecipeError
from fulltune.base.sweeps import Axis
from fulltune.recipe.load import Asked, load_recipe
from fulltune.recipe.schema import Recipe
from fulltune.recipe.tree import parse

_NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"
_RANGE = re.compile(rf"({_NUMBER}):({_NUMBER})((?::[a-z]+)*)")
_DIGITS = 3
"""Of a value between two ends: nobody can tell 1.26e-5 from 1.2635598e-5."""
_JUDGES = ("data.heldout", "data.test", "data.retention", "data.group_by", "checkpoint.best_by", "evaluate.suites")
"""Fields that decide what a score is of: trials that differ in them cannot be compared."""
_WRITE = "write FIELD=LOW:HIGH, FIELD=LOW:HIGH:log or FIELD=A,B,C, such as optim.lr=1e-6:1e-4:log"


def axes_of(texts: Sequence[str], asked: Asked, overrides: Mapping[str, Any]) -> tuple[Axis, ...]:
    """What is to be varied. RecipeError with every fault: of a text, of a field, of a value that it may not have."""
    load_recipe(asked, overrides)  # its own faults are no faults of the space
    faults: list[Fault] = []
    made: list[Axis] = []
    for text in texts:
        try:
            made.append(_axis(text, asked, overrides))
        except RecipeError as fault:
            faults += fault.faults
    names = [axis.field for axis in made]
    for name in dict.fromkeys(name for name in names if names.count(name) > 1):
        faults.append(Fault(f"`{name}` is varied twice", "--over", "give all of its values in one"))
    if not texts:
        faults.append(Fault("there is nothing to vary", "--over", _WRITE))
    if faults:
        raise RecipeError(faults=faults)
    for values in corners(made):  # together: train.epochs and train.steps, say, exclude each other
        _allowed("--over", asked, {**overrides, **values})
    return tuple(made)


def corners(axes: Sequence[Axis]) -> Iterator[dict[str, Any]]:
    """Values of all axes at once, so few of them that each end and each choice is among them."""
    columns = [axis.choices if axis.kind == "choice" else (axis.low, axis.high) for axis in axes]
    for at in range(max(map(len, columns))):
        yield {axis.field: proper(axis, column[at % len(column)]) for axis, column in zip(axes, columns, strict=True)}


def proper(axis: Axis, value: Any) -> Any:
    """A value of an axis as the recipe has it: whole, or of few digits and between the ends."""
    if axis.kind == "choice":
        return value
    if axis.kind == "int":
        return min(max(round(value), int(axis.low)), int(axis.high))
    return min(max(float(f"{value:.{_DIGITS}g}"), axis.low), axis.high)


def at(axis: Axis, share: float) -> Any:
    """The value of an axis at a share of its length, from 0 up to 1."""
    if axis.kind == "choice":
        return axis.choices[min(int(share * len(axis.choices)), len(axis.choices) - 1)]
    if axis.log:
        return proper(axis, math.exp(math.log(axis.low) + share * (math.log(axis.high) - math.log(axis.low))))
    return proper(axis, axis.low + share * (axis.high - axis.low))


def combinations(axes: Sequence[Axis]) -> int | None:
    """How many there are; None if any axis has values without end."""
    counts = [
        len(axis.choices) if axis.kind == "choice" else int(axis.high - axis.low) + 1 if axis.kind == "int" else None
        for axis in axes
    ]
    return None if None in counts else math.prod(count for count in counts if count is not None)


def every(axes: Sequence[Axis]) -> Iterator[dict[str, Any]]:
    """All combinations, of axes that have an end."""
    columns = [axis.choices if axis.kind == "choice" else range(int(axis.low), int(axis.high) + 1) for axis in axes]
    for values in itertools.product(*columns):
        yield dict(zip((axis.field for axis in axes), values, strict=True))


def _axis(text: str, asked: Asked, overrides: Mapping[str, Any]) -> Axis:
    field, equals, written = (part.strip() for part in text.partition("="))
    where = f"--over {text}"
    if not equals or "." not in field or not all(field.split(".")) or not written:
        raise RecipeError(f"`{text}` says neither field nor values", where=where, mend=_WRITE)
    if any(field == name or field.startswith(f"{name}.") for name in _JUDGES):
        raise RecipeError(
            f"trials with another `{field}` are judged by other data, and cannot be compared",
            where=where,
            mend=f"set it once for all: {field}=VALUE behind the recipe",
        )
    if field in overrides:
        raise RecipeError(f"`{field}` is both set and varied", where=where, mend="leave one of them out")
    if (found := _RANGE.fullmatch(written)) is None:
        axis = Axis(field=field, kind="choice", choices=_choices(written, where))
        for value in axis.choices:
            _allowed(where, asked, {**overrides, field: value})
        return axis
    return _range(field, where, found, asked, overrides)


def _choices(written: str, where: str) -> tuple[Any, ...]:
    """Values as YAML has them in a list, so that `[...]`, `{...}` and quoted texts may hold commas."""
    tree = parse(f"values: [{written}]\n", where)
    if tree.faults:
        raise RecipeError(f"`{written}` is no list of values", where=where, mend=_WRITE)
    values = tuple(tree.values["values"])
    if len(values) < 2 or any(values.count(value) > 1 for value in values):
        raise RecipeError(
            f"`{written}`: {'a value stands there twice' if len(values) > 1 else 'one value is no choice'}",
            where=where,
            mend="give at least two that differ, or set the field behind the recipe",
        )
    return values


def _range(field: str, where: str, found: re.Match[str], asked: Asked, overrides: Mapping[str, Any]) -> Axis:
    low, high = float(found[1]), float(found[2])
    ways = found[3].split(":")[1:]
    if not set(ways) <= {"log", "int"}:
        raise RecipeError(f"`{':'.join(ways)}` is no way to go from one end to the other", where=where, mend=_WRITE)
    if not low < high:
        raise RecipeError(f"{found[1]} is not below {found[2]}", where=where, mend="write the smaller end first")
    if "log" in ways and low <= 0:
        raise RecipeError(f"a logarithm needs values above 0, and {found[1]} is none", where=where, mend=_WRITE)
    whole = low.is_integer() and high.is_integer()
    if "int" in ways and not whole:
        raise RecipeError("the ends of whole numbers are whole", where=where, mend="write them without fractions")
    # The schema knows which fields have no fractions: one of them between the ends tells.
    between = low + (high - low) * 0.4142
    if "int" in ways or (whole and not _is_allowed(asked, {**overrides, field: between})):
        kind: Any = "int"
    else:
        kind = "float"
    axis = Axis(field=field, kind=kind, low=low, high=high, log="log" in ways)
    for value in (low, high, at(axis, 0.4142)):
        _allowed(where, asked, {**overrides, field: proper(axis, value)})
    return axis


def _is_allowed(asked: Asked, values: Mapping[str, Any]) -> bool:
    try:
        load_recipe(asked, values)
    except RecipeError:
        return False
    return True


def _allowed(where: str, asked: Asked, values: Mapping[str, Any]) -> Recipe:
    try:
        return load_recipe(asked, values)
    except RecipeError as fault:
        raise RecipeError(faults=[Fault(one.what, where, one.mend) for one in fault.faults]) from fault
