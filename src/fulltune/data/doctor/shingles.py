"""Text -> what is compared -> shingles, as sorted hashes: the ground of near-duplicates and of n-grams.

A document is the set of its character 5-grams after normalisation (`normalised`). Characters and not words, because
one typo in a row of 17 words spoils three of its word trigrams (similarity 0.67) but five of its hundred character
5-grams (0.90), and because not every script puts spaces between words. A shingle is held as a hash of 64 bits: that
two of a pair of texts of a thousand characters collide has probability 1e-13.
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
_NO_WORD = re.compile(r"[\W_]+")
_ASCII = bytes(code if chr(code).isalnum() else 0x20 for code in range(128)).lower().ljust(256, b" ")
"""ASCII letters in lower case, digits, and a space for all else."""
_FACTOR = np.uint64(0x100000001B3)
_TRUE = np.ones(1, bool)


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
    if text.isascii():
        if words := text.encode().translate(_ASCII).split():
            return b" ".join(words).decode()
        return " ".join(text.split())
    folded = unicodedata.normalize("NFKC", text).casefold()
    return _NO_WORD.sub(" ", folded).strip() or " ".join(folded.split())


def hashed(texts: Sequence[str]) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
    """A hash of every shingle of every text, and where those of each text begin; each text has one at least."""
    padded = [text.ljust(SHINGLE, "\0") for text in texts]
    lengths = np.array([len(text) for text in padded])
    ends = np.cumsum(lengths)
    # A shingle that would reach over the end of its text into the next is no shingle.
    whole = np.ones(int(ends[-1]), bool)
    for offset in range(1, SHINGLE):
        whole[ends - offset] = False
    return _hashes("".join(padded))[whole[: 1 - SHINGLE]], ends - lengths - (SHINGLE - 1) * np.arange(len(texts))


def shingles(text: str) -> NDArray[np.uint64]:
    """The set of a normalised text's character 5-grams, as ascending hashes; a shorter text is its own single one."""
    found = _hashes(text.ljust(SHINGLE, "\0"))
    found.sort()
    distinct: NDArray[np.uint64] = found[np.concatenate([_TRUE, found[1:] != found[:-1]])]
    return distinct


def jaccard(left: NDArray[np.uint64], right: NDArray[np.uint64]) -> float:
    """Size of the intersection of two sets, given as ascending arrays, over size of the union."""
    merged = np.concatenate([left, right])
    merged.sort(kind="stable")  # two runs in order are merged
    both = int(np.count_nonzero(merged[1:] == merged[:-1]))
    return both / (len(merged) - both)


def _hashes(text: str) -> NDArray[np.uint64]:
    """Of each 5 characters in a row."""
    if text.isascii():
        codes = np.frombuffer(text.encode(), np.uint8).astype(np.uint64)
    else:
        codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), "<u4").astype(np.uint64)
    mixed = codes[: 1 - SHINGLE]
    for offset in range(1, SHINGLE):
        mixed = mixed * _FACTOR
        mixed += codes[offset : len(codes) - SHINGLE + 1 + offset]
    return mixed
