"""One pass over examples: what is counted, where it is said to stand, and that no text gets into a record."""

import itertools
import json
import random
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fulltune.base.files import to_json
from fulltune.data.doctor.damage import _DAMAGE as DAMAGE_PATTERNS
from fulltune.data.doctor.damage import damage, repetition
from fulltune.data.doctor.language import language
from fulltune.data.doctor.private import _COUNTS as PRIVATE_COUNTS
from fulltune.data.doctor.private import luhn, private
from fulltune.data.doctor.survey import Survey, SurveyFacts
from fulltune.data.example import Chat, Content, Message, Text


def chat(question: str, *answers: str, system: str = "") -> Chat:
    turns = [Message("system", system)] if system else []
    for answer in answers:
        turns += [Message("user", question), Message("assistant", answer)]
    return Chat(tuple(turns))


def surveyed(*contents: Content) -> SurveyFacts:
    survey = Survey()
    for number, content in enumerate(contents, 1):
        survey.add(content, f"f:{number}")
    return survey.facts


def test_turns_answers_and_lengths() -> None:
    facts = surveyed(chat("q", "abc", "abcde", system="be kind"), chat("q", "ab"), Text("abcd"))
    assert (facts.examples, facts.chats, facts.answers) == (3, 2, 4)
    assert facts.turns == {"2": 1, "4": 1}
    assert facts.characters == {"min": 2, "p50": 3, "p90": 5, "p99": 5, "max": 5}
    assert facts.found == {}


def test_empty_answers_but_not_those_that_call_a_tool_or_are_not_taught() -> None:
    call = Message("assistant", "", 1.0, {"tool_calls": []})
    facts = surveyed(
        chat("q", ""),
        chat("q", " \n\u200b\u2060"),
        chat("q", "."),
        Chat((Message("user", "q"), call)),
        Chat((Message("user", "q"), Message("assistant", "", 0.0), Message("user", "q"), Message("assistant", "a"))),
    )
    assert facts.found["empty_answer"].places == ("f:1", "f:2")


def test_very_short_and_very_long_answers_by_robust_quartiles() -> None:
    source = random.Random(0)
    lengths = [source.randint(80, 120) for _ in range(200)]
    lengths[17], lengths[99], lengths[150] = 1, 5, 100_000
    facts = surveyed(*(chat("q", "a" * length) for length in lengths))
    assert facts.found["very_short_answer"].places == ("f:18", "f:100")
    assert facts.found["very_long_answer"].places == ("f:151",)
    assert 5 < facts.short_below < 80 and 120 < facts.long_above < 100_000


@pytest.mark.parametrize("lengths", [[4] * 50, [2, 3] * 50, [4, 8] * 30, [1], [1, 10_000]])
def test_even_lengths_and_few_of_them_have_no_outliers(lengths: list[int]) -> None:
    assert surveyed(*(chat("q", "a" * length) for length in lengths)).found == {}


def test_a_row_counts_once_and_its_occurrences_all() -> None:
    found = surveyed(chat("a@b.org and c@d.org", "to e@f.org"), chat("x", "y")).found
    assert (found["pii_email"].rows, found["pii_email"].times, found["pii_email"].places) == (1, 3, ("f:1",))


def test_only_the_first_places_are_kept_and_all_are_counted() -> None:
    found = surveyed(*[chat("a\x00b", "y")] * 100).found["control_char"]
    assert (found.rows, len(found.places)) == (100, 20)


def test_system_prompts_are_looked_at_for_damage() -> None:
    assert Survey().add(chat("q", "a", system="\ufffd"), "f:1") == {"lost_character": 1}


PIECES = st.sampled_from(
    ["a", "very good " * 60, "", "\u200b", "a\x00", "x@y.org", "Ã©", "der die das", "привет", "b" * 70]
)


@given(
    st.lists(st.one_of(PIECES.map(Text), st.builds(chat, PIECES, PIECES, PIECES, system=PIECES)), max_size=30),
    st.lists(st.integers(0, 30), max_size=4),
    st.integers(1, 5),
)
@settings(max_examples=150, deadline=None)
def test_parts_merged_in_order_are_one_pass(contents: list[Content], cuts: list[int], named: int) -> None:
    whole, merged = Survey(named), Survey(named)
    for number, content in enumerate(contents):
        whole.add(content, f"f:{number}")
    bounds = sorted({0, len(contents), *(min(cut, len(contents)) for cut in cuts)})
    for begin, end in itertools.pairwise(bounds):
        part = Survey(named)
        for number in range(begin, end):
            part.add(contents[number], f"f:{number}")
        merged.merge(json.loads(json.dumps(part.state())))
    assert merged.facts == whole.facts
    assert merged.state() == whole.state()


def test_many_answers_of_one_length_in_parts_name_the_first_and_most_extreme() -> None:
    """The heaps of parts are merged: ties go to what came first, over all parts."""
    contents = [Text("a" * n) for n in [*[100] * 60, *[1, 2] * 30, *[100_000, 99_999] * 30, *[100] * 300]]
    whole, merged = Survey(), Survey()
    for begin in range(0, len(contents), 50):
        part = Survey()
        for number, content in enumerate(contents[begin : begin + 50], begin):
            assert part.add(content, f"f:{number}") == whole.add(content, f"f:{number}")
        merged.merge(part.state())
    assert merged.facts == whole.facts
    assert len(merged.facts.found["very_long_answer"].places) == 20


def test_what_is_added_is_told() -> None:
    assert Survey().add(chat("mail a@b.org", "", "very good " * 60, "\x00a\x00"), "f:1") == {
        "pii_email": 3,
        "empty_answer": 1,
        "repetition": 1,
        "control_char": 2,
    }


def test_no_private_text_gets_into_the_record() -> None:
    secret = "AKIAIOSFODNN7EXAMPLE"
    facts = surveyed(chat(f"my key is {secret}", "write to someone@example.org"))
    assert facts.found.keys() == {"api_key", "pii_email"}
    text = json.dumps(to_json(facts))
    assert secret not in text and "someone" not in text


@pytest.mark.parametrize(
    ("text", "codes"),
    [
        ("fine\ttext\r\nwith lines\u0085 and\u2028more", {}),
        ("NUL \0 BEL \x07 ESC \x1b[0m", {"control_char": 3}),
        ("C1 \x9d and é", {"control_char": 1}),
        ("lost \ufffd\ufffd", {"lost_character": 2}),
        ("half \ud83d", {"unicode_surrogate": 1}),
        ("café naïve Ärger São Paulo ÂNGELA É! «DÉJÀ» İstanbul", {}),
        ("1 × 2 ÷ 3 ± 4 °C €5 “quoted” it’s – fine…", {}),
        ("Привет, мир; Γειά σου; שלום; 日本語; ไทย; 👩‍👩‍👧", {}),
    ],
)
def test_damage(text: str, codes: dict[str, int]) -> None:
    assert damage(text) == codes


@pytest.mark.parametrize("text", ["café", "naïve", "it’s", "“so” – so", "Ärger", "50 €", "Привет", "😀", "日本語", "½"])
@pytest.mark.parametrize("wrong", ["latin-1", "cp1252"])
def test_utf8_that_was_read_otherwise_is_seen(text: str, wrong: str) -> None:
    try:
        misread = text.encode().decode(wrong)
    except UnicodeDecodeError:
        pytest.skip("Windows-1252 has no such byte")
    assert damage(misread).get("mojibake", 0) >= 1


@pytest.mark.parametrize(
    ("text", "codes"),
    [
        ("mail first.last+tag@mail.example.co.uk now", {"pii_email": 1}),
        ("an @handle, a@b and user@localhost", {}),
        ("call +49 (0)30 1234567 or (555) 123-4567", {"pii_phone": 2}),
        ("call 555-123-4567 or 030/1234567 or 09064019788", {"pii_phone": 3}),
        ("on 2024-05-17 at 10:20:30, version 1.2.3, 192.168.100.200, 1,234,567 people, pages 100-200", {}),
        ("card 4111 1111 1111 1111 and 5500-0000-0000-0004", {"pii_card": 2}),
        ("no card 4111 1111 1111 1112, id 1234567890123456789012, 0000000000000000", {}),
        ("IBAN DE89 3704 0044 0532 0130 00 and GB82WEST12345698765432", {"pii_iban": 2}),
        ("no IBAN DE89 3704 0044 0532 0130 01", {}),
        ("sk-proj-abcdEFGH1234567890abcdXYZ and AKIAIOSFODNN7EXAMPLE", {"api_key": 2}),
        ("ghp_" + "a1" * 18 + " hf_" + "b2" * 17, {"api_key": 2}),
        ("sk-learn-is-a-library-for-machine-learning, risk-" + "1" * 30, {}),
        ("-----BEGIN RSA PRIVATE KEY-----\nMII", {"private_key": 1}),
        ("-----BEGIN PUBLIC KEY-----", {}),
        ("48/2 = <<48/2=24>>24 clips; 9,300 pennies; 1000000000 ways; 3.14159265358979", {}),
    ],
)
def test_private(text: str, codes: dict[str, int]) -> None:
    assert private(text) == codes


def test_patterns_take_linear_time_on_hostile_text() -> None:
    """A megabyte each; a pattern that backtracks would run into the limit of the test."""
    for piece in (
        "a",
        "0",
        "01",
        "0 ",
        "1",
        "1 ",
        "a.",
        "a@",
        "a@a.",
        "+1",
        "+1(",
        "0-",
        "sk-",
        "A1",
        "DE11 AAAA ",
        "ÃÐ",
        "à€",
        "a b ",
    ):
        text = piece * (1_000_000 // len(piece))
        private(text)
        damage(text)


def test_luhn() -> None:
    assert luhn("79927398713")
    assert not any(luhn(f"7992739871{digit}") for digit in "012456789")


def test_repetition_by_the_rules_of_gopher() -> None:
    source = random.Random(1)
    fine = " ".join("".join(source.choices("abcdefghij", k=6)) for _ in range(200))
    assert repetition(fine) == ()
    assert repetition("ha " * 49) == ()  # too short to be judged
    assert "top_2_grams" in repetition("very good " * 60)
    sentence = "the same sentence of a good many words stands here again\n"
    assert {"lines", "line_characters", "repeated_5_grams", "repeated_10_grams"} <= set(repetition(sentence * 10))
    twice = fine.split()[:60]
    assert repetition(" ".join([*fine.split(), *twice])) == tuple(f"repeated_{n}_grams" for n in range(5, 11))


def broken(words: list[str]) -> tuple[str, ...]:
    """The rules of n-grams, counted as the paper words them."""
    rules, letters = [], sum(map(len, words))
    for size in range(2, 11):
        grams = [tuple(words[at : at + size]) for at in range(len(words) - size + 1)]
        counts = Counter(grams)
        if size < 5:
            gram, count = counts.most_common(1)[0]
            share, most = count * sum(map(len, gram)) / letters if count > 1 else 0, (0.20, 0.18, 0.16)[size - 2]
        else:
            inside = {at + n for at, gram in enumerate(grams) if counts[gram] > 1 for n in range(size)}
            share, most = sum(len(words[at]) for at in inside) / letters, 0.15 - (size - 5) / 100
        if share > most:
            rules.append(f"{'top' if size < 5 else 'repeated'}_{size}_grams")
    return tuple(rules)


def test_rules_broken_are_those_of_a_plain_count() -> None:
    source, seen = random.Random(2), Counter[str]()
    for _ in range(600):
        known = ["a" * n for n in range(1, source.choice((4, 7, 40, 200)))]
        words = source.choices(known, k=source.randint(50, 120))
        for _ in range(source.randint(0, 4)):  # a phrase that comes again
            size, to = source.randint(2, 12), source.randrange(len(words))
            words[to:to] = words[:size] * source.randint(1, 6)
        assert repetition(" ".join(words)) == broken(words)
        seen.update(broken(words))
    assert len(seen) == 9 and min(seen.values()) > 20


ODD = st.sampled_from(
    "+49 (0)30 1234567|+1 2 3 4 5 6 7 8|(555) 123-4567|555-123.4567|030/1234567|09064019788|٣٤٥٣٤٥|\u0661|é|日本|"
    "4111 1111 1111 1111|4 1-1 1 1 1 1 1 1 1 1-1 1 1 1 1|DE89 3704 0044 0532 0130 00|-----BEGIN PRIVATE KEY-----|"
    "AKIAIOSFODNN7EXAMPLE|sk-proj-abcdEFGH1234567890abcdXYZ|github_pat_b2b2b2b2b2b2b2b2b2b2b2b2|xoxb-12345678901|Ã©|â€™|"
    "rk_live_e5e5e5e5e5e5e5e5|glpat-c3c3c3c3c3c3c3c3c3c3|AIzad4d4d4d4d4d4d4d4d4d4d4d4d4d4d4d4d4x|ðŸ˜€|ÐÐ\x9fÐ¾|\x9d|\0|"
    "ghp_a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1|a.b@c.org|ï»¿|í•œêµ|hf_b2b2b2b2b2b2b2b2b2b2b2b2b2b2b2b2b2|\ufffd|\ud83d".split(
        "|"
    )
)
MIXED = st.lists(ODD | st.text(st.sampled_from("0123456789+-./() _@,aAß\n"), max_size=8), max_size=8).map("".join)


@given(MIXED)
@settings(max_examples=1000, deadline=None)
def test_quick_searches_rule_out_nothing_that_is_there(text: str) -> None:
    counts = {code: count(text) for code, count in PRIVATE_COUNTS.items()}
    assert private(text) == {code: times for code, times in counts.items() if times}
    found = {code: len(pattern.findall(text)) for code, pattern in DAMAGE_PATTERNS.items()}
    assert damage(text) == {code: times for code, times in found.items() if times}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("What is the capital of France, and how far is it?", "en"),
        ("Was ist die Hauptstadt von Frankreich und wie weit ist es mit dem Zug?", "de"),
        ("Quelle est la capitale de la France et pour qui est-ce que vous votez ?", "fr"),
        ("¿Cuál es la capital de España y qué es lo más bonito de los pueblos?", "es"),
        ("Qual è la capitale dell'Italia e che cosa si fa con gli amici nel parco?", "it"),
        ("Какая столица России и как туда не попасть?", "ru"),
        ("Яка столиця України і що там є для вас?", "uk"),
        ("日本の首都は東京です。", "ja"),
        ("中国的首都是北京。", "zh"),
        ("한국의 수도는 서울입니다", "ko"),
        ("ما هي عاصمة مصر", "arabic"),
        ("def f(x): return x**2", "latin"),
        ("12 + 34 = 46 ?!", "none"),
        ("١٢٣", "arabic"),
        ("Ça, c’est l’« avis »", "latin"),
        ("The “best” of the café", "en"),
        ("👍🏽", "none"),
        ("", "none"),
    ],
)
def test_language_is_a_fair_guess(text: str, expected: str) -> None:
    assert language(text) == expected
