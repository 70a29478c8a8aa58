"""Text -> shingles -> MinHash signatures, all in numpy.

A document is the set of its character 5-grams after normalisation (`normalised`). Characters and not words, because
one typo in a row of 17 words spoils three of its word trigrams (similarity 0.67) but five of its hundred character
5-grams (0.90), and because not every script puts spaces between words. A signature holds, for each of `HASHES` random
functions, the least value over the set; two signatures agree in one place with a probability of the Jaccard similarity
of the sets (Broder, "On the resemblance and containment of documents", 1997).
"""

import json
import re
import unicodedata
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from fulltune.data.example import Chat, Content, Labelled, Preference, Text, Tokens

SHINGLE = 5
"""Characters of a shingle (5 for short texts: Leskovec, Rajaraman and Ullman, "Mining of Massive Datasets", 3.2.2)."""
HASHES = 120
_NO_WORD = re.compile(r"[\W_]+")
_AT_ONCE = 1 << 16
"""Shingles hashed together: 256 kB a buffer, so that 120 passes over it stay in the processor's cache."""


def plain_text(content: Content) -> str:
    """What is compared: all turns but the system's, which many rows share, with their tool calls."""
    match content:
        case Text():
            return content.text
        case Labelled():
            return "\n".join(filter(None, (content.text, content.pair)))
        case Preference():
            return plain_text(Chat((*content.prompt.messages, *content.chosen)))
        case Tokens():
            return " ".join(map(str, content.ids))
    parts = []
    for message in content.messages:
        if message.role != "system":
            parts.append(message.content)
            parts += [json.dumps(message.extra, sort_keys=True, ensure_ascii=False)] if message.extra else []
    return "\n".join(parts)


def normalised(text: str) -> str:
    """Blind to case, spacing, punctuation and the way accents are written; a text without any letter stays as it is."""
    folded = text if text.isascii() else unicodedata.normalize("NFKC", text)
    folded = folded.casefold()
    return _NO_WORD.sub(" ", folded).strip() or " ".join(folded.split())


def shingles(text: str) -> frozenset[str]:
    """The character 5-grams of a normalised text; a shorter text is its own single shingle."""
    return frozenset(text[at : at + SHINGLE] for at in range(max(len(text) - SHINGLE, 0) + 1))


def jaccard(left: frozenset[str], right: frozenset[str]) -> float:
    """Size of the intersection over size of the union."""
    both = len(left & right)
    return both / (len(left) + len(right) - both)


class Signer:
    """Signatures of normalised texts, the same on every machine for one seed."""

    def __init__(self, seed: int = 0) -> None:
        random = np.random.default_rng(seed)
        self._factors = random.integers(1 << 31, size=HASHES, dtype=np.uint32) * np.uint32(2) + np.uint32(1)
        self._offsets = random.integers(1 << 32, size=HASHES, dtype=np.uint32)

    def sign(self, texts: Sequence[str]) -> NDArray[np.uint32]:
        """uint32 [texts, HASHES]."""
        signatures = np.empty((len(texts), HASHES), np.uint32)
        begin = size = 0
        for number, text in enumerate(texts):
            if size and size + len(text) > _AT_ONCE:
                self._sign(texts[begin:number], signatures[begin:number])
                begin, size = number, 0
            size += len(text)
        if begin < len(texts):
            self._sign(texts[begin:], signatures[begin:])
        return signatures

    def _sign(self, texts: Sequence[str], out: NDArray[np.uint32]) -> None:
        hashes, starts = _hashed(texts)
        buffer = np.empty_like(hashes)
        for number in range(HASHES):
            np.multiply(hashes, self._factors[number], out=buffer)
            np.add(buffer, self._offsets[number], out=buffer)
            out[:, number] = np.minimum.reduceat(buffer, starts)


def _hashed(texts: Sequence[str]) -> tuple[NDArray[np.uint32], NDArray[np.int64]]:
    """A hash of every shingle of every text, and where the shingles of each text begin."""
    padded = [text.ljust(SHINGLE, "\0") for text in texts]
    codes = np.frombuffer("".join(padded).encode("utf-32-le", "surrogatepass"), np.uint32).astype(np.uint64)
    lengths = np.array([len(text) for text in padded])
    mixed = np.zeros(len(codes) - SHINGLE + 1, np.uint64)
    for offset in range(SHINGLE):
        mixed = mixed * np.uint64(0x100000001B3) + codes[offset : offset + len(mixed)]
    # A shingle that would reach over the end of its text into the next is no shingle.
    whole = np.ones(len(codes), bool)
    ends = np.cumsum(lengths)
    for offset in range(1, SHINGLE):
        whole[ends - offset] = False
    counts = lengths - SHINGLE + 1
    return _scattered(mixed[whole[: len(mixed)]]), np.cumsum(counts) - counts


def _scattered(values: NDArray[np.uint64]) -> NDArray[np.uint32]:
    """Like values far apart: the finaliser of splitmix64 (Steele, Lea and Flood 2014), of which 32 bits are kept."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return (values >> np.uint64(32)).astype(np.uint32)
