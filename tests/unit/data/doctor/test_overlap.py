"""Word n-grams shared with benchmark texts: the check of GPT-3, against a plain one over sets of tuples."""

import random

import pytest

from fulltune.data.doctor.overlap import Overlap

QUESTION = "Natalia sold clips to 48 of her friends in April, and then she sold half as many clips in May."


def test_a_quoted_question_is_found_whatever_its_case_and_punctuation() -> None:
    overlap = Overlap([("b:1", QUESTION), ("b:2", "too short")])
    assert overlap.add("Answer this: " + QUESTION.upper().replace(",", " -") + " How many altogether?", "t:1") == 8
    assert overlap.add(" ".join(QUESTION.split()[:12]), "t:2") == 0
    facts = overlap.facts
    assert (facts.rows, facts.rows_hit, facts.share, facts.places) == (2, 1, 0.5, ("t:1",))
    assert (facts.texts, facts.texts_hit, facts.texts_share, facts.texts_places) == (2, 1, 1.0, ("b:1",))
    assert facts.texts_too_short == 1


@pytest.mark.parametrize("ngram", [1, 3, 13])
def test_the_same_hits_as_sets_of_tuples(ngram: int) -> None:
    source = random.Random(ngram)

    def row() -> list[str]:
        return source.choices(
            "a b c d e".split() if ngram > 1 else [str(n) for n in range(300)], k=source.randint(0, 30)
        )

    def grams(words: list[str]) -> list[tuple[str, ...]]:
        return [tuple(words[at : at + ngram]) for at in range(len(words) - ngram + 1)]

    benchmark = [row() for _ in range(40)]
    held = {gram for words in benchmark for gram in grams(words)}
    overlap = Overlap([(str(n), " ".join(words)) for n, words in enumerate(benchmark)], ngram=ngram)
    taught = [row() for _ in range(40)] + [benchmark[3] + row(), benchmark[3]]
    for words in taught:
        assert overlap.add(" ".join(words), "t") == sum(gram in held for gram in grams(words))
    seen = {gram for words in taught for gram in grams(words)}
    assert overlap.facts.texts_hit == sum(any(gram in seen for gram in grams(words)) for words in benchmark)


def test_no_benchmark_and_no_rows() -> None:
    empty = Overlap([])
    assert empty.add(QUESTION, "t") == 0
    assert Overlap([("b", QUESTION)]).facts.share == 0
    with pytest.raises(ValueError, match="at least one word"):
        Overlap([], ngram=0)
