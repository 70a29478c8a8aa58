"""The doctor on the dirty files beside the project, and on real data that is thought to be clean."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fulltune.data.detect import detect
from fulltune.data.doctor.labels import label_facts
from fulltune.data.doctor.near import NearFacts, NearWriter, near_duplicates, near_leaks
from fulltune.data.doctor.overlap import Overlap
from fulltune.data.doctor.report import Checkup, findings, text
from fulltune.data.doctor.shingles import plain_text
from fulltune.data.doctor.survey import Survey, SurveyFacts
from fulltune.data.example import Content, RowFault
from fulltune.data.findings import Findings
from fulltune.data.formats import FORMATS
from fulltune.data.labels import label_faults
from fulltune.data.screen import content_id
from fulltune.data.sources import read_rows
from tests.conftest import SHARED

pytestmark = pytest.mark.usefixtures("shared")


def expected(name: str) -> dict[str, Any]:
    entries = json.loads((SHARED / "dirty/expected.json").read_text())
    return next(entry for entry in entries if entry["file"] == name)


def contents(path: Path) -> dict[int, Content]:
    """Line -> content of the rows that have one; the gate behind the formats is not asked."""
    made = {}
    for line, row in read_rows(path, Findings()):
        try:
            made[line] = FORMATS[str(detect(row))](row)
        except RowFault as fault:
            assert fault.code in ("null_value", "unicode_surrogate", "missing_field", "encoding"), fault
    return made


def surveyed(path: Path) -> SurveyFacts:
    survey = Survey()
    for line, content in contents(path).items():
        survey.add(content, str(line))
    return survey.facts


def near(folder: Path, *paths: Path) -> tuple[NearFacts, NearFacts]:
    """Near-duplicates within the first file, and what of the second is nearly in the first; places are lines."""
    lines: list[int] = []
    side: list[int] = []
    with NearWriter(folder) as writer:
        seen = set()
        for number, path in enumerate(paths):
            for line, content in contents(path).items():
                lines.append(line)
                key = (number, content_id(content))
                side.append(-1 if key in seen else number)
                seen.add(key)
                writer.add(plain_text(content))
    sides = np.array(side, np.int8)
    made = (search([folder], sides) for search in (near_duplicates, near_leaks))
    duplicates, leaks = (each.facts(lambda row: str(lines[row]), side.count(-1)) for each in made)
    return duplicates, leaks


def test_the_ten_pairs_and_no_exact_duplicate(shared: Path, tmp_path: Path) -> None:
    facts, _ = near(tmp_path, shared / "dirty/near_duplicates.jsonl")
    pairs = [(int(pair.first), int(pair.second)) for pair in facts.pairs]
    assert pairs == [tuple(pair) for pair in expected("near_duplicates.jsonl")["pairs"]]
    assert (facts.exact, facts.rows, facts.affected, facts.uncompared) == (0, 50, 20, 0)


def test_exact_duplicates_are_counted_apart_from_near_ones(shared: Path, tmp_path: Path) -> None:
    facts, _ = near(tmp_path, shared / "dirty/exact_duplicates.jsonl")
    assert (facts.exact, facts.rows, facts.surplus) == (12, 48, 0)


def test_i9_leaks_are_found_word_for_word_and_up_to_case(shared: Path, tmp_path: Path) -> None:
    train, test = shared / "dirty/leak/train.jsonl", shared / "dirty/leak/test.jsonl"
    leaked = {str(problem["line"]) for problem in expected("leak/test.jsonl")["problems"]}
    _, facts = near(tmp_path, train, test)
    assert {pair.second for pair in facts.pairs} == leaked and facts.surplus == len(leaked)
    assert all(pair.similarity == 1 for pair in facts.pairs)
    benchmark = contents(test)
    overlap = Overlap((str(line), plain_text(content)) for line, content in benchmark.items())
    for line, content in contents(train).items():
        overlap.add(plain_text(content), str(line))
    assert set(overlap.facts.texts_places) == leaked
    assert overlap.facts.rows_hit == len(leaked)


def test_slips_of_labels(shared: Path) -> None:
    rows = [row for _, row in read_rows(shared / "dirty/label_trouble.jsonl", Findings())]
    counts = Counter(row["label"] for row in rows if "label" in row)
    facts = label_facts(counts)
    assert {"Spam", "spam ", "hma"} <= label_faults(counts).keys(), "sure, and so not proposed again"
    assert facts.merges == ()
    assert set(list(facts.counts)[:5]) == {'"Spam"', '"spam "', '"hma"', "0", '""'}
    assert (facts.empty, facts.kinds) == (1, ("int", "str"))


def test_unicode_edges(shared: Path) -> None:
    facts = surveyed(shared / "dirty/unicode_edges.jsonl")
    assert facts.found["control_char"].places == ("8", "11")
    assert facts.found.keys() == {"control_char"}


def test_empty_and_very_short_answers(shared: Path) -> None:
    facts = surveyed(shared / "dirty/empty_assistant.jsonl")
    assert facts.found["empty_answer"].places == ("3", "10", "22")
    assert facts.found["very_short_answer"].places == ("27",)


def test_a_huge_row_takes_no_huge_time(shared: Path, tmp_path: Path) -> None:
    """Five million characters; the reader of rows would refuse them, so they are read plainly here."""
    survey = Survey()
    with (shared / "dirty/huge_line.jsonl").open() as lines, NearWriter(tmp_path) as writer:
        for number, line in enumerate(lines, 1):
            row = json.loads(line)
            content = FORMATS[str(detect(row))](row)
            survey.add(content, str(number))
            writer.add(plain_text(content))
    assert survey.facts.examples == 20
    assert near_duplicates([tmp_path], np.zeros(20, np.int8)).rows == 20


def test_real_data_has_few_false_alarms(shared: Path, tmp_path: Path) -> None:
    """Word problems full of numbers have no damage, no cards, no phone numbers; a whole report can be written."""
    (path,) = sorted((shared / "data/gsm8k").glob("*test*.jsonl"))[:1]
    facts = surveyed(path)
    assert facts.examples > 500
    assert facts.languages["en"] / facts.examples > 0.98
    false = {
        code: found.rows for code, found in facts.found.items() if code.startswith(("pii", "api", "private", "moji"))
    }
    assert sum(false.values()) <= 2, false
    checkup = Checkup(survey=facts, near=near(tmp_path, path)[0])
    assert "near-duplicates" in text(checkup, findings(checkup, {}))
