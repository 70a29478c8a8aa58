"""Writes docs/recipe.md, the reference of every recipe field, from the schema. `make docs` runs it."""

from pathlib import Path

from pydantic import BaseModel

from fulltune.recipe.data import Augmentation, ReplaySection, Source
from fulltune.recipe.foreign import FOREIGN
from fulltune.recipe.gate import BestBy, GateSection, RetentionLimits
from fulltune.recipe.optim import GroupSection, PullSection
from fulltune.recipe.schema import Recipe
from fulltune.recipe.suites import MetricUse, SuiteSection
from fulltune.recipe.write import inline

TARGET = Path(__file__).resolve().parent.parent / "docs/recipe.md"

HEAD = """\
# Every field of a recipe

Generated from the schema by `make docs`; do not edit. `fulltune init` writes the same as a commented recipe, and
`fulltune schema` prints it for editors. Relative paths count from the recipe's folder. Cadences are written `50`
(updates), `0.5 epochs` or `10 min`.
"""


def page() -> str:
    """The whole page."""
    lines = [HEAD]
    for section, field in Recipe.model_fields.items():
        assert isinstance(field.annotation, type)
        assert issubclass(field.annotation, BaseModel)
        lines += _table(f"`{section}`", field.annotation)
        if section == "data":
            splits = ("train", "replay", "heldout", "test", "retention")
            lines += _table(f"a source of {', '.join(f'`data.{split}`' for split in splits)}", Source)
            lines += _table("`data.replay`", ReplaySection)
            lines += _table("an entry of a source's `augment`", Augmentation)
        if section == "evaluate":
            lines += _table("a suite of `evaluate.suites`, or a suite file", SuiteSection)
            lines += _table("an entry of a suite's `metrics`", MetricUse)
            lines += _table("`evaluate.gate`", GateSection)
        if section == "checkpoint":
            lines += _table("`checkpoint.best_by`", BestBy)
            lines += _table("`retention` of `checkpoint.best_by` and `evaluate.gate`", RetentionLimits)
        if section == "optim":
            lines += _table("an entry of `optim.groups`", GroupSection)
            lines += _table("an entry of `optim.pulls`", PullSection)
    lines += ["## Names that other tools use", "", "| elsewhere | here |", "|---|---|"]
    lines += [f"| `{name}` | {answer} |" for name, answer in sorted(FOREIGN.items())]
    return "\n".join(lines) + "\n"


def _table(title: str, section: type[BaseModel]) -> list[str]:
    rows = []
    for name, field in section.model_fields.items():
        default = (
            "**required**"
            if field.is_required()
            else f"`{inline(field.get_default(call_default_factory=True, validated_data={}))}`"
        )
        about = " ".join((field.description or "").split())  # a row of a table is one line
        rows.append(f"| `{name}` | {default} | {about} |")
    first = (section.__doc__ or "").splitlines()[0]
    return [f"## {title}", "", first, "", "| field | default | |", "|---|---|---|", *rows, ""]


if __name__ == "__main__":
    TARGET.write_text(page(), encoding="utf-8")
