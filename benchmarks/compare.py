"""Whether two contestants made the same of the same rows: totals first, then token by token."""

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from benchmarks.contestants import dump
from benchmarks.contestants.task import Answer

Flat = NDArray[Any]
_MOST_NAMED = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Agreement:
    """What came out of another contestant beside what came out of fulltune."""

    rows: int
    """Of fulltune's."""
    same_tokens: int
    """Rows that the other has with the same ids."""
    same_taught: int
    """Of these, rows in which the same tokens are taught."""
    ours: tuple[tuple[str, int], ...] = ()
    """Tokens that are taught by fulltune alone, and how often."""
    theirs: tuple[tuple[str, int], ...] = ()

    @property
    def whole(self) -> bool:
        """Whether there is no difference at all."""
        return self.rows == self.same_tokens == self.same_taught


def totals(ours: Answer, theirs: Answer) -> list[str]:
    """One phrase for each total that differs; none if they agree."""
    pairs = {
        "rows": (ours.rows, theirs.rows),
        "tokens": (ours.tokens, theirs.tokens),
        "supervised tokens": (ours.supervised_tokens, theirs.supervised_tokens),
    }
    return [f"{other:,} {what} where fulltune has {own:,}" for what, (own, other) in pairs.items() if own != other]


def compare(ours: Path, theirs: Path, model: Path) -> Agreement:
    """Two dumps, row by row whatever their order. `model`: the folder whose tokenizer names the tokens."""
    other = {ids.tobytes(): taught for ids, taught in _rows(theirs)}
    rows = tokens = taught_alike = 0
    alone: tuple[Counter[int], Counter[int]] = (Counter(), Counter())
    for ids, taught in _rows(ours):
        rows += 1
        found = other.get(ids.tobytes())
        if found is None:
            continue
        tokens += 1
        taught_alike += bool(np.array_equal(taught, found))
        alone[0].update(ids[taught & ~found].tolist())
        alone[1].update(ids[found & ~taught].tolist())
    name = _namer(model)
    ours_alone, theirs_alone = (
        tuple((name(token), count) for token, count in counter.most_common(_MOST_NAMED)) for counter in alone
    )
    return Agreement(rows=rows, same_tokens=tokens, same_taught=taught_alike, ours=ours_alone, theirs=theirs_alone)


def said(agreement: Agreement, name: str) -> str:
    """One sentence."""
    if agreement.whole:
        return f"{name}: the same tokens in all {agreement.rows:,} rows, and the same of them taught."
    parts = [
        f"{name}: the same tokens in {agreement.same_tokens:,} of {agreement.rows:,} rows, "
        f"and in {agreement.same_taught:,} of these the same of them taught"
    ]
    for who, alone in (("fulltune", agreement.ours), (name, agreement.theirs)):
        if alone:
            parts.append(f"taught by {who} alone: " + ", ".join(f"`{token}` {count:,} times" for token, count in alone))
    return "; ".join(parts) + "."


def _rows(folder: Path) -> Iterator[tuple[Flat, Flat]]:
    ids, taught, lengths = dump.read(folder)
    end = 0
    for length in lengths.tolist():
        end += length
        yield ids[end - length : end], taught[end - length : end]


def _namer(model: Path) -> Callable[[int], str]:
    """Names a token by its text, or by its id if the folder has no tokenizer.json."""
    path = model / "tokenizer.json"
    tokenizer = Tokenizer.from_file(str(path)) if path.exists() else None

    def name(token: int) -> str:
        text = tokenizer.id_to_token(token) if tokenizer is not None else None
        return str(token) if text is None else str(text)

    return name
