"""MinHash signatures of texts, kept as band keys and sketches: 116 bytes a row on disk, 32 of them ever in memory.

A signature holds, for each of HASHES random functions, the least value over a text's shingles; two signatures agree in
one place with a probability of the Jaccard similarity of the sets (Broder, "On the resemblance and containment of
documents", 1997). Of a signature two things are kept. *Band keys*: a hash of 32 bits of each of BANDS bands of ROWS
values, and one of all of them; texts with the same key of a band are candidates. A *sketch*: two bits of each value
(Li and König, "b-Bit Minwise Hashing", 2010), from which a similarity is estimated without the texts.
"""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from fulltune.data.doctor.shingles import hashed

BANDS, ROWS = 20, 6
HASHES = BANDS * ROWS
WHOLE = BANDS
"""Number of the key that is made of the whole signature, as if it were one more band."""
WORDS = 4
"""Of a sketch: 30 values of two bits in each."""
_AT_ONCE = 1 << 16
"""Shingles hashed together: 256 kB a buffer, so that 120 passes over it stay in the processor's cache."""


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
        mixed, starts = hashed(texts)
        hashes = (_scattered(mixed) >> np.uint64(32)).astype(np.uint32)
        buffer = np.empty_like(hashes)
        for number in range(HASHES):
            np.multiply(hashes, self._factors[number], out=buffer)
            np.add(buffer, self._offsets[number], out=buffer)
            out[:, number] = np.minimum.reduceat(buffer, starts)


def band_keys(signatures: NDArray[np.uint32]) -> NDArray[np.uint32]:
    """uint32 [rows, BANDS + 1]: a key of each band, and one of the whole signature."""
    keys = np.zeros((len(signatures), BANDS + 1), np.uint64)
    values = signatures.reshape(-1, BANDS, ROWS)
    for place in range(ROWS):
        keys[:, :BANDS] = _scattered(keys[:, :BANDS] + values[:, :, place] + np.uint64(1))
    for band in range(BANDS):
        keys[:, WHOLE] = _scattered(keys[:, WHOLE] + keys[:, band])
    return (keys >> np.uint64(32)).astype(np.uint32)


def sketches(signatures: NDArray[np.uint32]) -> NDArray[np.uint64]:
    """uint64 [rows, WORDS]: two bits of each value, which agree by chance one time in four."""
    # Multiplied first: the lowest bits of a least value are those of the shingle, whatever the random function.
    bits = (signatures * np.uint32(0x9E3779B1) >> np.uint32(30)).reshape(len(signatures), WORDS, HASHES // WORDS)
    packed = np.zeros(bits.shape[:2], np.uint64)
    for place in range(bits.shape[2]):
        packed <<= np.uint64(2)
        packed |= bits[:, :, place]
    return packed


def differing(one: NDArray[np.uint64], other: NDArray[np.uint64]) -> NDArray[np.int64]:
    """In how many of the HASHES values the sketches of each pair of rows differ."""
    apart = one ^ other
    apart |= apart >> np.uint64(1)
    apart &= np.uint64(0x5555555555555555)  # one bit for each value
    apart = (apart & np.uint64(0x3333333333333333)) + (apart >> np.uint64(2) & np.uint64(0x3333333333333333))
    total = apart.sum(axis=1, dtype=np.uint64)  # lanes of four bits, each at most 2 * WORDS
    total = (total & np.uint64(0x0F0F0F0F0F0F0F0F)) + (total >> np.uint64(4) & np.uint64(0x0F0F0F0F0F0F0F0F))
    counts: NDArray[np.int64] = (total * np.uint64(0x0101010101010101) >> np.uint64(56)).astype(np.int64)
    return counts


def most_differing(similarity: float, deviations: float = 0.0) -> int:
    """Values in which the sketches of two texts so similar differ, and so many standard deviations more."""
    chance = (1 - similarity) * 0.75
    return math.ceil(HASHES * chance + deviations * math.sqrt(HASHES * chance * (1 - chance)))


def _scattered(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Like values far apart: the finaliser of splitmix64 (Steele, Lea and Flood 2014); its upper bits are the best."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
