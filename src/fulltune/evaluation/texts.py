"""Metrics of texts by words and patterns: exact match, token F1, ROUGE-L, numbers, JSON, regular expressions."""

import json
import re
import string
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

from fulltune.base.errors import RecipeError
from fulltune.evaluation.answers import Mean, best

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)
_NOT_A_WORD = re.compile(r"[^a-z0-9]+")
_NUMBER = re.compile(r"(?:(?<![\w)])[-\u2212])?\$?(?:\d[\d,]*(?:\.\d+)?|\.\d+)")
_FENCED = re.compile(r"```(?:json)?\s*\n(.*?)\n?```", re.DOTALL)
_MARKER = "####"
"""What GSM8K writes before the final number of an answer."""


def plain_words(text: str) -> list[str]:
    """Words as SQuAD compares them: lower case, without punctuation and the articles a, an, the (Rajpurkar 2016)."""
    return _ARTICLES.sub(" ", text.lower().translate(_NO_PUNCTUATION)).split()


def exact_match(*, normalised: bool = False) -> Mean:
    """Share of answers that are a reference to the letter, white space at the ends aside.

    `normalised`: compared as SQuAD does, without case, punctuation and articles.
    """
    shape: Any = plain_words if normalised else str.strip
    return best(lambda text, reference: float(shape(text) == shape(reference)))


def token_f1() -> Mean:
    """F1 of the words that answer and reference share, the best over the references (SQuAD, Rajpurkar 2016).

    Words are SQuAD's; if one side has none, it is 1 where the other has none either (SQuAD 2.0).
    """
    return best(_token_f1)


def _token_f1(text: str, reference: str) -> float:
    said, wanted = plain_words(text), plain_words(reference)
    if not said or not wanted:
        return float(said == wanted)
    return _f1(sum((Counter(said) & Counter(wanted)).values()), len(said), len(wanted))


def _f1(shared: int, said: int, wanted: int) -> float:
    return 0.0 if shared == 0 else 2 * shared / (said + wanted)


def rouge_l() -> Mean:
    """F-measure of the longest common subsequence of words, the best over the references (Lin 2004).

    Words are runs of a-z and 0-9 in lower case, not stemmed, as in the package rouge-score.
    """
    return best(_rouge_l)


def _rouge_l(text: str, reference: str) -> float:
    said, wanted = (_NOT_A_WORD.sub(" ", side.lower()).split() for side in (text, reference))
    return _f1(longest_common(said, wanted), len(said), len(wanted))


def longest_common(one: Sequence[str], other: Sequence[str]) -> int:
    """Length of the longest common subsequence, a bit for each word of the first (Crochemore 2001)."""
    places: defaultdict[str, int] = defaultdict(int)
    for index, word in enumerate(one):
        places[word] |= 1 << index
    everything = (1 << len(one)) - 1
    row = everything
    for word in other:
        found = row & places[word] if word in places else 0
        row = ((row + found) | (row - found)) & everything
    return len(one) - row.bit_count()


def number_in(text: str, *, marker: str = _MARKER) -> Decimal | None:
    """The number that a text ends in: the first behind its last marker, else its last one; None if it has none.

    `$`, thousands' commas and percent signs are not part of a number.
    """
    _, found, behind = text.rpartition(marker)
    if found and (first := _NUMBER.search(behind)):
        return _decimal(first[0])
    numbers = _NUMBER.findall(text)
    return _decimal(numbers[-1]) if numbers else None


def _decimal(written: str) -> Decimal:
    return Decimal(written.replace(",", "").replace("$", "").replace("\u2212", "-"))


def numeric(*, marker: str = _MARKER) -> Mean:
    """Share of answers that end in the reference's number (GSM8K, Cobbe 2021): 1,250.0 is 1250.

    `marker`: what stands before the final number, where it does; else the last number of the text counts.
    """

    def score(text: str, reference: str) -> float:
        wanted = number_in(reference, marker=marker)
        return float(wanted is not None and number_in(text, marker=marker) == wanted)

    return best(score)


def contains(*, ignore_case: bool = True) -> Mean:
    """Share of answers in which a reference occurs."""
    shape: Any = str.casefold if ignore_case else str
    return best(lambda text, reference: float(shape(reference.strip()) in shape(text)))


def regex(*, pattern: str, absent: bool = False) -> Mean:
    """Share of answers in which a regular expression is found, or with `absent` is not (Python's `re`, DOTALL off)."""
    try:
        wanted = re.compile(pattern)
    except re.error as fault:
        raise RecipeError(
            f"{pattern!r} is no regular expression: {fault}", where="pattern", mend="write one of Python's module re"
        ) from fault
    return Mean(lambda text, _: float((wanted.search(text) is None) == absent))


def json_valid(*, fenced: bool = False) -> Mean:
    """Share of answers that are one JSON value (RFC 8259: no NaN), white space aside.

    `fenced`: the first Markdown block of an answer that has one is looked at in place of the whole.
    """
    return Mean(lambda text, _: float(_value(text, fenced=fenced)[0]))


def json_schema(*, schema: Mapping[str, Any] | str, fenced: bool = False) -> Mean:
    """Share of answers that are JSON of a given shape (JSON Schema, checked by the package jsonschema).

    `schema`: the schema itself, or the path of a file that holds it.
    """
    try:
        from jsonschema.exceptions import SchemaError
        from jsonschema.validators import validator_for
    except ImportError as fault:
        raise missing("jsonschema") from fault
    shape = _schema(Path(schema)) if isinstance(schema, str) else dict(schema)
    kind = validator_for(shape)
    try:
        kind.check_schema(shape)
    except SchemaError as fault:
        raise RecipeError(f"no JSON Schema: {fault.message}", where="schema", mend="mend the schema") from fault
    checker = kind(shape)

    def score(text: str, _: Sequence[str]) -> float:
        valid, value = _value(text, fenced=fenced)
        return float(valid and checker.is_valid(value))

    return Mean(score)


def _schema(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as fault:
        raise RecipeError(
            f"the schema cannot be read: {fault.strerror}", where=str(path), mend="check the path"
        ) from fault
    except ValueError as fault:
        raise RecipeError(f"the schema is not JSON: {fault}", where=str(path), mend="mend the file") from fault


def _value(text: str, *, fenced: bool) -> tuple[bool, Any]:
    """Whether a text is JSON, and its value."""
    block = _FENCED.search(text) if fenced else None
    constants: list[str] = []
    try:
        value = json.loads(text if block is None else block[1], parse_constant=constants.append)
    except (ValueError, RecursionError):  # what a model writes may be nested without end
        return False, None
    return not constants, value


def missing(package: str) -> RecipeError:
    """What is said where a package of the extra `eval` is not installed."""
    return RecipeError(f"this metric needs the package {package}", where="metrics", mend="pip install 'fulltune[eval]'")
