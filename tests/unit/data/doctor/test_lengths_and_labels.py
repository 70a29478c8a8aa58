"""What limits cut, against cutting for real; labels that are slips of others."""

from collections import Counter

import numpy as np
import pytest

from fulltune.base.records import IGNORE
from fulltune.data.doctor.labels import label_facts, label_shares
from fulltune.data.doctor.lengths import LADDER, LengthFacts, LengthTotals, counted, quantile, quantiles
from fulltune.data.encoded import Encoded, cut_off
from fulltune.data.labels import Label, label_faults


def totals(examples: list[Encoded], chunk: int = 1000) -> LengthFacts:
    made = LengthTotals()
    for at in range(0, len(examples), chunk):
        part = examples[at : at + chunk]
        lengths = np.array([len(e.ids) for e in part], np.int32)
        taught, left = counted(lengths, np.concatenate([e.labels for e in part]) != IGNORE)
        assert taught.tolist() == [e.supervised for e in part]
        made.add_chunk(lengths, taught, left)
    return made.facts


def example(length: int, taught: float, random: np.random.Generator) -> Encoded:
    labels = np.where(random.random(length) < taught, 7, IGNORE).astype(np.int32)
    labels[-1] = IGNORE
    return Encoded(np.zeros(length, np.int32), labels, np.ones(length, np.float32))


def test_the_share_cut_is_what_preparation_would_cut() -> None:
    random = np.random.default_rng(0)
    near = [limit + step for limit in LADDER[:4] for step in (-1, 0, 1, 2)]
    lengths = [1, 2, *near, *(int(2**power) for power in random.uniform(0, 15, 150))]
    examples = [example(length, share, random) for length in lengths for share in (0.0, 0.001, 0.4)]
    facts = totals(examples)
    total = sum(example.supervised for example in examples)
    assert facts.supervised_per_epoch == total
    assert facts.tokens_per_epoch == sum(len(example.ids) for example in examples)
    assert [cut.max_length for cut in facts.cuts] == list(LADDER[:8])  # nothing is cut at 32,768
    for cut in facts.cuts:
        longer = [example for example in examples if len(example.ids) > cut.max_length]
        left = [cut_off(example, cut.max_length).supervised for example in longer]
        gone = sum(example.supervised for example in longer) - sum(left)
        assert (cut.rows, cut.supervised) == (len(longer), gone)
        assert cut.supervised_share == gone / total and cut.rows_share == len(longer) / len(examples)
        assert cut.rows_untaught == sum(not n and e.supervised > 0 for n, e in zip(left, longer, strict=True))


@pytest.mark.parametrize("chunk", [1, 7, 1000])
def test_chunks_of_any_size_give_the_same(chunk: int) -> None:
    random = np.random.default_rng(3)
    examples = [example(int(length), 0.3, random) for length in random.integers(1, 3000, 60)]
    assert totals(examples, chunk) == totals(examples)


def test_the_histogram_counts_every_row_once() -> None:
    random = np.random.default_rng(4)
    facts = totals([example(length, 0.9, random) for length in (1, 2, 3, 4, 5, 8, 9, 1000)])
    assert facts.histogram == {"1": 1, "2": 1, "4": 2, "8": 2, "16": 1, "1024": 1}
    assert [cut.max_length for cut in facts.cuts] == [256, 512, 1024]


def test_no_example_at_all() -> None:
    facts = LengthTotals().facts
    assert (facts.examples, facts.quantiles, facts.histogram) == (0, {}, {})


def test_quantiles_of_counts_are_those_of_the_values() -> None:
    values = np.random.default_rng(1).integers(0, 50, 333)
    counts = Counter(values.tolist())
    for share in (0.0, 0.25, 0.5, 0.9, 0.99, 1.0):
        assert quantile(counts, share) == np.quantile(values, share, method="inverted_cdf")
    assert quantiles(counts)["max"] == values.max()


def test_labels_the_rarest_first_with_their_slips() -> None:
    facts = label_facts({"ham": 40, "spam": 30, "Spam": 15, "span": 1, "hma": 1, 0: 1, "": 1, None: 1})
    assert list(facts.counts)[-2:] == ['"spam"', '"ham"']
    assert {(m.label, m.into, m.rows) for m in facts.merges} == {("Spam", "spam", 15), ("span", "spam", 1)}
    assert facts.kinds == ("NoneType", "int", "str")
    assert (facts.empty, facts.rows, facts.imbalance) == (2, 90, 40.0)


def test_what_is_a_fault_already_is_not_proposed() -> None:
    counts: dict[Label, int] = {"ham": 400, "spam": 300, "Spam": 1, "spam ": 1, "hma": 1, "mha": 1, "hamm": 1}
    assert label_faults(counts).keys() == {"Spam", "spam ", "hma"}
    assert [(m.label, m.into) for m in label_facts(counts).merges] == [("hamm", "ham"), ("mha", "ham")]


def test_thousands_of_labels_are_no_classes_and_take_no_time() -> None:
    counts: dict[Label, int] = {f"label number {number}": 1 + 50 * (number % 2) for number in range(20_000)}
    assert label_facts(counts).merges == ()
    assert label_faults({**counts, "Label number 1": 1}).keys() == {"Label number 1"}


def test_shares_of_a_side_and_how_far_they_are_off() -> None:
    shift = label_shares({"a": 60, "b": 30, "c": 10}, {"a": 5, "b": 5})
    assert (shift.rows, shift.label) == (10, '"b"')
    assert (shift.points, shift.distance) == (pytest.approx(20), pytest.approx(0.2))
    less = label_shares({"a": 50, 0: 50}, {"a": 3, 0: 1})
    assert abs(less.points) == pytest.approx(25) and less.distance == pytest.approx(0.25)
    missing = label_shares({"a": 90, "b": 10}, {"a": 9})
    assert (missing.label, missing.points) == ('"a"', pytest.approx(10))
    assert label_shares({"a": 5, "b": 5}, {"b": 1, "a": 1}).distance == 0
    assert label_shares({}, {}).label == label_shares({"a": 1}, {}).label == ""


@pytest.mark.parametrize(
    "counts",
    [
        {"positive": 500, "negative": 480, "neutral": 20},
        {"card_arrival": 100, "card_linking": 90, "card_swallowed": 80},
        {"a": 1000, "b": 1},
        {"grade 1": 1000, "grade 2": 1, "grade 10": 1},
        {True: 5, False: 5},
        {},
    ],
)
def test_honest_labels_are_no_slips(counts: dict[str, int]) -> None:
    assert label_facts(counts).merges == ()


def test_evenness() -> None:
    assert label_facts({"a": 5, "b": 5}).evenness == pytest.approx(1)
    assert label_facts({"a": 5}).evenness == 0
    assert 0 < label_facts({"a": 99, "b": 1}).evenness < 0.1
