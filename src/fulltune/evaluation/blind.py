"""Answers of two models side by side on a page that does not say which is whose; the key lies in a file of its own."""

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

from pydantic import TypeAdapter, ValidationError

from fulltune.base.errors import DataError, RecipeError
from fulltune.base.files import read_record, write_record, write_whole
from fulltune.base.visible import harmless
from fulltune.evaluation.pairs import Pair
from fulltune.evaluation.wins import Verdict

_MARK = "<!-- written by fulltune evaluate -->"
"""In the first line of every page. A file without it is somebody's own."""


Whose = Literal["one", "other"]
SIDES: tuple[Whose, ...] = ("one", "other")


@dataclass(frozen=True, slots=True, kw_only=True)
class Key:
    """Which model is on which side of a page. Whoever chooses must not see it."""

    page: str
    """The page's id, which its choices name."""
    one: str
    other: str
    left: tuple[Whose, ...]
    """For each item whose answer is on the left."""
    same: int
    """Prompts that both answered alike: ties that nobody was asked about."""


@dataclass(frozen=True, slots=True)
class Choices:
    """What a reader chose: by the number of the item `left`, `right` or `tie`."""

    page: str
    choices: dict[int, Literal["left", "right", "tie"]]


def key_of(page: Path) -> Path:
    """Where the key of a page lies."""
    return page.with_suffix(".key.json")


def require_place(page: Path) -> None:
    """RecipeError if a page may not be written there, asked before any work is done.

    A page that is there already stays: choices for it could not be counted any more.
    """
    for path in (page, key_of(page)):
        if path.exists():
            raise RecipeError("this exists already", where=str(path), mend="name another page; nothing is overwritten")
    if page.suffix not in (".html", ".htm"):
        raise RecipeError("a page ends with .html", where=str(page), mend="name it so")
    if not page.parent.is_dir():
        raise RecipeError("there is no such folder", where=str(page.parent), mend="make it, or name another")


def write_blind(page: Path, pairs: Sequence[Pair], *, one: str, other: str) -> Key:
    """Write a page, and beside it its key. Sides are drawn from the system's own randomness, and so is the order.

    The key is written first: a page without one could never be counted. DataError if no two answers differ.
    """
    draw = secrets.SystemRandom()
    apart = [pair for pair in pairs if pair.one != pair.other]
    if not apart:
        raise DataError(
            f"both models gave the same answer to each of {len(pairs)} prompts",
            where=str(page),
            mend="ask more, or other questions",
        )
    order = draw.sample(apart, len(apart))
    left = tuple(draw.choice(SIDES) for _ in order)
    key = Key(page=secrets.token_hex(16), one=one, other=other, left=left, same=len(pairs) - len(apart))
    items = [_item(pair, side) for pair, side in zip(order, left, strict=True)]
    write_record(key_of(page), key)
    write_whole(page, _page({"page": key.page, "items": items}))
    return key


def _item(pair: Pair, left: Whose) -> dict[str, str]:
    sides = (pair.one, pair.other) if left == "one" else (pair.other, pair.one)
    return {"prompt": pair.prompt, "left": sides[0], "right": sides[1]}


def _page(values: Mapping[str, Any]) -> str:
    shell = (files("fulltune.evaluation") / "blind.html").read_text(encoding="utf-8")
    return shell.replace("@MARK@", _MARK, 1).replace("@DATA@", harmless(values), 1)


def verdicts(key_file: Path, choices_file: Path) -> tuple[Key, list[Verdict]]:
    """The key, and what each choice means; DataError if they are of another page, or no choices."""
    key = read_record(key_file, Key)
    try:
        found = TypeAdapter(Choices).validate_json(choices_file.read_bytes())
    except OSError as fault:
        raise DataError(f"cannot be read: {fault.strerror}", where=str(choices_file), mend="check the path") from fault
    except ValidationError as fault:
        raise DataError(
            f"these are no choices: {fault.errors()[0]['msg']}", where=str(choices_file), mend="save them on the page"
        ) from fault
    if found.page != key.page:
        raise DataError(
            "these are the choices of another page",
            where=str(choices_file),
            mend=f"{key_file} is the key of the page {key.page[:8]}",
        )
    if odd := [item for item in found.choices if not 0 <= item < len(key.left)]:
        raise DataError(f"the page has no item {odd[0]}", where=str(choices_file), mend="save the choices once more")
    made: list[Verdict] = [_meant(key.left[item], side) for item, side in sorted(found.choices.items())]
    made += ["tie"] * key.same
    return key, made


def _meant(left: Whose, chosen: str) -> Verdict:
    if chosen == "tie":
        return "tie"
    return "one" if (chosen == "left") == (left == "one") else "other"
