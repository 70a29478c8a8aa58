"""Token ids -> text, token by token, right also where a character lies over several tokens.

A token alone has no text: `▁` is a space only behind another token, and a Chinese character may take three tokens. So
stretches are decoded behind the tokens before them, and tokens that only together make whole characters stay together.
"""

import json
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

_BROKEN = "\N{REPLACEMENT CHARACTER}"
"""What decoders give for bytes that are no whole character (yet)."""
_BYTE = {f"<0x{number:02X}>": bytes([number]) for number in range(256)}

Decode = Callable[[Sequence[int]], str]


@dataclass(frozen=True, slots=True)
class Piece:
    """The tokens [start, stop) of a row, mostly one, and the text that they are; all of them taught, or none."""

    start: int
    stop: int
    text: str
    taught: bool
    special: bool
    """A control token, and not text that merely spells one."""


def pieces(decode: Decode, ids: Sequence[int], taught: Sequence[bool], special: Collection[int]) -> tuple[Piece, ...]:
    """A row as pieces whose texts make up its text. `decode` keeps control tokens and cleans nothing up."""
    made = [
        Piece(start, stop, text, taught[start], ids[start] in special)
        for a, b in _segments(ids, taught, special)
        for start, stop, text in _whole(decode, ids, a, b)
    ]
    if "".join(piece.text for piece in made) == decode(ids):
        return tuple(made)
    # A decoder that looks further back than one piece: whole segments then, each behind all that stands before it.
    coarse = []
    for a, b in _segments(ids, taught, special):
        before, upto = decode(ids[:a]), decode(ids[:b])
        text = upto[len(before) :] if upto.startswith(before) else decode(ids[a:b])
        coarse.append(Piece(a, b, text, taught[a], ids[a] in special))
    joined = "".join(piece.text for piece in coarse)
    return tuple(coarse if joined == decode(ids) else made)


def stretches(row: Sequence[Piece]) -> tuple[str, ...]:
    """The texts of the taught stretches: each is one turn, or a whole document."""
    found: list[str] = []
    for number, piece in enumerate(row):
        if piece.taught and number and row[number - 1].taught:
            found[-1] += piece.text
        elif piece.taught:
            found.append(piece.text)
    return tuple(found)


def _segments(ids: Sequence[int], taught: Sequence[bool], special: Collection[int]) -> Iterator[tuple[int, int]]:
    """Borders that no piece crosses: where teaching begins or ends, and around every control token."""
    start = 0
    for at in range(1, len(ids) + 1):
        if at == len(ids) or taught[at] != taught[at - 1] or ids[at] in special or ids[at - 1] in special:
            yield start, at
            start = at


def _whole(decode: Decode, ids: Sequence[int], a: int, b: int) -> Iterator[tuple[int, int, str]]:
    """A segment cut where characters end. What is broken at its end (a row cut in a character) stays so."""
    start, before = a, max(a - 1, 0)
    shown = decode(ids[before:start])
    if shown.endswith(_BROKEN):  # half a character stands there, which must not swallow ours
        before, shown = start, ""
    for stop in range(a + 1, b + 1):
        text = decode(ids[before:stop])
        if stop == b or (text.startswith(shown) and not text.endswith(_BROKEN)):
            yield start, stop, text[len(shown) :] if text.startswith(shown) else decode(ids[start:stop])
            before, start = start, stop
            shown = decode(ids[before:start])


def byte_reader(decoder: Any) -> Callable[[str], bytes]:
    """From a token as the vocabulary spells it to its bytes, by the kind of the (tokenizers) decoder."""
    kinds = _kinds(json.loads(decoder.__getstate__())) if decoder is not None else set()
    if "ByteLevel" in kinds:
        return _from_byte_level
    if "ByteFallback" in kinds:
        return lambda piece: _BYTE.get(piece) or piece.replace("▁", " ").encode()
    return lambda piece: piece.replace("▁", " ").encode()


def _kinds(decoder: dict[str, Any]) -> set[str]:
    return {str(decoder["type"])}.union(*(_kinds(inner) for inner in decoder.get("decoders", ())))


def _alphabet() -> dict[str, int]:
    """GPT-2's way to write bytes as printable characters: those that are stay, the others follow from U+0100 on."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = (byte for byte in range(256) if byte not in printable)
    return {chr(byte): byte for byte in printable} | {chr(0x100 + n): byte for n, byte in enumerate(others)}


_BYTES = _alphabet()


def _from_byte_level(piece: str) -> bytes:
    # An added token is written as it is, and may hold what the alphabet has no character for.
    return bytes(_BYTES[char] for char in piece) if all(char in _BYTES for char in piece) else piece.encode()
