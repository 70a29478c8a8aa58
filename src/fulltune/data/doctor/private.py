"""Patterns of what should not be learnt: addresses, numbers of cards and accounts, keys. Counts only, never the text.

Patterns are heuristics: they miss what is written otherwise, and a phone number in an example is counted though it is
invented. Numbers of cards must pass the Luhn check (ISO/IEC 7812-1, annex B) and of accounts the remainder 1 modulo 97
(ISO 13616), so that few other numbers are counted.
"""

import re
from collections.abc import Callable, Mapping

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
_MOST_DIGITS = 15
"""Of a phone number (ITU-T E.164)."""


def private(text: str) -> Mapping[str, int]:
    """Code -> how often; what does not occur is left out."""
    counts = {code: count(text) for code, count in _COUNTS.items()}
    return {code: count for code, count in counts.items() if count}


def luhn(digits: str) -> bool:
    """Whether the last digit is the check digit of those before it."""
    doubled = sum(sum(divmod(2 * int(digit), 10)) for digit in digits[-2::-2])
    return (doubled + sum(int(digit) for digit in digits[::-2])) % 10 == 0


def _emails(text: str) -> int:
    return len(_EMAIL.findall(text)) if "@" in text else 0


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
    return len(_PRIVATE_KEY.findall(text)) if "-----BEGIN" in text else 0


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
