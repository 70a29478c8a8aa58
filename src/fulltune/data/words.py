"""Plain text -> token ids by looking up its words, whose tokens the library made when it first met them.

A byte-level BPE tokenizer cuts a text into words by a regular expression and merges inside of each word alone, so a
word has the same tokens wherever it stands. The library looks that up too, but copies and counts characters on its way,
and takes four to five times as long. Only tokenizers of which all parts are known are read this way, and only texts of
printable ASCII, tabs, line breaks and a few signs that are common in English; for everything else the library is asked.
"""

import json
import re
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
"""The expression that a ByteLevel pre-tokenizer has of its own."""
_APART = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?[^\s\p{L}\p{N}]+|\s+(?![^\s\p{N}])|\s+"
"""The same between numbers that were cut out before."""
_NUMBER = re.compile(r"(?:\\d|\\p\{N\}|\[0-9\])(\+|\{1,[1-9]\})?")
"""Expressions for numbers and nothing else, with how many digits each may have."""
_PROPERTIES = {"L": "A-Za-z", "N": "0-9", "Lu": "A-Z", "Ll": "a-z", "Lt": "", "Lm": "", "Lo": "", "M": ""}
"""What of the Unicode properties is ASCII."""
_SIGNS = "‘’“”–—•€£¢°×÷−®©"
"""No letters, numbers or white space, and left alone by all normalisers, so that they are cut like `~` is."""
_ODD = re.compile(rf"[^\t\n\r -~{_SIGNS}]")
_LIKE = str.maketrans(_SIGNS, "~" * len(_SIGNS))
_BYTES = {byte: 256 + number for number, byte in enumerate([*range(33), *range(127, 161), 173])}
"""How the byte-level alphabet writes bytes that are not printable in Latin-1; the others stand for themselves."""
_SIZE = np.dtype(np.int32).itemsize
_MOST = 1 << 18
"""Words that are remembered, some hundred bytes each."""
_SAMPLES = (
    "Hello world! It's 12:30, isn't it?  Two  spaces,\ttabs\nand\n\n\r\nlines   \n  end ",
    "def f(x_1):\n    return {'a': [1, 22, 333, 4444], \"b\": x**2 // 3}  # why?? __init__ ...\n",
    f"It’s “odd”, isn’t it? 5 €×3 – £4— a’b ’s  ’t\n’\n\n”\r\n{_SIGNS} x{' '.join(_SIGNS)} {'1'.join(_SIGNS)}",
    "WE'LL we'LL don'T ALLCAPS CamelCase snake_case 3.14e-10 $5,000 50% a/b\\c <tag> & ~`^|\n \n\t\t x",
)


@dataclass(frozen=True, slots=True)
class Looked:
    """The tokens of a text; `marks`: where an added token begins -> its index, and the character behind it."""

    numbers: NDArray[np.int32]
    marks: dict[int, tuple[int, int]]
    text: str
    backend: Tokenizer

    @property
    def offsets(self) -> list[tuple[int, int]]:
        """The characters of every token, as the library tells them."""
        return list(self.backend.encode(self.text, add_special_tokens=False).offsets)

    def exactly(self, start: int, end: int, number: int) -> int | None:
        """Which token is this added one and stands for exactly these characters; None if there is none."""
        index, stop = self.marks.get(start, (-1, -1))
        return index if stop == end and self.numbers[index] == number else None


class _Unspelled(Exception):
    """A word's tokens do not spell it."""


class Known(dict[str, bytes]):
    """Words and their tokens, an int32 each: bytes are put together sooner than lists of numbers. It learns itself."""

    def __init__(self, backend: Tokenizer) -> None:
        super().__init__()
        self._model = backend.model

    def __missing__(self, word: str) -> bytes:
        """By the library's own merges. _Unspelled if they do not spell it."""
        spelled = word.encode().decode("latin-1").translate(_BYTES)
        made = self._model.tokenize(spelled)
        if sum(len(token.value) for token in made) != len(spelled):
            raise _Unspelled
        if len(self) >= _MOST:
            self.clear()
        found = _int32(*(token.id for token in made))
        self[word] = found
        return found


@dataclass(slots=True)
class Words:
    """Encodes texts with one tokenizer. Make it by `words_of`, which says whether that can be done."""

    backend: Tokenizer
    cut: re.Pattern[str]
    added: re.Pattern[str] | None
    ids: dict[str, bytes]
    """Of the added tokens, each an int32."""
    known: "Known"

    def encode(self, text: str) -> Looked | None:
        """None if the library must be asked."""
        if _ODD.search(text):
            return None
        pieces: list[bytes] = []
        marks: dict[int, tuple[int, int]] = {}
        at = count = 0
        for plain, token in self._chunks(text):
            words = self._words(plain)
            if sum(map(len, words)) != len(plain):
                return None  # the expression leaves something out
            try:
                found = b"".join(map(self.known.__getitem__, words))
            except _Unspelled:
                return None
            pieces.append(found)
            at, count = at + len(plain), count + len(found) // _SIZE
            if token:
                marks[at] = count, at + len(token)
                pieces.append(self.ids[token])
                at, count = at + len(token), count + 1
        return Looked(np.frombuffer(b"".join(pieces), np.int32), marks, text, self.backend)

    def _words(self, plain: str) -> list[str]:
        if plain.isascii():
            return self.cut.findall(plain)
        return [plain[slice(*found.span())] for found in self.cut.finditer(plain.translate(_LIKE))]

    def _chunks(self, text: str) -> Iterator[tuple[str, str]]:
        """Text without added tokens, and the one behind it, in turn."""
        if self.added is None:
            yield text, ""
            return
        pieces = self.added.split(text)
        yield from zip(pieces[::2], [*pieces[1::2], ""], strict=True)


def words_of(backend: Tokenizer) -> Words | None:
    """None for a tokenizer that has parts which are not known here, or that a trial shows to work otherwise."""
    parts = json.loads(backend.to_str())
    pattern = _expression(parts["pre_tokenizer"])
    model, added = parts["model"], parts["added_tokens"]
    fits = model["type"] == "BPE" and not model.get("dropout") and _keeps_ascii(parts["normalizer"])
    if pattern is None or not fits or not _simple(added):
        return None
    names = sorted((token["content"] for token in added), key=len, reverse=True)
    made = Words(
        backend,
        pattern,
        re.compile(f"({'|'.join(map(re.escape, names))})") if names else None,
        {token["content"]: _int32(token["id"]) for token in added},
        Known(backend),
    )
    texts = [*_SAMPLES, *(f"{name} a {name}\n{name}b" for name in names[:50])]
    return made if all(_agrees(made, text) for text in texts) else None


def _int32(*ids: int) -> bytes:
    return array("i", ids).tobytes()


def _agrees(words: Words, text: str) -> bool:
    looked = words.encode(text)
    return looked is None or looked.numbers.tolist() == words.backend.encode(text, add_special_tokens=False).ids


def _keeps_ascii(normalizer: dict[str, Any] | None) -> bool:
    """Whether ASCII stays as it is, as in all of Unicode's own forms."""
    return normalizer is None or normalizer["type"] in ("NFC", "NFD", "NFKC", "NFKD")


def _simple(added: Sequence[dict[str, Any]]) -> bool:
    """Whether the first and longest of the added tokens is taken wherever one stands, and nothing around it."""
    names = {kind: [token["content"] for token in added if token["normalized"] is kind] for kind in (True, False)}
    plain = not any(token["lstrip"] or token["rstrip"] or token["single_word"] for token in added)
    # Those of one kind are taken out of the text before the others are looked for.
    apart = not any(_overlap(one, other) for one, other in product(names[True], names[False]))
    return plain and apart and all(name and name == name.strip() for each in names.values() for name in each)


def _overlap(one: str, other: str) -> bool:
    """Whether two tokens may share characters of a text."""
    sizes = range(1, min(len(one), len(other)) + 1)
    ends = any(one[-size:] == other[:size] or other[-size:] == one[:size] for size in sizes)
    return ends or one in other or other in one


def _expression(pre: dict[str, Any] | None) -> re.Pattern[str] | None:
    """What cuts ASCII text into words as the pre-tokenizer does; None if it is of another kind."""
    steps = [] if pre is None else pre["pretokenizers"] if pre["type"] == "Sequence" else [pre]
    if not steps or steps[-1]["type"] != "ByteLevel" or steps[-1]["add_prefix_space"]:
        return None
    if len(steps) == 1:
        return _translated(_GPT2) if steps[0]["use_regex"] else None
    first = _isolated(steps[0]) if len(steps) == 2 else None
    if first is None:
        return None
    if not steps[1]["use_regex"]:
        return _translated(first)
    number = _NUMBER.fullmatch(first)
    return None if number is None else _translated(rf"\p{{N}}{number[1] or ''}|{_APART}")


def _isolated(step: dict[str, Any]) -> str | None:
    """The expression for what a step makes words of, whatever lies between; None if it does something else."""
    match step:
        case {"type": "Digits", "individual_digits": alone}:
            return r"\d" if alone else r"\d+"
        case {"type": "Split", "behavior": "Isolated", "invert": False, "pattern": {"Regex": str(expression)}}:
            return expression
    return None


def _translated(pattern: str) -> re.Pattern[str] | None:
    """A regular expression with its Unicode properties written out for ASCII; None if it has others."""
    out, inside = [], False
    for piece in re.findall(r"\\p\{\w+\}|\\P\{\w+\}|\\.|.", pattern, re.DOTALL):
        if piece == "[":
            inside = True
        elif piece == "]":
            inside = False
        if piece.startswith("\\p{"):
            letters = _PROPERTIES.get(piece[3:-1])
            if letters is None or (not letters and not inside):
                return None
            piece = letters if inside else f"[{letters}]"
        elif piece.startswith("\\P{"):
            return None
        out.append(piece)
    try:
        made = re.compile("".join(out), re.ASCII)
    except re.error:
        return None
    return made if made.groups == 0 else None
