"""Suites that a command names without a recipe: by files, by a known description and its data, or as mappings."""

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fulltune.recipe import suites
from fulltune.recipe.kinds import Section, can_be_held
from fulltune.recipe.load import checked
from fulltune.recipe.schema import EvaluateSection
from fulltune.recipe.suites import SuiteSection
from fulltune.recipe.tree import Tree

_KNOWN = re.compile(r"([\w.]+(?::\w+)?)=(.+)")


class _Alone(Section):
    """A recipe of which there is only this."""

    evaluate: EvaluateSection


def load_suites(asked: Sequence[Any], origin: str) -> tuple[SuiteSection, ...]:
    """Suites by their files, as `NAME=DATA` or as mappings; RecipeError with every fault. Paths count from here.

    `origin`: what faults that are in no file are said to be of.
    """
    tree = Tree({"evaluate": {"suites": [_entry(entry) for entry in asked]}}, {(): origin})
    suites.root_all(tree.values, Path.cwd())
    suites.include(tree)
    return checked(tree, _Alone).evaluate.suites


def _entry(asked: Any) -> Any:
    """`gsm8k=test.jsonl` as a mapping, unless a file has that name."""
    if not isinstance(asked, str | os.PathLike):
        return asked
    text = os.fspath(asked)
    named = _KNOWN.fullmatch(text)
    if named is None or (can_be_held(text) and Path(text).exists()):
        return text
    return {"use": named[1], "data": named[2]}
