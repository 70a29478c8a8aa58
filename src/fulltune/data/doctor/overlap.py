"""Word n-grams that training rows share with benchmark texts: the contamination check of GPT-3.

Brown et al., "Language Models are Few-Shot Learners" (2020), appendix C: texts are words without case and punctuation;
a benchmark text is dirty if it has any n-gram in common with a training row, with n = 13 for long texts. It finds what
near-duplicates cannot: a question quoted inside a long row, or with another answer.

One pass over the training rows; memory is 16 bytes for each n-gram of the benchmarks and a dictionary of their words.
N-grams are compared by hashes of 64 bits: one false hit among a million by ten million has probability 1e-6.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fulltune.data.doctor.found import NAMED
from fulltune.data.doctor.shingles import normalised

NGRAM = 13


@dataclass(frozen=True, slots=True, kw_only=True)
class OverlapFacts:
    """How much of the benchmarks stands in the training data."""

    ngram: int
    rows: int
    rows_hit: int
    """Training rows that share at least one n-gram with a benchmark text."""
    share: float
    """Of the training rows."""
    places: tuple[str, ...]
    """The first rows hit."""
    texts: int
    texts_hit: int
    """Benchmark texts with at least one n-gram in the training data: scores on them mean little."""
    texts_share: float
    """Of the benchmark texts that are long enough to be looked for."""
    texts_places: tuple[str, ...]
    texts_too_short: int
    """Benchmark texts of fewer words than an n-gram has; they cannot be looked for."""


class Overlap:
    """Holds the n-grams of benchmark texts, given as (place, text), and is shown the training rows one by one."""

    def __init__(self, benchmark: Iterable[tuple[str, str]], *, ngram: int = NGRAM) -> None:
        if ngram < 1:
            raise ValueError(f"an n-gram has at least one word, not {ngram}")
        self._ngram = ngram
        self._words: dict[str, int] = {}
        self._texts: list[str] = []
        self._rows = self._rows_hit = self._too_short = 0
        self._places: list[str] = []
        grams, owners = [np.empty(0, np.uint64)], [np.empty(0, np.int64)]
        for place, text in benchmark:
            words = normalised(text).split()
            numbers = [self._words.setdefault(word, len(self._words) + 1) for word in words]
            found = self._hashes(numbers)
            self._too_short += not len(found)
            grams.append(found)
            owners.append(np.full(len(found), len(self._texts)))
            self._texts.append(place)
        self._grams, self._which = np.unique(np.concatenate(grams), return_inverse=True)
        self._owners = np.concatenate(owners)
        self._hit = np.zeros(len(self._grams), bool)

    def add(self, text: str, where: str) -> int:
        """One training row; returns how many of its n-grams stand in a benchmark text."""
        self._rows += 1
        hashes = self._hashes([self._words.get(word, 0) for word in normalised(text).split()])
        if not len(hashes) or not len(self._grams):
            return 0
        at = np.minimum(np.searchsorted(self._grams, hashes), len(self._grams) - 1)
        hits = at[self._grams[at] == hashes]
        if not len(hits):
            return 0
        self._hit[hits] = True
        self._rows_hit += 1
        if len(self._places) < NAMED:
            self._places.append(where)
        return len(hits)

    @property
    def facts(self) -> OverlapFacts:
        """What was found so far."""
        dirty = np.unique(self._owners[self._hit[self._which]])
        looked_for = len(self._texts) - self._too_short
        return OverlapFacts(
            ngram=self._ngram,
            rows=self._rows,
            rows_hit=self._rows_hit,
            share=self._rows_hit / self._rows if self._rows else 0.0,
            places=tuple(self._places),
            texts=len(self._texts),
            texts_hit=len(dirty),
            texts_share=len(dirty) / looked_for if looked_for else 0.0,
            texts_places=tuple(self._texts[number] for number in dirty[:NAMED]),
            texts_too_short=self._too_short,
        )

    def _hashes(self, numbers: list[int]) -> NDArray[np.uint64]:
        """Of every n-gram without a 0, which is a word that no benchmark text has."""
        count = len(numbers) - self._ngram + 1
        if count < 1:
            return np.empty(0, np.uint64)
        words = np.array(numbers, np.uint64)
        unknown = np.concatenate([[0], np.cumsum(words == 0)])
        whole = unknown[self._ngram :] == unknown[: -self._ngram]
        if not whole.any():
            return np.empty(0, np.uint64)
        hashes = np.zeros(count, np.uint64)
        for offset in range(self._ngram):
            hashes = (hashes ^ words[offset : offset + count]) * np.uint64(0x9E3779B97F4A7C15)
            hashes ^= hashes >> np.uint64(29)
        kept: NDArray[np.uint64] = hashes[whole]
        return kept
