"""Damage to text: control characters, lost characters, UTF-8 read as Windows-1252, repetition."""

import re
from collections import Counter
from collections.abc import Iterator, Mapping

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
    if text.isascii():
        found = len(_CONTROL.findall(text))
        return {"control_char": found} if found else {}
    counts = {code: len(pattern.findall(text)) for code, pattern in _DAMAGE.items()}
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
    for size, most in _TOP.items():
        gram, count = Counter(_grams(words, size)).most_common(1)[0]
        if count > 1 and count * sum(map(len, gram)) / letters > most:
            yield f"top_{size}_grams"
    for size, most in _REPEATED.items():
        share = _repeated(words, size) / letters
        if share > most:
            yield f"repeated_{size}_grams"
        if share <= min(_REPEATED.values()):
            return  # every repeated n-gram lies in repeated ones of fewer words


def _repeated(words: list[str], size: int) -> int:
    """Characters in n-grams that occur more than once, each counted once however many of them it lies in."""
    counts = Counter(_grams(words, size))
    if len(counts) == len(words) - size + 1:
        return 0
    total = end = 0
    for at, gram in enumerate(_grams(words, size)):
        if counts[gram] > 1:
            total += sum(map(len, words[max(at, end) : at + size]))
            end = at + size
    return total


def _grams(words: list[str], size: int) -> Iterator[tuple[str, ...]]:
    return zip(*(words[offset:] for offset in range(size)), strict=False)
