"""Corpus metrics of translation: BLEU by sacrebleu, and chrF; both from sums that add up over questions."""

from collections import Counter
from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import numpy as np

from fulltune.base.errors import RecipeError
from fulltune.evaluation.answers import Answer, Items, Kind, Reference, required
from fulltune.evaluation.texts import missing

_ORDER = 6
"""Longest n-grams of characters that chrF counts (Popovic 2015)."""
_BETA = 2
"""chrF weighs recall twice as much as precision."""


class Bleu:
    """BLEU of the corpus, 0 to 100 (Papineni 2002, as sacrebleu has it: 13a words, exponential smoothing).

    A question's own score is sacrebleu's sentence BLEU. `tokenize`: how sacrebleu cuts words (`13a`, `zh`, `char`...).
    """

    for_kinds: ClassVar[tuple[Kind, ...]] = ("answer",)
    better: ClassVar[Literal["higher", "lower"]] = "higher"

    def __init__(self, *, tokenize: str = "13a") -> None:
        try:
            from sacrebleu.metrics.bleu import BLEU
        except ImportError as fault:
            raise missing("sacrebleu") from fault
        if tokenize not in BLEU.TOKENIZERS:
            known = ", ".join(sorted(BLEU.TOKENIZERS))
            raise RecipeError(f"sacrebleu has no tokenizer {tokenize!r}", where="tokenize", mend=f"one of {known}")
        self._sentence: Any = BLEU(tokenize=tokenize, effective_order=True)

    def items(self, answers: Sequence[Answer], references: Sequence[Reference]) -> list[list[float]]:
        made = []
        for answer, reference in zip(answers, references, strict=True):
            found = self._sentence.sentence_score(answer.text, list(required(reference.texts)))
            made.append([found.score, found.sys_len, found.ref_len, *found.counts, *found.totals])
        return made

    def total(self, items: Items) -> float:
        said, wanted, *grams = items[:, 1:].sum(0).astype(int).tolist()
        half = len(grams) // 2
        return float(self._sentence.compute_bleu(grams[:half], grams[half:], said, wanted, smooth_method="exp").score)


class ChrF:
    """chrF of the corpus, 0 to 100: F of the character n-grams up to six, white space aside (Popovic 2015).

    Of several references the best counts. A question's own score is its own chrF.
    """

    for_kinds: ClassVar[tuple[Kind, ...]] = ("answer",)
    better: ClassVar[Literal["higher", "lower"]] = "higher"

    def items(self, answers: Sequence[Answer], references: Sequence[Reference]) -> list[list[float]]:
        made = []
        for answer, reference in zip(answers, references, strict=True):
            said = _grams(answer.text)
            counts = [_counts(said, _grams(text)) for text in required(reference.texts)]
            best = max(counts, key=_f_score)
            made.append([_f_score(best), *best])
        return made

    def total(self, items: Items) -> float:
        return _f_score(items[:, 1:].sum(0).tolist())


def _grams(text: str) -> list[Counter[str]]:
    """The n-grams of each order."""
    letters = "".join(text.split())
    return [Counter(letters[at : at + n] for at in range(len(letters) - n + 1)) for n in range(1, _ORDER + 1)]


def _counts(said: Sequence[Counter[str]], wanted: Sequence[Counter[str]]) -> list[float]:
    """For each order how many n-grams were said, were wanted, and are shared."""
    found: list[float] = []
    for one, other in zip(said, wanted, strict=True):
        # As in sacrebleu: what is said where the reference has nothing of this length does not count.
        found += [one.total() if other else 0, other.total(), (one & other).total()]
    return found


def _f_score(counts: Sequence[float]) -> float:
    """Precision and recall are means over the orders that both sides have; one number of the two."""
    table = np.array(counts).reshape(_ORDER, 3)
    table = table[(table[:, 0] > 0) & (table[:, 1] > 0)]
    if not len(table):
        return 0.0
    precision, recall = (table[:, 2] / table[:, 0]).mean(), (table[:, 2] / table[:, 1]).mean()
    if precision + recall == 0:
        return 0.0
    return float(100 * (1 + _BETA**2) * precision * recall / (_BETA**2 * precision + recall))
