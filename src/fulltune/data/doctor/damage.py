"""Damage to text: control characters, lost characters, UTF-8 read as Windows-1252, repetition."""

import itertools
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

_CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x84\x86-\x9f]")
"""C0 and C1 without tab, line feed, carriage return and next line (U+0085)."""
_SURROGATE = re.compile("[\ud800-\udfff]")
_TAIL = "[\x80-\xbf€‚ƒ„…†‡ˆ‰Š‹ŒŽ‘’“”•–—˜™š›œžŸ]"
"""What the bytes 80 to BF, the second and later ones of UTF-8, read as in Latin-1 and in Windows-1252."""
_MOJIBAKE = re.compile(
    f"[ÂÃ]{_TAIL}"  # accented Latin letters: Ã© for é
    f"|â[\x80-\x84€‚ƒ„]{_TAIL}"  # quotes, dashes, signs: â€™ for '
    f"|ð[\x9fŸ]{_TAIL}{{2}}"  # emoji
    f"|ï»¿|ï¿½"  # a byte order mark, U+FFFD itself
    f"|(?:[Ä-Ý]{_TAIL}){{3,}}"  # a word of Cyrillic, Greek, Hebrew, Arabic
    f"|(?:[à-í]{_TAIL}{{2}}){{2,}}"  # two characters of an Asian script
)
_DAMAGE: Mapping[str, re.Pattern[str]] = {
    "control_char": _CONTROL,
    "lost_character": re.compile("\ufffd"),
    "mojibake": _MOJIBAKE,
    "unicode_surrogate": _SURROGATE,
}
_SIGNS: Mapping[str, frozenset[int]] = {
    "control_char": frozenset([*range(0x20), 0x7F, 0xC2]) - frozenset(b"\t\n\r"),
    "lost_character": frozenset([0xEF]),
    "mojibake": frozenset([0xC3]),
    "unicode_surrogate": frozenset([0xED]),
}
"""Code -> bytes of which one stands in the UTF-8 of every text that has such damage."""
_NO_SIGN = bytes(set(range(256)) - frozenset().union(*_SIGNS.values()))
DAMAGE = tuple(_DAMAGE)
"""All codes."""

LEAST_WORDS = 50
"""Of a text in which repetition is looked for: the shortest document that the Gopher rules keep."""
_LOOKED_AT = 200_000
"""Characters in which repetition is looked for: a book of five million would take a gigabyte of n-grams."""
_TOP = {2: 0.20, 3: 0.18, 4: 0.16}
"""n -> share of characters in the most frequent n-gram that is too much."""
_REPEATED = {5: 0.15, 6: 0.14, 7: 0.13, 8: 0.12, 9: 0.11, 10: 0.10}
"""n -> share of characters in all n-grams that occur more than once."""
_LINES = 0.30
"""Share of lines that came before."""
_LINE_CHARACTERS = 0.20


def damage(text: str) -> Mapping[str, int]:
    """Code -> how often; what does not occur is left out."""
    signs = text.encode("utf-8", "surrogatepass").translate(None, _NO_SIGN)
    if not signs or text.isascii():
        return {"control_char": len(signs)} if signs else {}
    present = frozenset(signs)
    counts = {code: len(pattern.findall(text)) for code, pattern in _DAMAGE.items() if _SIGNS[code] & present}
    return {code: count for code, count in counts.items() if count}


def repetition(text: str) -> tuple[str, ...]:
    """The rules of Gopher that the text breaks (Rae et al. 2021, "Scaling Language Models", table A1).

    Those of lines and of n-grams; the rules of paragraphs are left out. Texts of fewer than 50 words are not judged,
    and of longer ones the first 200,000 characters.
    """
    text = text[:_LOOKED_AT]
    words = text.split()
    if len(words) < LEAST_WORDS:
        return ()
    return tuple(_broken(text, words))


def _broken(text: str, words: list[str]) -> Iterator[str]:
    lines = [line for line in (part.strip() for part in text.split("\n")) if line]
    counted = Counter(lines)
    if len(counted) < len(lines):
        if (len(lines) - len(counted)) / len(lines) > _LINES:
            yield "lines"
        again = sum((count - 1) * len(line) for line, count in counted.items())
        if again / len(text) > _LINE_CHARACTERS:
            yield "line_characters"
    letters = sum(map(len, words))
    starts: Sequence[int] = range(len(words) - 1)
    grams: list[tuple[str, ...]] = list(itertools.pairwise(words))
    for size in range(2, max(_REPEATED) + 1):
        counts = Counter(grams)
        if len(counts) == len(grams):
            return
        starts = [at for at, gram in zip(starts, grams, strict=True) if counts[gram] > 1]
        if size in _TOP:
            gram, count = counts.most_common(1)[0]
            if count * sum(map(len, gram)) / letters > _TOP[size]:
                yield f"top_{size}_grams"
        else:
            share = _covered(words, starts, size) / letters
            if share > _REPEATED[size]:
                yield f"repeated_{size}_grams"
            if share <= min(_REPEATED.values()):
                return  # every repeated n-gram lies in repeated ones of fewer words
        # A repeated n-gram begins and ends with repeated ones of one word less: few are left to be counted.
        shorter = set(starts)
        starts = [at for at in starts if at + 1 in shorter]
        grams = [tuple(words[at : at + size + 1]) for at in starts]


def _covered(words: list[str], starts: list[int], size: int) -> int:
    """Characters in n-grams that begin at these words, each counted once however many of them it lies in."""
    total = end = 0
    for at in starts:
        total += sum(map(len, words[max(at, end) : at + size]))
        end = at + size
    return total
