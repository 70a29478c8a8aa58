"""One pass over all examples: lengths of answers, turns, languages, repetition, damage, what is private."""

import heapq
import math
from collections import Counter
from dataclasses import dataclass

from fulltune.data.doctor.damage import damage, repetition
from fulltune.data.doctor.found import NAMED, Found, Tally
from fulltune.data.doctor.language import language
from fulltune.data.doctor.lengths import quantile, quantiles
from fulltune.data.doctor.private import private
from fulltune.data.doctor.shingles import plain_text
from fulltune.data.example import Chat, Content, Preference, Tokens

_FAR = 3.0
"""Interquartile ranges from a quartile that make a length far out (Tukey, "Exploratory Data Analysis", 1977)."""
_LEAST_RANGE = math.log(1.5)
"""Of the logarithms of lengths, so that answers of nearly one length do not make the others stand out."""
_ENOUGH = 20
"""Answers from which quartiles are worth asking for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SurveyFacts:
    """What one pass over the examples counted. Texts are never kept: only counts and places."""

    examples: int
    chats: int
    turns: dict[str, int]
    """Turns of a conversation without the system's -> how many have so many."""
    answers: int
    """Taught turns of assistants and plain texts, empty ones included, mere tool calls left out."""
    characters: dict[str, int]
    """Quantiles of the lengths of what is taught, in characters, without what is empty."""
    short_below: int
    """Shorter answers are very short: first quartile less three interquartile ranges, of logarithms."""
    long_above: int
    languages: dict[str, int]
    """Guessed by script and small words; the most frequent first."""
    repetition: dict[str, int]
    """Rule of Gopher -> answers that break it."""
    found: dict[str, Found]
    """Code -> rows, times and first places."""


class Survey:
    """Is shown one example after the other; memory does not grow with them but for one number for each length."""

    def __init__(self, named: int = NAMED) -> None:
        self._named = named
        self._tally = Tally(named)
        self._examples = self._chats = self._answers = 0
        self._turns: Counter[int] = Counter()
        self._lengths: Counter[int] = Counter()
        self._languages: Counter[str] = Counter()
        self._rules: Counter[str] = Counter()
        self._shortest: list[tuple[int, int, str]] = []
        self._longest: list[tuple[int, int, str]] = []

    def add(self, content: Content, where: str) -> None:
        """One example and its place."""
        self._examples += 1
        self._languages[language(plain_text(content))] += 1
        if isinstance(content, Chat):
            self._chats += 1
            self._turns[sum(message.role != "system" for message in content.messages)] += 1
        for answer in _answers(content):
            self._answers += 1
            if not _is_empty(answer):
                self._length(len(answer), where)
            self._rules.update(repetition(answer))
        for code, times in codes_of(content).items():
            self._tally.add(code, where, times)

    def _length(self, length: int, where: str) -> None:
        self._lengths[length] += 1
        # Ties go to the answer that came first: the heaps give up their least entry.
        _keep(self._shortest, (-length, -self._answers, where), self._named)
        _keep(self._longest, (length, -self._answers, where), self._named)

    @property
    def facts(self) -> SurveyFacts:
        """What was seen so far."""
        low, high = self._bounds()
        found = self._tally.found
        short = sum(count for length, count in self._lengths.items() if length < low)
        far = sum(count for length, count in self._lengths.items() if length > high)
        if short:
            found["very_short_answer"] = _ends(self._shortest, short, -low)
        if far:
            found["very_long_answer"] = _ends(self._longest, far, high)
        return SurveyFacts(
            examples=self._examples,
            chats=self._chats,
            turns={str(turns): self._turns[turns] for turns in sorted(self._turns)},
            answers=self._answers,
            characters=quantiles(self._lengths),
            short_below=low,
            long_above=high,
            languages=dict(sorted(self._languages.items(), key=lambda item: (-item[1], item[0]))),
            repetition=dict(sorted(self._rules.items())),
            found=dict(sorted(found.items())),
        )

    def _bounds(self) -> tuple[int, int]:
        """Lengths outside of which an answer is very short or very long; the ends of all if there are too few."""
        if not self._lengths:
            return 0, 0
        if self._lengths.total() < _ENOUGH:
            return min(self._lengths), max(self._lengths)
        first, third = (math.log(quantile(self._lengths, share)) for share in (0.25, 0.75))
        far = _FAR * max(third - first, _LEAST_RANGE)
        # No answer is longer than the longest, and a bound that none can pass would be a number without a meaning.
        return math.ceil(math.exp(first - far)), min(math.floor(math.exp(third + far)), max(self._lengths))


def codes_of(content: Content) -> dict[str, int]:
    """What is odd about one example by itself: code -> how often. A caller may leave the example out by it."""
    text = plain_text(content)
    if isinstance(content, Chat):
        text = "\n".join([text, *(message.content for message in content.messages if message.role == "system")])
    answers = _answers(content)
    counts = {
        "empty_answer": sum(map(_is_empty, answers)),
        "repetition": sum(bool(repetition(answer)) for answer in answers),
        **damage(text),
        **private(text),
    }
    return {code: times for code, times in counts.items() if times}


def _answers(content: Content) -> list[str]:
    """Every text that is taught; a turn that calls tools need not have one."""
    if isinstance(content, Preference):
        return [message.content for message in content.chosen]
    if isinstance(content, Tokens):
        return []
    if not isinstance(content, Chat):
        return [content.text]
    taught = (message for message in content.messages if message.role == "assistant" and message.weight > 0)
    return [message.content for message in taught if message.content or "tool_calls" not in message.extra]


def _is_empty(text: str) -> bool:
    """White space and characters without width only."""
    return not any(char.isprintable() and not char.isspace() for char in text)


def _keep(heap: list[tuple[int, int, str]], entry: tuple[int, int, str], most: int) -> None:
    if len(heap) < most:
        heapq.heappush(heap, entry)
    else:
        heapq.heappushpop(heap, entry)


def _ends(heap: list[tuple[int, int, str]], count: int, bound: int) -> Found:
    """The places at one end of the lengths that lie beyond the bound, the most extreme first."""
    beyond = sorted((entry for entry in heap if entry[0] > bound), reverse=True)
    return Found(count, count, tuple(dict.fromkeys(where for _, _, where in beyond)))
