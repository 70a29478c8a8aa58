"""Near-duplicates: recall as stated against exact Jaccard, precision 1, clusters, leaks, adversarial crowds."""

import random
from collections.abc import Iterable

import numpy as np
import pytest

from fulltune.data.doctor.near import BANDS, ROWS, NearFacts, NearIndex
from fulltune.data.doctor.shingles import Signer, jaccard, normalised, plain_text, shingles
from fulltune.data.example import Chat, Message, Text

RANDOM = random.Random(7)
WORDS = ["".join(RANDOM.choices("abcdefghijklmnopqrstuvwxyz", k=RANDOM.randint(3, 8))) for _ in range(2000)]


def prose(words: int = 60) -> list[str]:
    return RANDOM.choices(WORDS, k=words)


def index(texts: Iterable[str], **options: float) -> NearFacts:
    with NearIndex(**options) as made:
        for number, text in enumerate(texts):
            made.add(text, f"f:{number}", text)
        return made.duplicates()


def changed(words: list[str], times: int) -> list[str]:
    words = list(words)
    for at in RANDOM.sample(range(len(words)), times):
        words[at] = RANDOM.choice(WORDS)
    return words


def similarity(one: str, other: str) -> float:
    return jaccard(shingles(normalised(one)), shingles(normalised(other)))


def test_the_stated_recall_and_a_precision_of_one() -> None:
    """Pairs just over the threshold are found as often as the bands promise; none below it is reported."""
    pairs = []
    while len(pairs) < 2000:
        words = prose()
        one, other = " ".join(words), " ".join(changed(words, RANDOM.randint(2, 9)))
        pairs.append((one, other, similarity(one, other)))
    facts = index(text for pair in pairs for text in pair[:2])
    found = {(p.first, p.second) for p in facts.pairs}
    belong = {(f"f:{2 * n}", f"f:{2 * n + 1}"): s for n, (_, _, s) in enumerate(pairs) if s >= 0.8}
    assert found <= belong.keys()
    close = [pair for pair, s in belong.items() if s < 0.85]
    assert len(close) > 200
    stated = 1 - (1 - 0.8**ROWS) ** BANDS
    assert stated > 0.997
    assert sum(pair in found for pair in belong) / len(belong) >= stated - 0.003
    assert sum(pair in found for pair in close) / len(close) >= stated - 0.01
    assert facts.uncompared == 0


def test_similarities_are_those_of_the_exact_sets() -> None:
    words = prose()
    one, other = " ".join(words), " ".join(changed(words, 2))
    (pair,) = index([one, other]).pairs
    assert pair.similarity == round(similarity(one, other), 4)


def test_signatures_agree_as_often_as_sets_overlap() -> None:
    words = prose(200)
    one, other = normalised(" ".join(words)), normalised(" ".join(changed(words, 40)))
    signatures = [Signer(seed).sign([one, other]) for seed in range(30)]
    agreement = np.mean([(s[0] == s[1]).mean() for s in signatures])
    assert agreement == pytest.approx(similarity(one, other), abs=0.025)  # four standard deviations of 3,600 values


def test_a_signature_is_that_of_the_text_alone() -> None:
    """Neither what stands beside it nor where a buffer ends changes it; short and empty texts have one too."""
    texts = [
        "",
        "a",
        "abcd",
        "abcde",
        "x" * 70_000,
        "long " * 30_000,
        " ".join(prose()),
        "日本語のテキスト",
        "\ud83d half",
    ]
    together = Signer().sign(texts)
    for text, signature in zip(texts, together, strict=True):
        assert (Signer().sign([text])[0] == signature).all()


@pytest.mark.parametrize(
    "other",
    [
        "THE TOOL BOX NEEDS A HAMMER AND A SCREWDRIVER, SAID SHE",
        "the  tool box   needs a hammer\nand a screwdriver, said she",
        "the tool-box needs a hammer and a screwdriver; said she?!",
        "Please: the tool box needs a hammer and a screwdriver, said she",
        "the tool box neds a hammer and a screwdriver, said she",
    ],
)
def test_case_spacing_punctuation_a_leading_word_and_a_typo(other: str) -> None:
    facts = index(["something else altogether", "The tool box needs a hammer and a screwdriver, said she", other])
    assert [(p.first, p.second) for p in facts.pairs] == [("f:1", "f:2")]
    assert facts.exact == 0


def test_rows_that_are_the_same_to_the_letter_are_counted_apart() -> None:
    facts = index(["one and the same row", "one and the same row", "another thing"])
    assert (facts.exact, facts.rows, facts.pairs) == (1, 2, ())


def test_clusters_hang_together_and_name_what_to_leave_out() -> None:
    first, second = prose(), prose()
    texts = [" ".join(w) for w in (first, second, first[:-1], prose(), [*second, "x"], ["y", *first])]
    facts = index(texts)
    assert facts.clusters == (("f:0", "f:2", "f:5"), ("f:1", "f:4"))
    assert facts.surplus_places == {"f:2", "f:5", "f:4"}
    assert (facts.affected, facts.surplus, len(facts.pairs)) == (5, 3, 3)


def test_a_crowd_of_one_template_is_one_cluster_without_comparing_all() -> None:
    words = prose(200)
    facts = index(" ".join([*words, str(number)]) for number in range(1000))
    assert len(facts.clusters) == 1 and facts.affected == 1000 and facts.surplus == 999


def test_a_crowd_that_agrees_in_a_band_and_is_not_alike_is_admitted() -> None:
    """What the window of neighbours leaves out is said."""
    shared = " ".join(prose(60))
    facts = index(f"{shared} {' '.join(prose(30))}" for _ in range(400))
    assert facts.uncompared > 0
    assert all(p.similarity >= 0.8 for p in facts.pairs)


def test_repetition_up_to_case_is_one_cluster_and_leaves_nothing_uncompared() -> None:
    text = "yes that is right".split()
    spellings = {" ".join(RANDOM.choice((w, w.upper(), w.title())) for w in text) + "." * n for n in range(300)}
    facts = index(sorted(spellings))
    assert len(facts.clusters) == 1 and facts.affected == 300 and facts.uncompared == 0


def test_unrelated_rows_are_let_be() -> None:
    facts = index(" ".join(prose()) for _ in range(500))
    assert (facts.pairs, facts.clusters, facts.affected) == ((), (), 0)


def test_nothing_at_all() -> None:
    assert index([]).rows == 0
    assert index(["", " ", "?!"]).surplus in (0, 1)


def test_thresholds_that_the_bands_are_not_made_for_are_refused() -> None:
    with pytest.raises(ValueError, match="0.5 to 1"):
        NearIndex(threshold=0.3)


def test_the_same_rows_give_the_same_facts() -> None:
    words = [prose() for _ in range(50)]
    texts = [" ".join(w) for w in words] + [" ".join(changed(w, 2)) for w in words]
    assert index(texts) == index(texts)


def leaks(taught: list[str], measured: list[str]) -> NearFacts:
    with NearIndex() as made:
        for side, texts in enumerate((taught, measured)):
            for number, text in enumerate(texts):
                made.add(text, f"{'tm'[side]}:{number}", text, side)
        return made.leaks()


def test_i9_near_leaks_into_what_is_measured_are_named() -> None:
    """A question that differs in a typo, or not at all, is a leak; copies within one side are none."""
    one, two, three = prose(), prose(), prose()
    taught = [" ".join(w) for w in (one, two, changed(one, 1))]
    measured = [" ".join(w) for w in (three, changed(two, 1), one, [*three, "x"])]
    facts = leaks(taught, measured)
    assert {(p.first, p.second) for p in facts.pairs} == {("t:1", "m:1"), ("t:0", "m:2")}
    assert facts.surplus_places == {"m:1", "m:2"}
    assert (facts.affected, facts.exact) == (2, 0)


def test_i9_a_measured_row_is_found_in_a_crowd_and_every_copy_of_it_too() -> None:
    template = prose(200)
    crowd = [" ".join([*template, str(number)]) for number in range(300)]
    measured = [" ".join([*template, "a"]), " ".join([*template, "A"]), " ".join(prose())]
    facts = leaks([*crowd, *(text.upper() for text in crowd)], measured)
    assert {p.second for p in facts.pairs} == {"m:0", "m:1"}


def test_the_system_prompt_and_nothing_else_is_left_out_of_the_comparison() -> None:
    calls = {"tool_calls": [{"function": {"name": "weather", "arguments": {}}}]}
    turns = (Message("system", "S"), Message("user", "U"), Message("assistant", "", 1.0, calls), Message("tool", "T"))
    text = plain_text(Chat(turns))
    assert "S" not in text and "U" in text and "T" in text and "weather" in text
    assert plain_text(Text("t")) == "t"
