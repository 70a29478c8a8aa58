"""Near-duplicates: recall as stated against exact Jaccard, precision 1, clusters, leaks, adversarial crowds."""

import random
import re
import tempfile
import tracemalloc
import unicodedata
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fulltune.data.doctor import near_search
from fulltune.data.doctor.near import Near, NearWriter, near_duplicates, near_leaks
from fulltune.data.doctor.shingles import hashed, jaccard, normalised, plain_text, shingles
from fulltune.data.doctor.signatures import (
    BANDS,
    HASHES,
    ROWS,
    Signer,
    band_keys,
    differing,
    most_differing,
    sketches,
)
from fulltune.data.example import Chat, Message, Text

RANDOM = random.Random(7)
WORDS = ["".join(RANDOM.choices("abcdefghijklmnopqrstuvwxyz", k=RANDOM.randint(3, 8))) for _ in range(2000)]


def prose(words: int = 60) -> list[str]:
    return RANDOM.choices(WORDS, k=words)


def searched(
    search: Callable[..., Near], texts: Sequence[str], side: Sequence[int], cuts: Sequence[int] = (), **options: float
) -> Near:
    """Written in parts cut at these rows, and looked at."""
    with tempfile.TemporaryDirectory() as folder:
        bounds = [0, *cuts, len(texts)]
        parts = [Path(folder, str(number)) for number in range(len(bounds) - 1)]
        for part, begin, end in zip(parts, bounds, bounds[1:], strict=False):
            with NearWriter(part) as writer:
                for text in texts[begin:end]:
                    writer.add(text)
        return search(parts, np.array(side, np.int8), **options)


def duplicates(texts: Sequence[str], **options: float) -> Near:
    return searched(near_duplicates, texts, [0] * len(texts), **options)


def leaks(taught: Sequence[str], measured: Sequence[str]) -> Near:
    return searched(near_leaks, [*taught, *measured], [0] * len(taught) + [1] * len(measured))


def pairs(near: Near) -> list[tuple[int, int]]:
    return [(first, second) for first, second in near.pairs.tolist()]


def clusters(near: Near) -> list[list[int]]:
    return [rows.tolist() for rows in np.split(near.clusters, near.ends)][:-1]


def equal(one: Near, other: Near) -> bool:
    arrays = ("pairs", "similarity", "surplus", "clusters", "ends")
    return one.facts(str) == other.facts(str) and all(
        np.array_equal(getattr(one, name), getattr(other, name)) for name in arrays
    )


def changed(words: list[str], times: int) -> list[str]:
    words = list(words)
    for at in RANDOM.sample(range(len(words)), times):
        words[at] = RANDOM.choice(WORDS)
    return words


def grams(text: str) -> set[str]:
    plain = normalised(text)
    return {plain[at : at + 5] for at in range(max(len(plain) - 5, 0) + 1)}


def similarity(one: str, other: str) -> float:
    left, right = grams(one), grams(other)
    return len(left & right) / len(left | right)


def test_the_stated_recall_and_a_precision_of_one() -> None:
    """Pairs just over the threshold are found as often as the bands promise; none below it is reported."""
    made = []
    while len(made) < 2000:
        words = prose()
        one, other = " ".join(words), " ".join(changed(words, RANDOM.randint(2, 9)))
        made.append((one, other, similarity(one, other)))
    near = duplicates([text for pair in made for text in pair[:2]])
    found = set(pairs(near))
    belong = {(2 * n, 2 * n + 1): s for n, (_, _, s) in enumerate(made) if s >= 0.8}
    assert found <= belong.keys()
    close = [pair for pair, s in belong.items() if s < 0.85]
    assert len(close) > 200
    stated = 1 - (1 - 0.8**ROWS) ** BANDS
    assert stated > 0.997
    assert sum(pair in found for pair in belong) / len(belong) >= stated - 0.003
    assert sum(pair in found for pair in close) / len(close) >= stated - 0.01
    assert near.uncompared == 0


def test_the_recall_holds_for_short_rows_too() -> None:
    """Forty characters have fewer shingles than a signature has values."""
    made = []
    while len(made) < 1500:
        words = prose(8)
        other = [*words[:-1], words[-1][:-1]] if RANDOM.random() < 0.5 else [*words, RANDOM.choice("abc")]
        one, two = " ".join(words), " ".join(other)
        made.append((one, two, similarity(one, two)))
    found = set(pairs(duplicates([text for pair in made for text in pair[:2]])))
    belong = {(2 * n, 2 * n + 1) for n, (_, _, s) in enumerate(made) if s >= 0.8}
    assert len(belong) > 1000
    assert sum(pair in found for pair in belong) / len(belong) >= 0.995


TEXTS = st.text(st.sampled_from("abc ABC.\0é日😀\ud83d"), max_size=30)


@given(TEXTS, TEXTS)
@settings(max_examples=300, deadline=None)
def test_similarities_are_those_of_the_exact_sets(one: str, other: str) -> None:
    left, right = shingles(normalised(one)), shingles(normalised(other))
    assert len(left) == len(grams(one)) and (left[1:] > left[:-1]).all()
    short = min(map(len, map(normalised, (one, other)))) < 5  # padded, which a text without letters may look like
    assert short or jaccard(left, right) == similarity(one, other)


def test_no_two_shingles_of_a_large_corpus_share_a_hash() -> None:
    random = np.random.default_rng(0)
    text = "".join(map(chr, random.choice([*range(32, 127), *range(0x4E00, 0x9FFF, 7), 0x1F600], 300_000)))
    distinct = {text[at : at + 5] for at in range(len(text) - 4)}
    assert len(np.unique(hashed([text])[0])) == len(distinct)


def test_signatures_agree_as_often_as_sets_overlap() -> None:
    words = prose(200)
    one, other = normalised(" ".join(words)), normalised(" ".join(changed(words, 40)))
    signatures = [Signer(seed).sign([one, other]) for seed in range(30)]
    exact = similarity(one, other)
    agreement = np.mean([(s[0] == s[1]).mean() for s in signatures])
    assert agreement == pytest.approx(exact, abs=0.025)  # four standard deviations of 3,600 values
    apart = np.mean([differing(sketches(s)[:1], sketches(s)[1:]) for s in signatures])
    assert apart / HASHES == pytest.approx(0.75 * (1 - exact), abs=0.025)


def test_sketches_differ_where_values_do() -> None:
    random = np.random.default_rng(1)
    one = random.integers(1 << 32, size=(200, HASHES), dtype=np.uint32)
    other = np.where(random.random((200, HASHES)) < random.random((200, 1)), one, one + np.uint32(1 << 20))
    bits = [(values * np.uint32(0x9E3779B1)) >> np.uint32(30) for values in (one, other)]
    assert np.array_equal(differing(sketches(one), sketches(other)), (bits[0] != bits[1]).sum(axis=1))
    assert differing(sketches(one), sketches(one)).tolist() == [0] * 200
    assert (most_differing(1.0), most_differing(0.8), most_differing(0.0)) == (0, 18, 90)


def test_band_keys_are_equal_where_bands_are() -> None:
    random = np.random.default_rng(2)
    one = random.integers(1 << 32, size=(300, HASHES), dtype=np.uint32)
    other = one.copy()
    places = random.integers(HASHES, size=300)
    other[np.arange(300), places] ^= np.uint32(1)
    same = band_keys(one) == band_keys(other)
    expected = np.ones((300, BANDS + 1), bool)
    expected[np.arange(300), places // ROWS] = expected[:, BANDS] = False
    assert np.array_equal(same, expected)


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


def plainly(text: str) -> str:
    """`normalised`, in the words of its docstring."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    return re.sub(r"[\W_]+", " ", folded).strip() or " ".join(folded.split())


@given(st.text(st.characters(max_codepoint=0x2FF)) | st.text(st.characters(max_codepoint=127)))
@settings(max_examples=300)
def test_the_short_way_for_ascii_is_the_long_one(text: str) -> None:
    assert normalised(text) == plainly(text)


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
    near = duplicates(["something else altogether", "The tool box needs a hammer and a screwdriver, said she", other])
    assert pairs(near) == [(1, 2)]


def test_clusters_hang_together_and_name_what_to_leave_out() -> None:
    first, second = prose(), prose()
    near = duplicates([" ".join(w) for w in (first, second, first[:-1], prose(), [*second, "x"], ["y", *first])])
    assert clusters(near) == [[0, 2, 5], [1, 4]]
    assert near.surplus.tolist() == [2, 4, 5]
    assert (near.affected, len(near.pairs)) == (5, 3)


def test_rows_that_are_left_out_are_not_compared() -> None:
    texts = [" ".join(prose())] * 4
    assert pairs(searched(near_duplicates, texts, [-1, 0, 1, 0])) == [(1, 3)]
    assert pairs(searched(near_leaks, texts, [-1, 0, 1, -1])) == [(1, 2)]


def test_a_record_names_the_first_and_counts_all() -> None:
    words = [prose() for _ in range(60)]
    texts = [" ".join(w) for w in words] + [" ".join([*w, "x"]) for w in words] + [" ".join([*words[3], "y"])]
    facts = duplicates(texts).facts("row {}".format, exact=7)
    assert (facts.rows, facts.exact, facts.affected, facts.surplus, facts.clusters_in_all) == (121, 7, 121, 61, 60)
    assert len(facts.pairs) == len(facts.clusters) == 20
    assert facts.clusters[0] == ("row 3", "row 63", "row 120")
    assert facts.pairs[0].first == "row 0" and facts.pairs[0].second == "row 60"
    assert facts.pairs[0].similarity == round(similarity(texts[0], texts[60]), 4)


def test_a_crowd_of_one_template_is_one_cluster_without_comparing_all() -> None:
    words = prose(200)
    near = duplicates([" ".join([*words, str(number)]) for number in range(1000)])
    assert len(near.ends) == 1 and near.affected == 1000 and len(near.surplus) == 999
    assert near.uncompared == 0


def test_a_crowd_that_agrees_in_a_band_and_is_not_alike_is_admitted() -> None:
    """What the window of neighbours leaves out is said."""
    shared = " ".join(prose(60))
    near = duplicates([f"{shared} {' '.join(prose(30))}" for _ in range(400)])
    assert near.uncompared > 0
    assert (near.similarity >= 0.8).all()


def test_pairs_in_a_crowd_of_one_instruction_are_found() -> None:
    """Half of every row is one text; the pairs among them are compared before the tries of their rows are spent."""
    shared = " ".join(prose(60))
    words = [prose(60) for _ in range(300)]
    near = duplicates([f"{shared} {' '.join(w)}" for w in words + [changed(w, 3) for w in words]])
    assert {(n, n + 300) for n in range(300)} == set(pairs(near))


def test_repetition_up_to_case_is_one_cluster_and_leaves_nothing_uncompared() -> None:
    text = "yes that is right".split()
    spellings = {" ".join(RANDOM.choice((w, w.upper(), w.title())) for w in text) + "." * n for n in range(300)}
    near = duplicates(sorted(spellings))
    assert len(near.ends) == 1 and near.affected == 300 and near.uncompared == 0


def test_unrelated_rows_are_let_be() -> None:
    near = duplicates([" ".join(prose()) for _ in range(500)])
    assert (len(near.pairs), len(near.clusters), len(near.ends), near.affected) == (0, 0, 0, 0)


@pytest.mark.parametrize("texts", [[], [""], ["one"], ["", " ", "?!"]])
def test_next_to_nothing(texts: list[str]) -> None:
    assert duplicates(texts).rows == len(texts)
    assert leaks([], texts).rows == leaks(texts, texts).rows == len(texts)
    assert duplicates(texts).facts(str).rows == len(texts)


def test_what_the_search_is_not_made_for_is_refused() -> None:
    for search in (near_duplicates, near_leaks):
        with pytest.raises(ValueError, match="0.5 to 1"):
            search([], np.empty(0, np.int8), threshold=0.3)
        with pytest.raises(ValueError, match="2 sides for 0 rows"):
            search([], np.zeros(2, np.int8))


@pytest.mark.parametrize("cuts", [(), (1,), (0, 0, 256, 257, 300), (100, 200, 520)])
def test_the_same_rows_give_the_same_however_they_are_cut(cuts: tuple[int, ...]) -> None:
    source = random.Random(3)
    words = [source.choices(WORDS, k=40) for _ in range(200)]
    copies = [" ".join([*w, str(n)]) for n, w in enumerate(words)]
    crowd = [" ".join([*words[0], *source.choices(WORDS, k=12)]) for _ in range(120)]
    texts = [*(" ".join(w) for w in words), *copies, *crowd, "日本語のテキスト", "日本語のテキスト!"]
    side = [source.choice((0, 0, 0, 1, -1)) for _ in texts]
    for search in (near_duplicates, near_leaks):
        whole = searched(search, texts, side)
        assert len(whole.pairs) > 20
        assert equal(searched(search, texts, side, cuts), whole)


def test_many_parts_do_not_use_up_the_files_that_may_be_open(tmp_path: Path) -> None:
    parts = [tmp_path / str(number) for number in range(150)]
    for number, part in enumerate(parts):
        with NearWriter(part) as writer:
            writer.add("the very same text, but for a letter" + "." * (number % 2))
    near = near_duplicates(parts, np.zeros(150, np.int8))
    assert near.affected == 150


@pytest.mark.slow
def test_memory_of_the_search_is_that_of_its_rows_and_not_of_their_texts_or_pairs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The case that takes most, all rows alike; the difference of two sizes, so without what is constant."""
    monkeypatch.setattr(near_search, "_CHUNK", 256)
    peaks = []
    for rows in (1_000, 4_000):
        parts = [tmp_path / f"{rows}-{number}" for number in range(rows // 1_000)]
        for part in parts:
            with NearWriter(part) as writer:
                for number in range(1_000):
                    writer.add(f"all of these rows are like each other, but for a number, such as {part.name} {number}")
        tracemalloc.start()
        near = near_duplicates(parts, np.zeros(rows, np.int8))
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert near.affected == rows
    assert (peaks[1] - peaks[0]) / 3_000 < 120


def test_i9_near_leaks_into_what_is_measured_are_named() -> None:
    """A question that differs in a typo, or not at all, is a leak; copies within one side are none."""
    one, two, three = prose(), prose(), prose()
    taught = [" ".join(w) for w in (one, two, changed(one, 1))]
    measured = [" ".join(w) for w in (three, changed(two, 1), one, [*three, "x"])]
    near = leaks(taught, measured)
    assert pairs(near) == [(0, 5), (1, 4)]
    assert near.surplus.tolist() == [4, 5] and near.affected == 2
    assert clusters(near) == [[0, 5], [1, 4]]


def test_i9_a_measured_row_is_found_in_a_crowd_and_every_copy_of_it_too() -> None:
    template = prose(200)
    crowd = [" ".join([*template, str(number)]) for number in range(300)]
    measured = [" ".join([*template, "a"]), " ".join([*template, "A"]), " ".join(prose())]
    assert leaks([*crowd, *(text.upper() for text in crowd)], measured).surplus.tolist() == [600, 601]


def test_i9_a_leak_is_found_where_all_rows_share_an_instruction() -> None:
    shared = " ".join(prose(40))
    words = [prose(60) for _ in range(400)]
    measured = [changed(w, 2) for w in words[::4]]
    near = leaks([f"{shared} {' '.join(w)}" for w in words], [f"{shared} {' '.join(w)}" for w in measured])
    assert pairs(near) == [(4 * n, 400 + n) for n in range(100)]


def test_the_system_prompt_and_nothing_else_is_left_out_of_the_comparison() -> None:
    calls = {"tool_calls": [{"function": {"name": "weather", "arguments": {}}}]}
    turns = (Message("system", "S"), Message("user", "U"), Message("assistant", "", 1.0, calls), Message("tool", "T"))
    text = plain_text(Chat(turns))
    assert "S" not in text and "U" in text and "T" in text and "weather" in text
    assert plain_text(Text("t")) == "t"
