"""Patterns of what should not be learnt: addresses, numbers of cards and accounts, keys. Counts only, never the text.

Patterns are heuristics: they miss what is written otherwise, and a phone number in an example is counted though it is
invented. Numbers of cards must pass the Luhn check (ISO/IEC 7812-1, annex B) and of accounts the remainder 1 modulo 97
(ISO 13616), so that few other numbers are counted.
"""

import re
from collections.abc import Callable, Iterator, Mapping

_EMAIL = re.compile(r"(?<![\w.+-])[\w.+-]{1,64}@(?:[\w-]{1,63}\.){1,8}[^\W\d_]{2,24}(?![\w-])")
_PHONE = re.compile(
    r"(?<![\w.+/-])(?:"
    r"\+\d{1,3}(?:[ ./-]?\(?\d{1,5}\)?){2,6}"  # +49 (0)30 1234567
    r"|\(\d{2,5}\)[ -]?\d{2,5}(?:[ -]\d{2,5}){1,3}"  # (555) 123-4567
    r"|\d{3}[ .-]\d{3}[.-]\d{4}"  # 555 123-4567
    r"|0\d{2,4}[ /-]\d{5,8}"  # 030/1234567
    r"|0\d{9,10}"  # 09064019788
    r")(?![\w-])"
)
_CARD = re.compile(r"(?<![\w.])\d(?:[ -]?\d){12,18}(?![ -]?\d|\w)")
_ISSUED = re.compile(
    r"4\d{12}(?:\d{3}){0,2}|5[1-5]\d{14}|2[2-7]\d{14}|3[47]\d{13}|3[068]\d{12}|35\d{14}|6[0245]\d{14}(?:\d{3})?",
    re.ASCII,
)
"""Prefixes and lengths of Visa, Mastercard, American Express, Diners Club, JCB, Discover, UnionPay, Maestro."""
_IBAN = re.compile(r"(?<!\w)[A-Z]{2}\d{2}(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,3})?(?!\w)")
_KEY = re.compile(
    r"(?<![A-Za-z0-9])(?:"
    r"sk-[A-Za-z0-9_-]{20,}"  # OpenAI, Anthropic
    r"|(?:sk|rk)_live_[A-Za-z0-9]{16,}"  # Stripe
    r"|(?:AKIA|ASIA)[A-Z0-9]{16}"  # AWS
    r"|gh[pousr]_[A-Za-z0-9]{36,}|github_pat_[A-Za-z0-9_]{22,}"
    r"|glpat-[A-Za-z0-9_-]{20,}"
    r"|xox[abprs]-[A-Za-z0-9-]{10,}"  # Slack
    r"|AIza[A-Za-z0-9_-]{35}"  # Google
    r"|hf_[A-Za-z0-9]{30,}"
    r")(?![A-Za-z0-9])"
)
_PRIVATE_KEY = re.compile(r"-----BEGIN (?:[A-Z0-9]+ )*PRIVATE KEY(?: BLOCK)?-----")
_DIGITS = re.compile(r"\d")


def _shape_of(code: int) -> int:
    """What a character is in a shape: 0 for a digit, A for a capital, a for another letter and _, or a comma."""
    char = chr(code)
    shape = "0" if char.isdigit() else "A" if char.isupper() else "a" if char.isalpha() or char == "_" else char
    return ord(shape if shape in "0Aa.+/-( " else ",")


_FOREIGN_DIGIT = re.compile(r"[^\D0-9]")
_SHAPE = bytes(map(_shape_of, range(128))).ljust(256, b",")
"""Of each byte of UTF-8."""
_PHONE_PARTS = (b" +0", b",+0", b"(+0")
"""Of the shape of a text with a phone number that begins with +; no letter or digit stands before it."""
_ZERO = re.compile(r"0(?<![\w.+/-]0)\d\d+(?:[ /-]\d{5}|\d{7})")
"""How one begins that begins with a 0."""
_KEY_PARTS = ("sk-", "AKIA", "ASIA", "glpat-", "xox", "AIza", "_")
_MOST_DIGITS = 15
"""Of a phone number (ITU-T E.164)."""


def private(text: str) -> Mapping[str, int]:
    """Code -> how often; what does not occur is left out."""
    counts = {code: _COUNTS[code](text) for code in _possible(text)}
    return {code: count for code, count in counts.items() if count}


def _possible(text: str) -> Iterator[str]:
    """Codes that quick searches do not rule out: each looks for what every match of the patterns has.

    They look at the *shape* of a text (`_SHAPE`), in which all digits are one and all letters are two.
    """
    if not text.isascii() and _FOREIGN_DIGIT.search(text):
        yield from _COUNTS  # the patterns take other digits too, of which shapes know nothing
        return
    shape = text.encode("utf-8", "replace").translate(_SHAPE)
    if "@" in text:
        yield "pii_email"
    if b"0" in shape:
        has = shape.__contains__
        long = has(b"000") and (has(b"000-0000") or has(b"000.0000") or _ZERO.search(text) is not None)
        plus = has(b"+0") and (any(map(has, _PHONE_PARTS)) or shape.startswith(b"+0"))
        if long or plus or has(b"(00"):
            yield "pii_phone"
        if has(b"AA00"):
            yield "pii_iban"
        if b"0000000000000" in shape.translate(None, b" -"):
            yield "pii_card"
    if any(map(text.__contains__, _KEY_PARTS)):
        yield "api_key"
    if "-----BEGIN" in text:
        yield "private_key"


def luhn(digits: str) -> bool:
    """Whether the last digit is the check digit of those before it."""
    doubled = sum(sum(divmod(2 * int(digit), 10)) for digit in digits[-2::-2])
    return (doubled + sum(int(digit) for digit in digits[::-2])) % 10 == 0


def _emails(text: str) -> int:
    return len(_EMAIL.findall(text))


def _phones(text: str) -> int:
    found = (len(_DIGITS.findall(match)) for match in _PHONE.findall(text))
    return sum(8 <= digits <= _MOST_DIGITS for digits in found)


def _cards(text: str) -> int:
    numbers = ("".join(_DIGITS.findall(match)) for match in _CARD.findall(text))
    return sum(_ISSUED.fullmatch(number) is not None and luhn(number) for number in numbers)


def _ibans(text: str) -> int:
    numbers = (match.replace(" ", "") for match in _IBAN.findall(text))
    return sum(_is_iban(number) for number in numbers)


def _is_iban(number: str) -> bool:
    turned = number[4:] + number[:4]
    return 15 <= len(number) <= 34 and int("".join(str(int(char, 36)) for char in turned)) % 97 == 1


def _keys(text: str) -> int:
    return sum(_DIGITS.search(match) is not None for match in _KEY.findall(text))


def _private_keys(text: str) -> int:
    return len(_PRIVATE_KEY.findall(text))


_COUNTS: Mapping[str, Callable[[str], int]] = {
    "pii_email": _emails,
    "pii_phone": _phones,
    "pii_card": _cards,
    "pii_iban": _ibans,
    "api_key": _keys,
    "private_key": _private_keys,
}
PRIVATE = tuple(_COUNTS)
"""All codes."""
