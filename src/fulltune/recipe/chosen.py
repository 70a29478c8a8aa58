"""A recipe file with other values in some fields, its comments kept, so that it may lie in another folder."""

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from fulltune.base.errors import RecipeError
from fulltune.base.secrets import masked
from fulltune.recipe.load import displace, load_recipe, root_paths
from fulltune.recipe.schema import Recipe
from fulltune.recipe.tree import Tree, override, parse
from fulltune.recipe.write import as_values, as_yaml


def rewritten(source: Path | None, changes: Mapping[str, Any], recipe: Recipe) -> str:
    """The text of a file that loads to `recipe`: `source` with `changes` by their dotted names, its paths absolute.

    Without a source, or where its comments cannot be kept, every field is written out. Secrets are masked.
    """
    text = None if source is None else _commented(source, changes)
    if text is not None and _values(text) == as_values(recipe):
        return masked(text)
    return as_yaml(recipe)


def _commented(source: Path, changes: Mapping[str, Any]) -> str | None:
    yaml = YAML(typ="rt", pure=True)
    yaml.preserve_quotes = True
    yaml.width = 1 << 16
    try:
        values = yaml.load(source.read_text(encoding="utf-8-sig"))
    except YAMLError:  # such as a date that is none, which our own reader takes for text
        return None
    if not isinstance(values, dict):
        return None
    root_paths(values, source.resolve().parent)
    displace(Tree(values, {}), changes)
    override(Tree(values, {}), changes, "sweep")
    out = io.StringIO()
    yaml.dump(values, out)
    return out.getvalue()


def _values(text: str) -> dict[str, Any] | None:
    """What a text loads to, from a folder where no relative path leads anywhere; None if it does not load."""
    try:
        return as_values(load_recipe(parse(text, "chosen").values))
    except RecipeError:
        return None
