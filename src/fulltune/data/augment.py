"""AUGMENTS: a row that is trained on -> further rows that teach the same in another form.

A further row is a pure function of the row it was made from: the same in any process, whatever stands around it.
"""

import hashlib
import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from random import Random
from typing import Any

from fulltune.base.errors import Fault, RecipeError
from fulltune.base.table import Table
from fulltune.data.columns import UNRENDERED, parsed, variables
from fulltune.data.example import Row, RowFault
from fulltune.data.fields import optional_text, require, said
from fulltune.data.formats import READ
from fulltune.recipe.data import Source

Augment = Callable[..., Iterable[Row]]
"""`(row, random, **options)` gives further rows, the first as many as are asked for are taken; RowFault if it cannot.

The row has the names that its format reads. All chance must come from `random`, which is seeded by the row.
"""


def field_order(row: Row, random: Random) -> Iterator[Row]:  # noqa: ARG001 - an augment's shape
    """The input before the instruction, or of a pair of texts the second one first.

    Sound where the instruction does not point at the input ("the text below"), and where a pair means the same both
    ways (paraphrases, similarity), which is not so of premise and hypothesis. A row without input or pair gives none.
    """
    one, other = ("instruction", "input") if "instruction" in row else ("text", "text_pair")
    fine = one in row
    require(fine, "augment", "`field_order` finds neither `instruction` nor `text`", "leave it out for this source")
    first, second = optional_text(row, one), optional_text(row, other)
    if first != second and first and second:
        yield {**row, one: second, other: first}


def phrasings(row: Row, random: Random, *, column: str, phrasings: Sequence[str]) -> Iterator[Row]:
    """One column in the user's own words: Jinja templates over the row's columns, each at most once, in random order.

    `{column: instruction, phrasings: ["Please {{ instruction }}", "{{ instruction }} Be brief."]}`. What is written as
    the row has it already is left out.
    """
    here = row.get(column)
    if here is not None and not isinstance(here, str):
        raise RowFault("augment", f"`{column}` is {said(here)}, not a text", "name a column that holds texts")
    # Drawn by random(), whose numbers no version of Python changes; shuffle() may.
    for _, number in sorted((random.random(), number) for number in range(len(phrasings))):
        made = _phrased(row, phrasings[number], number + 1)
        if made != here:
            yield {**row, column: made}


@lru_cache
def _phrasing(text: str) -> tuple[Any, frozenset[str]]:
    """A template, and the columns that it takes."""
    template = parsed(text, "phrasings")
    return template, frozenset(variables(template, text))


def _phrased(row: Row, text: str, number: int) -> str:
    template, read = _phrasing(text)
    if missing := sorted(read - row.keys()):
        has = ", ".join(map(repr, row)) or "no keys"
        what = f"there is no `{missing[0]}`, which phrasing {number} names"
        raise RowFault("missing_field", what, f"the row has {has}")
    try:
        made = str(template.render(**row))
    except UNRENDERED as fault:
        raise RowFault("augment", f"phrasing {number} fails: {fault}", "mend it, or the row") from fault
    require(bool(made.strip()), "augment", f"phrasing {number} gives an empty text", "mend it, or the row")
    return made


AUGMENTS: Table[Augment] = Table("augmentation", {"field_order": field_order, "phrasings": phrasings})


@dataclass(frozen=True, slots=True)
class Augmenting:
    """One entry of a source's `augment`, ready to be used."""

    use: str
    augment: Augment
    copies: int
    options: Mapping[str, Any]


def augments(source: Source, where: str) -> tuple[Augmenting, ...]:
    """What a source's rows go through; RecipeError with all that is wrong, whatever the rows will be.

    `where` is the source's place in the recipe, such as `data.train.0`.
    """
    made: list[Augmenting] = []
    faults: list[Fault] = []
    for number, asked in enumerate(source.augment):
        here = f"{where}.augment.{number}"
        try:
            augment = AUGMENTS.find(asked.use, where=f"{here}.use")
        except RecipeError as fault:
            faults += fault.faults
            continue
        made.append(Augmenting(asked.use, augment, asked.copies, asked.options))
        unfit = list(_unfit(augment, asked.options, f"{here}.options"))
        faults += unfit or _CHECKS.get(asked.use, _unchecked)(made[-1], source.format, here)
    if faults:
        raise RecipeError(faults=faults)
    return tuple(made)


def augmented(row: Row, augments: Sequence[Augmenting], seed_key: str) -> list[Row]:
    """The further rows of one row, each made of the row as it is; RowFault says what cannot be done with it.

    `seed_key` stands for the row's content: with it the same rows come anywhere. Copy n is the same however many are
    asked for.
    """
    made: list[Row] = []
    for number, asked in enumerate(augments):
        digest = hashlib.sha256(f"{seed_key}/{number}".encode()).digest()
        random = Random(int.from_bytes(digest[:16]))  # noqa: S311 - the same rows for the same content
        try:
            taken = list(islice(asked.augment(dict(row), random, **asked.options), asked.copies))
        except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError) as fault:  # of one from outside
            raise RowFault("augment", f"{asked.use!r} fails: {fault!r}", "mend the row, or the augmentation") from fault
        for new in taken:
            fine = isinstance(new, Mapping)
            require(
                fine, "augment", f"{asked.use!r} gives {type(new).__name__}", "let it give rows: mappings of columns"
            )
        made += taken
    return made


def _unfit(augment: Augment, options: Mapping[str, Any], where: str) -> Iterator[Fault]:
    """Options that an augment does not take, or lacks."""
    try:
        taken = inspect.signature(augment)
    except (TypeError, ValueError):  # a callable without a signature; the first row will tell
        return
    try:
        taken.bind({}, Random(0), **options)  # noqa: S311 - asked, not called
    except TypeError as fault:
        known = [
            f"{p.name} (required)" if p.default is p.empty else p.name
            for p in list(taken.parameters.values())[2:]
            if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
        ]
        mend = f"its options: {', '.join(known)}" if known else "it has no options; leave them out"
        yield Fault(f"the options do not fit: {fault}", where, mend)


def _unchecked(asked: Augmenting, form: str, where: str) -> Iterator[Fault]:  # noqa: ARG001 - a check's shape
    """One from outside; only its rows can tell."""
    return iter(())


def _check_field_order(asked: Augmenting, form: str, where: str) -> Iterator[Fault]:
    if form in READ and form not in _TURNED:
        mend = f"leave it out, or name one of {', '.join(_TURNED)}"
        yield Fault(f"`field_order` does nothing for rows of {form!r}", f"{where}.use", mend)
    if asked.copies > 1:
        yield Fault("there is one other order of two fields", f"{where}.copies", "leave `copies` out")


def _check_phrasings(asked: Augmenting, form: str, where: str) -> Iterator[Fault]:
    column, texts = asked.options["column"], asked.options["phrasings"]
    # A format from outside may read anything.
    known = frozenset[str]().union(*READ.values()) if form == "auto" else READ.get(form)
    if not isinstance(column, str):
        yield Fault(f"{column!r} is no name of a column", f"{where}.options.column", "write one, such as instruction")
    elif known is not None and column not in known:
        of = "any format" if form == "auto" else repr(form)
        yield Fault(f"{column!r} is no column of {of}", f"{where}.options.column", f"one of {', '.join(sorted(known))}")
    fine = isinstance(texts, list) and texts and all(isinstance(text, str) and text.strip() for text in texts)
    if not fine or len(set(texts)) < len(texts):
        mend = 'write a list of templates, such as ["Please {{ instruction }}"]'
        yield Fault("`phrasings` is no list of different texts", f"{where}.options.phrasings", mend)
        return
    for number, text in enumerate(texts):
        try:
            parsed(text, f"{where}.options.phrasings.{number}")
        except RecipeError as fault:
            yield from fault.faults
    if asked.copies > len(texts):
        what = f"{asked.copies} copies of {len(texts)} phrasings: each is used once for a row"
        yield Fault(what, f"{where}.copies", f"copies: {len(texts)}, or more phrasings")


_TURNED = ("instruction", "classification")
_CHECKS: Mapping[str, Callable[[Augmenting, str, str], Iterator[Fault]]] = {
    "field_order": _check_field_order,
    "phrasings": _check_phrasings,
}
"""What can be wrong with the options of our own, beyond their names."""
