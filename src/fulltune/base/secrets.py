"""Secrets are not written down: what the environment, a recipe or an address hold of them becomes `***`."""

import json
import os
import re
import shlex
from collections.abc import Mapping, Sequence
from functools import cache, lru_cache
from pathlib import Path
from typing import Any
from urllib.parse import quote

MASK = "***"
_SHORTEST = 8
"""Characters of a secret in the environment; what is shorter stands in many words."""
_SHORTEST_NAMED = 6
"""Of one that a key names: `data.checks` has keys such as `api_key`, whose values are `error` at the longest."""

_VARIABLE = re.compile(r"token(?!iz)|key(?!board|map)|secret|password|credential|auth(?!or(?!iz))", re.IGNORECASE)
"""Names of environment variables that hold secrets; TOKENIZERS_PARALLELISM and GIT_AUTHOR_NAME hold none."""
_KEY = re.compile(
    r"\w*(?:secret|passwo?r?d|passphrase|api_?key|access_?key|credentials?)(?![a-z]).*"
    r"|(?:.*[^a-z])?(?:token|key|pass|pwd|auth|authorization|bearer)\d*",
    re.IGNORECASE | re.DOTALL,
)
"""Keys of mappings whose values are secrets: `hf_token` and `client_secret_2`, not `max_tokens` or `key_column`."""

_SHAPE = re.compile(
    r"(?<![A-Za-z0-9])(?:"
    r"hf_[A-Za-z0-9]{20,}"
    r"|sk-(?=[A-Za-z0-9_-]*\d)[A-Za-z0-9_-]{20,}"  # OpenAI, Anthropic; without a digit it is a name
    r"|(?:sk|rk)_(?:live|test)_[A-Za-z0-9]{16,}"  # Stripe
    r"|gh[pousr]_[A-Za-z0-9]{30,}|github_pat_[A-Za-z0-9_]{20,}|glpat-[A-Za-z0-9_-]{20,}"
    r"|(?:AKIA|ASIA)[A-Z0-9]{16}"  # AWS
    r"|xox[abeprs]-[A-Za-z0-9-]{10,}"  # Slack
    r"|AIza[A-Za-z0-9_-]{35}"  # Google
    r"|eyJ[\w-]{10,}\.eyJ[\w-]{10,}\.[\w-]+"  # a JSON web token (RFC 7519)
    r"|-----BEGIN (?:[A-Z0-9]+ )*PRIVATE KEY-----.*?(?:-----END (?:[A-Z0-9]+ )*PRIVATE KEY-----|\Z)"
    r")",
    re.DOTALL,
)
_LOGIN = re.compile(r"(://)[^/?#\s'\"@:]*:[^/?#\s'\"]*@")
"""`https://user:password@host`, whose password may hold an @ too."""
_BARE_LOGIN = re.compile(rf"((?:^|[\s/'\"])[^\s/:@'\"]*:)[^\s/?#:@'\"]{{{_SHORTEST_NAMED},}}(?=@[\w.-])")
"""What is left of it where the library of a file system tells of an address by its path."""
_QUERY = re.compile(
    r"([?&](?:[\w.%-]*[_.-])?(?:token|key|apikey|secret|passwo?r?d|pwd|credential|auth|sig|signature)=)[^&#\s'\"]+",
    re.IGNORECASE,
)
"""`?token=...` and the parts of a signed address, such as X-Amz-Signature."""
_TOLD = re.compile(
    r"((?:secret|passwo?r?d|passphrase|api_?key|access_?key|credentials?|authorization"
    r"|(?:api|auth|access|refresh|session|hf|hub)_?token|[\"'](?:token|auth)(?=[\"']))[\"']?\s*[:=]\s*[\"']?"
    rf"(?:(?:bearer|basic)\s+)?)(?!(?:bearer|basic)\s)[^\s\"',}}&*]{{{_SHORTEST_NAMED},}}",
    re.IGNORECASE,
)
"""`api_key=...` or `'token': '...'` in the middle of a text, such as the message of another library."""


def masked(text: str) -> str:
    """The text with `***` where a secret stood: one of the environment, or what looks like one."""
    return _masked(text, _environment())


def _masked(text: str, own: re.Pattern[str] | None) -> str:
    if own is not None:
        text = own.sub(MASK, text)
    text = _SHAPE.sub(MASK, text)
    text = _BARE_LOGIN.sub(rf"\1{MASK}", _LOGIN.sub(rf"\1{MASK}@", text))
    return _TOLD.sub(rf"\1{MASK}", _QUERY.sub(rf"\1{MASK}", text))


def masked_tree(value: Any, *, keys: bool = True) -> Any:
    """JSON-like values with every text in them masked, and every text whose key names a secret.

    `keys=False`: keys are our own words, such as the note `duplicate_key`, and say nothing of secrets.
    """
    return _masked_tree(value, _environment(), keys)


def _masked_tree(value: Any, own: re.Pattern[str] | None, keys: bool) -> Any:
    if isinstance(value, Mapping):
        return {
            _masked(key, own) if isinstance(key, str) else key: MASK
            if keys and isinstance(inner, str) and len(inner) >= _SHORTEST_NAMED and _KEY.fullmatch(str(key))
            else _masked_tree(inner, own, keys)
            for key, inner in value.items()
        }
    if isinstance(value, list | tuple):
        return [_masked_tree(inner, own, keys) for inner in value]
    return _masked(value, own) if isinstance(value, str) else value


def masked_command(arguments: Sequence[str]) -> str:
    """A command as it may be shown: also what stands behind `--api-key` and `TOKEN=`."""
    shown: list[str] = []
    for before, word in zip(("", *arguments), arguments, strict=False):
        name, equals, value = word.partition("=")
        if equals and _hides(name, value):
            shown.append(f"{name}={MASK}")
        else:
            shown.append(MASK if before.startswith("-") and _hides(before, word) else shlex.quote(masked(word)))
    return " ".join(shown)


def _hides(option: str, value: str) -> bool:
    """Whether the name of an option says that its value is one."""
    name = option.lstrip("-").replace("-", "_")
    return bool(masked_tree({name: value}) == {name: MASK}) and not value.startswith("-")


def _environment() -> re.Pattern[str] | None:
    """What finds the secrets that environment variables hold now; None if there are none."""
    found = {os.environ.get(name, "") for name in os.environ if _is_secret(name)}
    return _any_of(frozenset(value for value in found if len(value) >= _SHORTEST and not _is_place(value)))


@cache
def _is_secret(name: str) -> bool:
    return _VARIABLE.search(name) is not None


@lru_cache(maxsize=8)
def _any_of(values: frozenset[str]) -> re.Pattern[str] | None:
    """Each value as it is, as an address spells it and as JSON does; the longest first, which may hold another."""
    spelled = {spelt for value in values for spelt in (value, quote(value, safe=""), json.dumps(value)[1:-1])}
    return re.compile("|".join(map(re.escape, sorted(spelled, key=len, reverse=True)))) if spelled else None


@cache
def _is_place(value: str) -> bool:
    """Whether this is a path that exists, such as that of a socket (SSH_AUTH_SOCK), and no secret."""
    try:
        return value.startswith(("/", "~/")) and Path(value).expanduser().exists()
    except OSError:  # too long for a name
        return False
