"""What makes tokens of rows for a model, and what was made: as little is loaded for it as there is to do."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from fulltune.base.errors import DataError, RecipeError
from fulltune.base.records import DataFacts
from fulltune.data.choose import SPLITS
from fulltune.data.prepare import Kit
from fulltune.data.store import Store
from fulltune.data.template import Template
from fulltune.model.folder import load_tokenizer, stop_ids
from fulltune.recipe.schema import ModelSection


def kit_of(section: ModelSection) -> Kit:
    """What makes tokens of rows for a model."""
    tokenizer = load_tokenizer(section)
    return Kit(tokenizer, template(section, tokenizer), tuple(sorted(stop_ids(section))))


def for_others(kit: Kit, section: ModelSection) -> Callable[[], Kit]:
    """How other processes come by the kit. Code that a model brings along is no module that they could import."""
    return partial(kit_of, section) if section.trust_remote_code else kit.itself


def template(section: ModelSection, tokenizer: Any) -> Template:
    """The chat template that the recipe names, or the tokenizer's own."""
    if section.chat_template is None:
        return Template(tokenizer, None, f"the chat template of {section.path}")
    path = Path(section.chat_template)
    try:
        # A byte order mark is no part of the text: it would stand before the first token of every example.
        source = path.read_text(encoding="utf-8-sig")
    except OSError as fault:
        raise RecipeError(
            f"the chat template cannot be read: {fault.strerror}", where=str(path), mend="check the path"
        ) from fault
    except UnicodeDecodeError as fault:
        raise DataError("the chat template is not UTF-8", where=str(path), mend="save it as UTF-8") from fault
    if "\0" in source:
        raise DataError("the chat template has null characters", where=str(path), mend="save it as UTF-8, not UTF-16")
    return Template(tokenizer, source, str(path))


@dataclass(frozen=True, slots=True)
class Prepared:
    """The data stage's work: its card, and the splits that hold anything."""

    facts: DataFacts
    stores: Mapping[str, Store]
    depends: Mapping[str, Any]
    """What the stores depend on, each with its fingerprint."""


def stores(folder: Path, facts: DataFacts) -> dict[str, Store]:
    """The prepared splits that hold anything."""
    return {
        split: Store(folder / split, [source.files for source in facts.sources[split]])
        for split in SPLITS
        if facts.splits[split].examples
    }
