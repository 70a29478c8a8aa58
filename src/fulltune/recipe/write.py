"""Recipes going out: as resolved into a run folder, as a commented starter, as JSON Schema for editors."""

import io
import json
import textwrap
from functools import lru_cache
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from ruamel.yaml import YAML

from fulltune.base.secrets import masked_tree
from fulltune.recipe.schema import ACTS, EITHER_OR, Recipe


def as_values(recipe: Recipe) -> dict[str, Any]:
    """Every field with its value, so that a later version's other defaults change nothing; loads to an equal recipe."""
    values = recipe.model_dump(mode="json")
    train, optim = values["train"], values["optim"]
    for superseded, superseding in EITHER_OR:
        if train[superseding] is not None:
            del train[superseded]
    if train["on_spike"] == "off":
        del train["spike_window"], train["spike_score"]
    if optim["schedule"] == "constant":
        del optim["floor"]
    for name, engines in ACTS.items():
        if recipe.engine.name not in engines:
            del values["engine"][name]
    if not recipe.chooses:
        del values["checkpoint"]["best_by"]  # nobody asked for a held-out score, and none will be measured
    return values


def as_yaml(recipe: Recipe) -> str:
    """The resolved recipe as YAML 1.2, its secrets masked."""
    return _yaml(json.dumps(masked_tree(as_values(recipe))))


@lru_cache(maxsize=8)
def _yaml(values: str) -> str:
    """JSON as YAML; a run asks for its recipe three times, and writing YAML takes long."""
    out = io.StringIO()
    yaml = YAML(typ="safe", pure=True)
    yaml.default_flow_style = False
    yaml.sort_base_mapping_type_on_output = False  # type: ignore[assignment]
    yaml.dump(json.loads(values), out)
    return out.getvalue()


def schema() -> str:
    """JSON Schema of a recipe, for completion and checks in an editor."""
    return json.dumps(Recipe.model_json_schema(), indent=2)


_ASKED = {
    "model.path": "my-model",
    "data.train": "train.jsonl",
}
_SHOWN = {
    "data.heldout": 0.05,
    "data.max_length": 2048,
    "train.epochs": 3,
    "train.batch_examples": 32,
    "optim.lr": 2e-5,
}


def starter() -> str:
    """A recipe to begin with: what must be said and what is most often changed; every other field as a comment."""
    lines = [
        "# A fulltune recipe. Fields behind `#` stand at their defaults; remove the `#` to change one.",
        "# Then: fulltune train THIS_FILE",
    ]
    for section, field in Recipe.model_fields.items():
        assert isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel)
        fields = field.annotation.model_fields
        written = [_line(f"{section}.{name}", name, inner) for name, inner in fields.items()]
        live = any(not line.lstrip().startswith("# ") for _, line in written)
        lines += ["", f"{section}:" if live else f"# {section}:  # {_first_line(field.annotation.__doc__)}"]
        for comment, line in written:
            lines += [*comment, line]
    return "\n".join(lines) + "\n"


def _line(path: str, name: str, field: FieldInfo) -> tuple[list[str], str]:
    comment = textwrap.wrap(field.description or "", 100, initial_indent="  # ", subsequent_indent="  # ")
    if path in _ASKED or path in _SHOWN:
        return comment, f"  {name}: {inline({**_ASKED, **_SHOWN}[path])}"
    default = field.get_default(call_default_factory=True, validated_data={})
    return comment, f"  # {name}: {inline(default)}"


def inline(value: Any) -> str:
    """A default as it stands in YAML."""
    if isinstance(value, dict):
        return "{}"
    if isinstance(value, tuple):
        return f"[{', '.join(map(inline, value))}]"
    if value is None:
        return "null"
    return str(value).lower() if isinstance(value, bool) else str(value)


def _first_line(doc: str | None) -> str:
    return (doc or "").splitlines()[0]
