"""What may be asked about odd rows, `data.checks`: the codes of the doctor's findings, and the policies for each."""

import difflib
from collections.abc import Mapping
from typing import Literal, get_args

from fulltune.base.errors import Fault, RecipeError

Policy = Literal["keep", "drop", "error", "off"]

PER_ROW: Mapping[str, str] = {
    "empty_answer": "an answer without a visible character: the model would learn to say nothing",
    "repetition": "an answer repeats itself (rules of Gopher, Rae et al. 2021)",
    "control_char": "control characters other than tab and line breaks",
    "lost_character": "U+FFFD: characters were lost when the text was decoded",
    "mojibake": "UTF-8 that was read as Latin-1 or Windows-1252, such as Ã© for é",
    "unicode_surrogate": "half of a surrogate pair: it cannot be written as UTF-8",
    "pii_email": "e-mail addresses",
    "pii_phone": "phone numbers (heuristic)",
    "pii_card": "card numbers that pass the Luhn check",
    "pii_iban": "account numbers (IBAN) that pass their check",
    "api_key": "what looks like a key of a service",
    "private_key": "the header of a private key",
    "benchmark_overlap": "the row shares words in a row with a benchmark text",
    "near_duplicate": "the row is nearly the same as one before it",
    "near_leak": "the measured row is nearly the same as a taught one: its score means little",
}
"""Codes that are about single rows, which can be left out, and what they mean."""
WHOLE: Mapping[str, str] = {
    "very_short_answer": "answers far shorter than the others",
    "very_long_answer": "answers far longer than the others",
    "label_slip": "labels that look like slips of others",
    "empty_label": "rows whose label is empty",
    "label_kinds": "labels of more than one type",
}
"""Codes that are about the data as a whole: no row can be left out by them."""
ANALYSES = ("near_duplicate", "near_leak", "benchmark_overlap")
"""Codes whose analysis costs time of its own: `off` leaves it out. The others come from one pass, always made."""


def check_policies(policies: Mapping[str, str]) -> None:
    """RecipeError with every code and policy that does not exist, or that cannot be had."""
    if faults := [fault for code, policy in policies.items() if (fault := _fault(code, policy)) is not None]:
        raise RecipeError(faults=faults)


def _fault(code: str, policy: str) -> Fault | None:
    where, known = f"data.checks.{code}", [*PER_ROW, *WHOLE]
    had = [each for each in get_args(Policy) if _can_be_had(code, each)]
    if code not in known:
        return Fault(f"there is no finding {code!r}", where, _nearest(code, known))
    if policy not in get_args(Policy):
        return Fault(f"there is no policy {policy!r}", where, _nearest(policy, had))
    if policy in had:
        return None
    why = (
        "is about the data as a whole: no row can be dropped"
        if policy == "drop"
        else "comes from a pass that is always made: it cannot be off"
    )
    return Fault(f"{code!r} {why}", where, _one_of(had))


def _can_be_had(code: str, policy: str) -> bool:
    return not (policy == "drop" and code in WHOLE) and not (policy == "off" and code not in ANALYSES)


def _nearest(name: str, known: list[str]) -> str:
    near = difflib.get_close_matches(str(name), known, n=1)
    return f"did you mean {near[0]!r}?" if near else _one_of(known)


def _one_of(known: list[str]) -> str:
    return f"one of {', '.join(known)}"
