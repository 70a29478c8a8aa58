"""Every metric against its definition on small cases, and against its reference library on random ones."""

import json
import math
import random
from collections import Counter
from collections.abc import Sequence
from decimal import Decimal
from typing import Any

import numpy as np
import pytest

from fulltune.base.errors import RecipeError
from fulltune.evaluation.answers import Answer, Likelihood, Mean, Reference
from fulltune.evaluation.labels import Confusions
from fulltune.evaluation.metrics import _FOR, METRICS, metric
from fulltune.evaluation.texts import longest_common, number_in

WORDS = "the a cat dog sat ran on under mat tree big small red blue and then said yes no 12 345 7 It's (well)".split()


def table(name: str, said: Sequence[str], right: Sequence[Sequence[str]], **options: Any) -> tuple[Any, np.ndarray]:
    made = metric(name, options, "answer", where="x")
    rows = made.items([Answer(text) for text in said], [Reference(tuple(texts)) for texts in right])
    return made, np.asarray(rows, np.float64)


def score(name: str, said: Sequence[str], right: Sequence[Sequence[str]], **options: Any) -> float:
    made, rows = table(name, said, right, **options)
    return made.total(rows)


def one(name: str, said: str, right: str | Sequence[str] = (), **options: Any) -> float:
    return score(name, [said], [[right] if isinstance(right, str) else right], **options)


def texts(count: int, seed: int, longest: int = 20) -> list[str]:
    rng = random.Random(seed)
    return [" ".join(rng.choice(WORDS) for _ in range(rng.randint(1, longest))) for _ in range(count)]


def test_exact_match() -> None:
    assert one("exact_match", " Paris\n", "Paris") == 1
    assert one("exact_match", "paris", "Paris") == 0
    assert one("exact_match", "The  paris!", "Paris", normalised=True) == 1
    assert one("exact_match", "Lyon", ["Paris", "Lyon"]) == 1
    assert score("exact_match", ["a", "b", "c", "d"], [["a"], ["b"], ["x"], ["y"]]) == 0.5


def squad_f1(said: str, right: str) -> float:
    """As in the SQuAD 1.1 evaluation: precision and recall of the words' multiset."""
    import re
    import string

    def words(text: str) -> list[str]:
        kept = "".join(char for char in text.lower() if char not in set(string.punctuation))
        return re.sub(r"\b(a|an|the)\b", " ", kept).split()

    one, other = words(said), words(right)
    shared = sum((Counter(one) & Counter(other)).values())
    if shared == 0:
        return 0.0
    precision, recall = shared / len(one), shared / len(other)
    return 2 * precision * recall / (precision + recall)


def test_token_f1_is_squads() -> None:
    said, right = texts(300, 0), texts(300, 1)
    _, rows = table("token_f1", said, [[text] for text in right])
    plain = [squad_f1(*pair) for pair in zip(said, right, strict=True)]
    both_empty = [s for s, r in zip(said, right, strict=True) if not s.strip("the a")]
    assert len(both_empty) < 60
    wanted = [w for w, s, r in zip(plain, said, right, strict=True) if set(s.split()) - {"the", "a"}]
    found = [f for f, s in zip(rows[:, 0], said, strict=True) if set(s.split()) - {"the", "a"}]
    assert found == pytest.approx(wanted, abs=1e-12)
    assert len(wanted) > 250
    assert one("token_f1", "the cat sat", ["a dog", "cat"]) == pytest.approx(2 / 3)
    assert (one("token_f1", "the", "a"), one("token_f1", "", "cat")) == (1, 0)


def test_rouge_l_is_the_packages() -> None:
    scorer = pytest.importorskip("rouge_score.rouge_scorer").RougeScorer(["rougeL"], use_stemmer=False)
    said, right = texts(200, 2), texts(200, 3)
    _, rows = table("rouge_l", said, [[text] for text in right])
    wanted = [scorer.score(r, s)["rougeL"].fmeasure for s, r in zip(said, right, strict=True)]
    assert rows[:, 0] == pytest.approx(wanted, abs=1e-12)
    assert one("rouge_l", "x y z", ["a b c", "x b z"]) == pytest.approx(2 / 3), "the best of several references"
    assert (one("rouge_l", "", "a"), one("rouge_l", "é", "é")) == (0, 0), "letters beyond a-z are no words"


def test_the_longest_common_subsequence_is_that_of_the_plain_recursion() -> None:
    def plain(a: Sequence[str], b: Sequence[str]) -> int:
        row = [0] * (len(b) + 1)
        for word in a:
            last = 0
            for at, other in enumerate(b, 1):
                last, row[at] = row[at], last + 1 if word == other else max(row[at], row[at - 1])
        return row[-1]

    rng = random.Random(5)
    for _ in range(200):
        a, b = ([rng.choice("xyz") for _ in range(rng.randint(0, 90))] for _ in range(2))
        assert longest_common(a, b) == plain(a, b)


@pytest.mark.parametrize("references", [1, 3])
def test_bleu_and_chrf_are_sacrebleus(references: int) -> None:
    from sacrebleu.metrics import BLEU, CHRF

    said = [*texts(60, 4), "", "x", "the cat"]
    right = [texts(63, 5 + number) for number in range(references)]
    columns = list(zip(*right, strict=True))
    for name, library in (("bleu", BLEU()), ("chrf", CHRF())):
        made, rows = table(name, said, columns)
        assert made.total(rows) == pytest.approx(library.corpus_score(said, right).score, abs=1e-9), name
        some = np.arange(0, 60, 7)
        part = library.corpus_score([said[n] for n in some], [[side[n] for n in some] for side in right])
        assert made.total(rows[some]) == pytest.approx(part.score, abs=1e-9), "sums of some questions, for intervals"
        alone = BLEU(effective_order=True) if name == "bleu" else library
        sentences = [alone.sentence_score(s, list(r)).score for s, r in zip(said, columns, strict=True)]
        assert rows[:, 0] == pytest.approx(sentences, abs=1e-9), name


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("She makes 9 * 2 = $<<9*2=18>>18 a day.\n#### 18", "18"),
        ("The answer is $1,250.50.", "1250.50"),
        ("16-3=13", "13"),
        ("It falls to -5 degrees", "-5"),
        ("from 5 to \u221212.", "-12"),
        ("#### 7\nso 9 in all", "7"),
        ("#### none, then 3", "3"),
        ("#### nothing", None),
        ("between 5-10", "10"),
        (".5 of it", "0.5"),
        ("50% of them", "50"),
        ("no numbers", None),
        ("v2 has 3.", "3"),
    ],
)
def test_the_number_that_a_text_ends_in(text: str, number: str | None) -> None:
    assert number_in(text) == (None if number is None else Decimal(number))


def test_numeric_compares_numbers_and_not_letters() -> None:
    assert one("numeric", "so it is 1,250.00 dollars", "1250") == 1
    assert one("numeric", "#### 18", "She makes 18.\n#### 18") == 1
    assert one("numeric", "none", "3") == 0
    assert one("numeric", "none", "nothing to compare with") == 0
    assert one("numeric", "answer: 4, checked 2 times", "4", marker="answer:") == 1


def test_patterns_and_json() -> None:
    assert one("regex", "I'm sorry, no", pattern=r"(?i)sorry") == 1
    assert one("regex", "I'm sorry, no", pattern=r"(?i)sorry", absent=True) == 0
    assert one("contains", "It is PARIS.", "paris") == 1
    assert one("contains", "It is PARIS.", "paris", ignore_case=False) == 0
    assert one("json_valid", ' {"a": 1}\n') == 1
    for broken in ('{"a": 1', "{'a': 1}", "NaN", '{"a": 1} and more', "[" * 100_000, ""):
        assert one("json_valid", broken) == 0, broken
    fenced = 'Here you are:\n```json\n{"a": 1}\n```\nDone.'
    assert (one("json_valid", fenced), one("json_valid", fenced, fenced=True)) == (0, 1)


def test_json_schema_is_checked_by_the_package(tmp_path: Any) -> None:
    shape = {"type": "object", "required": ["a"], "properties": {"a": {"type": "integer"}}}
    (tmp_path / "shape.json").write_text(json.dumps(shape))
    for schema in (shape, str(tmp_path / "shape.json")):
        assert one("json_schema", '{"a": 1}', schema=schema) == 1
        for wrong in ('{"a": "1"}', "{}", "no json", "[1]"):
            assert one("json_schema", wrong, schema=schema) == 0
    for schema, said in (({"type": "nonsense"}, "no JSON Schema"), (str(tmp_path / "none"), "cannot be read")):
        with pytest.raises(RecipeError, match=said):
            one("json_schema", "{}", schema=schema)


@pytest.mark.parametrize("others", [0.0, 0.3])
def test_accuracy_and_f1_are_scikit_learns(others: float) -> None:
    """Answers that are no label at all are wrong, and no class of their own."""
    from sklearn.metrics import accuracy_score, confusion_matrix, f1_score

    rng = random.Random(7)
    labels = [f"class {n}" for n in range(9)]
    right = [rng.choice(labels[:8]) for _ in range(400)]
    said = [r if rng.random() < 0.6 else rng.choice(labels) for r in right]
    said = [f"junk {n}" if rng.random() < others else f" {s}\n" for n, s in enumerate(said)]
    plain = [s.strip() for s in said]
    columns = [[text] for text in right]
    kept = sorted(set(right))
    assert score("accuracy", said, columns) == pytest.approx(accuracy_score(right, plain), abs=1e-12)
    for name in ("macro", "micro"):
        wanted = f1_score(right, plain, average=name, labels=kept, zero_division=0)
        made, rows = table(f"{name}_f1", said, columns)
        assert made.total(rows) == pytest.approx(wanted, abs=1e-12)
        some = [3, 9, 9, 27, 81, 100, 3]
        wanted = f1_score(
            [right[n] for n in some],
            [plain[n] for n in some],
            average=name,
            labels=sorted({right[n] for n in some}),
            zero_division=0,
        )
        assert made.total(rows[some]) == pytest.approx(wanted, abs=1e-12), "of some questions, for intervals"
    counted = Confusions()
    for start in range(0, 400, 150):
        counted.see([Reference((r,)) for r in right[start : start + 150]])
    found = counted.table(table("macro_f1", said, columns)[1])
    assert found.labels == (*kept, "(anything else)")
    counts = np.array(found.counts)
    matrix = confusion_matrix(right, plain, labels=kept)
    assert (counts[:, :-1] == matrix).all()
    assert counts.sum() == 400


def likelihoods(rows: Sequence[Sequence[float]], *, characters: Sequence[int] = ()) -> list[Answer]:
    sizes = characters or [4] * len(rows[0])
    return [
        Answer("", tuple(Likelihood(value, 2, 0, size, size) for value, size in zip(row, sizes, strict=True)))
        for row in rows
    ]


def test_choices_plain_and_by_length() -> None:
    answers = likelihoods([[-4.0, -5.0], [-4.0, -15.0], [-3.0, -3.0]], characters=(2, 10))
    references = [Reference(("x",), index) for index in (1, 1, 0)]
    for name, wanted in {"choice": [0, 0, 1], "choice_by_length": [1, 1, 0], "choice_by_tokens": [0, 0, 1]}.items():
        made = metric(name, {}, "choice", where="x")
        assert [row[0] for row in made.items(answers, references)] == wanted, name


def test_choices_are_lm_evaluation_harness_acc_and_acc_norm() -> None:
    """Its doc_to_choice scoring: argmax of the log-likelihoods, and of those divided by the choices' characters."""
    rng = np.random.default_rng(3)
    lls = rng.normal(-20, 6, size=(500, 4))
    lengths = rng.integers(3, 60, size=4)
    gold = rng.integers(4, size=500)
    answers = likelihoods(lls.tolist(), characters=lengths.tolist())
    references = [Reference(("x",), int(index)) for index in gold]
    for name, values in {"choice": lls, "choice_by_length": lls / lengths.astype(float)}.items():
        made = metric(name, {}, "choice", where="x")
        total = made.total(np.asarray(made.items(answers, references)))
        assert total == pytest.approx(float((values.argmax(1) == gold).mean()), abs=1e-12)


def test_calibration_is_the_papers_formula() -> None:
    rng = np.random.default_rng(1)
    lls = rng.normal(0, 2, size=(300, 3))
    gold = rng.integers(3, size=300)
    chances = np.exp(lls) / np.exp(lls).sum(1, keepdims=True)
    confidence, right = chances.max(1), chances.argmax(1) == gold
    wanted = 0.0
    for low in np.linspace(0, 1, 15, endpoint=False):
        inside = (confidence > low) & (confidence <= low + 1 / 15)
        if inside.any():
            wanted += inside.mean() * abs(right[inside].mean() - confidence[inside].mean())
    made = metric("calibration", {}, "choice", where="x")
    rows = np.asarray(made.items(likelihoods(lls.tolist()), [Reference(("x",), int(n)) for n in gold]))
    assert made.total(rows) == pytest.approx(wanted, abs=1e-12)
    assert rows[:, 0] == pytest.approx((confidence - right) ** 2)
    assert made.better == "lower"
    two = metric("calibration", {"bins": 2}, "choice", where="x")
    sure = likelihoods([[-1.0, -1.0], [math.log(0.6), math.log(0.4)]])
    rows = np.asarray(two.items(sure, [Reference(("x",), 0), Reference(("x",), 1)]))
    assert two.total(rows) == pytest.approx((0.5 + 0.6) / 2), "0.5 lies in the first bin, 0.6 in the second"


def test_loss_and_perplexity_are_of_one_mean_over_all_tokens() -> None:
    """10 tokens at 2.0 and 1000 at 5.0: perplexity 144.1, not 33.1 (a mean of means) and not 77.9 (a mean of exps)."""
    answers = [
        Answer("", (Likelihood(-20.0, 10, 5, 40, 40),)),
        Answer("", (Likelihood(-5000.0, 1000, 100, 4000, 4000),)),
    ]
    right = [Reference(("x",))] * 2
    wanted = {
        "loss": 5020 / 1010,
        "perplexity": math.exp(5020 / 1010),
        "bits_per_byte": 5020 / math.log(2) / 4040,
        "token_accuracy": 105 / 1010,
        "last_words": 0.0,
    }
    for name, value in wanted.items():
        made = metric(name, {}, "text", where="x")
        assert made.total(np.asarray(made.items(answers, right))) == pytest.approx(value), name
    assert wanted["perplexity"] == pytest.approx(144.1, abs=0.05)


def test_every_metric_has_a_direction_a_docstring_and_rows_that_hang_on_one_question() -> None:
    options: dict[str, dict[str, Any]] = {"regex": {"pattern": "a"}, "json_schema": {"schema": {}}}
    for name in METRICS:
        make = METRICS[name]
        assert (make.func if "partial" in type(make).__name__ else make).__doc__, name  # type: ignore[attr-defined]
        made = METRICS[name](**options.get(name, {}))
        assert made.better in ("higher", "lower")
        for kind in made.for_kinds:
            metric(name, options.get(name, {}), kind, where="x")
        answers = [Answer("a b", likelihoods([[-1.0, -2.0][: 1 + ("choice" in made.for_kinds)]])[0].likelihoods)] * 2
        rows = made.items(answers, [Reference(("a c",), 0)] * 2)
        again = made.items(answers[:1], [Reference(("a c",), 0)])
        assert list(rows[0]) == list(rows[1]) == list(again[0]), name


def test_what_does_not_fit_is_said() -> None:
    for name, options, kind, said in (
        ("blue", {}, "answer", "did you mean 'bleu'"),
        ("regex", {}, "answer", "missing a required argument: 'pattern'"),
        ("regex", {"pattern": "("}, "answer", "no regular expression"),
        ("exact_match", {"casefold": True}, "answer", "its options: normalised"),
        ("choice", {}, "answer", "one of exact_match, "),
        ("bleu", {}, "text", "one of loss, perplexity"),
        ("bleu", {"tokenize": "nonsense"}, "answer", "sacrebleu has no tokenizer"),
        ("calibration", {"bins": 0}, "choice", "from 1 to 1000"),
        ("calibration", {"bins": "many"}, "choice", "calibration: "),
        ("regex", {"pattern": 5}, "answer", "regex: "),
    ):
        with pytest.raises(RecipeError, match=said):
            metric(name, options, kind, where="suite")  # type: ignore[arg-type]
    for name in ("exact_match", "bleu", "chrf", "macro_f1", "numeric"):
        with pytest.raises(RecipeError, match="compares answers with references"):
            one(name, "a", [])


def test_what_is_named_to_who_asked_for_another_is_what_there_is() -> None:
    options: dict[str, dict[str, Any]] = {"regex": {"pattern": "x"}, "json_schema": {"schema": {}}}
    for name in METRICS:
        makes = METRICS.find(name, where="here")(**options.get(name, {})).for_kinds
        assert {kind for kind, names in _FOR.items() if name in names} == set(makes), name


def test_a_metric_of_ones_own(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "manners.py").write_text(
        "from fulltune.evaluation.answers import Mean\n\n"
        "def polite(*, word='please'):\n    return Mean(lambda text, right: float(word in text))\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert one("manners:polite", "yes please") == 1
    assert one("manners:polite", "yes please", word="thanks") == 0
    assert isinstance(METRICS["manners:polite"](), Mean)
