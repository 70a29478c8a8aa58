"""`columns:` of a source: its own names for what a format reads, or templates that put several columns together."""

from collections.abc import Mapping
from typing import Any

from jinja2 import TemplateError, meta

from fulltune.base.errors import RecipeError
from fulltune.data.example import Row, RowFault
from fulltune.data.sandbox import Excess, compiled

UNRENDERED = (TemplateError, Excess, TypeError, ValueError, ZeroDivisionError, OverflowError)
"""What a template raises that fails on a row."""


class Columns:
    """`{"prompt": "question", "completion": "{{ reasoning }} {{ answer }}"}`: what is not named is not read."""

    def __init__(self, asked: Mapping[str, str], where: str) -> None:
        """RecipeError if a template does not parse; `where` is the field that holds them."""
        self.asked = frozenset(asked)
        """What a format reads of them."""
        self._named = {name: text for name, text in asked.items() if not _is_template(text)}
        texts = {name: text for name, text in asked.items() if _is_template(text)}
        self._templates = {name: parsed(text, f"{where}.{name}") for name, text in texts.items()}
        inside = {name for key, text in texts.items() for name in variables(self._templates[key], text)}
        self.read = frozenset({*self._named.values(), *inside})
        """The source's columns that are read."""

    def __call__(self, row: Row) -> Row:
        """The row under the names that formats know; RowFault if it lacks a column."""
        if missing := sorted(self.read - row.keys()):
            has = ", ".join(map(repr, row)) or "no keys"
            raise RowFault("missing_field", f"there is no `{missing[0]}`, which `columns` names", f"the row has {has}")
        made = {name: row[column] for name, column in self._named.items()}
        return made | {name: self._rendered(name, row) for name in self._templates}

    def _rendered(self, name: str, row: Row) -> str:
        try:
            return str(self._templates[name].render(**row))
        except UNRENDERED as fault:
            raise RowFault("columns", f"the template of `{name}` fails: {fault}", "mend it, or the row") from fault


def _is_template(text: str) -> bool:
    return "{{" in text or "{%" in text


def parsed(text: str, where: str) -> Any:
    """The template of a text; RecipeError that names `where` if there is none."""
    try:
        return compiled(text)
    except TemplateError as fault:
        raise RecipeError(
            f"the template does not parse: {fault.message}", where=where, mend="mend its syntax"
        ) from fault


def variables(template: Any, text: str) -> set[str]:
    """Names that a template takes from the row."""
    return meta.find_undeclared_variables(template.environment.parse(text)) - set(template.globals)
