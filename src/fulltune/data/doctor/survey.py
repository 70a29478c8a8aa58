"""One pass over all examples: lengths of answers, turns, languages, repetition, damage, what is private."""

import heapq
import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

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
    """Is shown one example after the other; memory does not grow with them but for one number for each length.

    Parts of the data may be surveyed apart and merged in their order: the facts are those of one pass.
    """

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

    def add(self, content: Content, where: str) -> dict[str, int]:
        """One example and its place; what is odd about it: code -> how often. A caller may leave it out by that."""
        plain, answers = plain_text(content), _answers(content)
        self._examples += 1
        self._languages[language(plain)] += 1
        if isinstance(content, Chat):
            self._chats += 1
            self._turns[sum(message.role != "system" for message in content.messages)] += 1
        codes = {**damage(text := _with_system(content, plain)), **private(text)}
        for code, times in (
            ("empty_answer", self._lengths_of(answers, where)),
            ("repetition", self._rules_of(answers)),
        ):
            if times:
                codes[code] = times
        for code, times in codes.items():
            self._tally.add(code, where, times)
        return codes

    def _lengths_of(self, answers: list[str], where: str) -> int:
        """Counts the lengths of answers; returns how many are empty."""
        empty = 0
        for answer in answers:
            self._answers += 1
            if _is_empty(answer):
                empty += 1
                continue
            length = len(answer)
            self._lengths[length] += 1
            # Ties go to the answer that came first: the heaps give up their least entry.
            _keep(self._shortest, (-length, -self._answers, where), self._named)
            _keep(self._longest, (length, -self._answers, where), self._named)
        return empty

    def _rules_of(self, answers: list[str]) -> int:
        """Counts the rules of repetition that answers break; returns how many answers break any."""
        broken = [rules for rules in map(repetition, answers) if rules]
        for rules in broken:
            self._rules.update(rules)
        return len(broken)

    def state(self) -> dict[str, Any]:
        """All that was counted, as plain JSON values."""
        return {
            "examples": self._examples,
            "chats": self._chats,
            "answers": self._answers,
            "turns": _written(self._turns),
            "lengths": _written(self._lengths),
            "languages": dict(self._languages),
            "rules": dict(self._rules),
            "tally": self._tally.state(),
            "shortest": sorted(self._shortest),
            "longest": sorted(self._longest),
        }

    def merge(self, state: Mapping[str, Any]) -> None:
        """Add what the survey of the part after this one counted, given as its `state`."""
        for heap, name in ((self._shortest, "shortest"), (self._longest, "longest")):
            for length, number, where in state[name]:
                _keep(heap, (length, number - self._answers, where), self._named)
        self._examples += state["examples"]
        self._chats += state["chats"]
        self._answers += state["answers"]
        self._turns.update(_read(state["turns"]))
        self._lengths.update(_read(state["lengths"]))
        self._languages.update(state["languages"])
        self._rules.update(state["rules"])
        self._tally.merge(state["tally"])

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


def _with_system(content: Content, plain: str) -> str:
    """What is looked at for damage and private text: the plain text and every system prompt."""
    if not isinstance(content, Chat):
        return plain
    return "\n".join([plain, *(message.content for message in content.messages if message.role == "system")])


def _written(counts: Counter[int]) -> dict[str, int]:
    """JSON has no numbers for keys."""
    return {str(key): count for key, count in counts.items()}


def _read(counts: Mapping[str, int]) -> dict[int, int]:
    return {int(key): count for key, count in counts.items()}


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
    return not text[:1].isalnum() and not any(char.isprintable() and not char.isspace() for char in text)


def _keep(heap: list[tuple[int, int, str]], entry: tuple[int, int, str], most: int) -> None:
    if len(heap) < most:
        heapq.heappush(heap, entry)
    elif entry > heap[0]:
        heapq.heapreplace(heap, entry)


def _ends(heap: list[tuple[int, int, str]], count: int, bound: int) -> Found:
    """The places at one end of the lengths that lie beyond the bound, the most extreme first."""
    beyond = sorted((entry for entry in heap if entry[0] > bound), reverse=True)
    return Found(count, count, tuple(dict.fromkeys(where for _, _, where in beyond)))
