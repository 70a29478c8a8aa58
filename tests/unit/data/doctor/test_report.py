"""The report: findings with policies, plain text, JSON, refusals."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from fulltune.base.errors import DataError
from fulltune.data.doctor.damage import DAMAGE
from fulltune.data.doctor.found import Found
from fulltune.data.doctor.labels import label_facts
from fulltune.data.doctor.lengths import LengthTotals, counted
from fulltune.data.doctor.near import NearFacts, NearWriter, Pair, near_duplicates, near_leaks
from fulltune.data.doctor.overlap import Overlap
from fulltune.data.doctor.private import PRIVATE
from fulltune.data.doctor.report import Checkup, findings, record, refuse, text
from fulltune.data.doctor.survey import Survey
from fulltune.data.example import Chat, Message, Text
from fulltune.recipe.checks import PER_ROW

LONG = "one two three four five six seven eight nine ten eleven twelve thirteen fourteen"


def near_facts(folder: Path, taught: Sequence[str], measured: Sequence[str] = ()) -> tuple[NearFacts, NearFacts]:
    """Near-duplicates and near leaks of rows of two files."""
    with NearWriter(folder) as writer:
        for row in (*taught, *measured):
            writer.add(row)

    def place(row: int) -> str:
        return f"rows.jsonl:{row + 1}" if row < len(taught) else f"test.jsonl:{row + 1 - len(taught)}"

    side = np.array([0] * len(taught) + [1] * len(measured), np.int8)
    return near_duplicates([folder], side).facts(place), near_leaks([folder], side).facts(place)


@pytest.fixture(scope="module")
def checkup(tmp_path_factory: pytest.TempPathFactory) -> Checkup:
    survey, lengths, overlap = Survey(), LengthTotals(), Overlap([("b:1", LONG)])
    rows = [LONG, LONG + "!", "mail a@b.org", "NUL \0"]
    for number, row in enumerate(rows, 1):
        survey.add(Chat((Message("user", row), Message("assistant", "yes"))), f"rows.jsonl:{number}")
        overlap.add(row, f"rows.jsonl:{number}")
        places = np.arange(300)
        length = np.array([300])
        lengths.add_chunk(length, *counted(length, (places >= 200) & (places < 299)))
    near, leaks = near_facts(tmp_path_factory.mktemp("near"), rows, [LONG.upper()])
    return Checkup(
        survey=survey.facts,
        near=near,
        leaks=leaks,
        overlap=overlap.facts,
        lengths=lengths.facts,
        labels=label_facts({"spam": 50, "Spam": 20, "": 1, 0: 2}),
    )


CODES = {
    "near_duplicate",
    "near_leak",
    "benchmark_overlap",
    "pii_email",
    "control_char",
    "label_slip",
    "empty_label",
    "label_kinds",
}


def test_findings_have_counts_places_and_the_policy_given(checkup: Checkup) -> None:
    found = {each.code: each for each in findings(checkup, {"pii_email": "drop"})}
    assert found.keys() == CODES
    assert (found["pii_email"].policy, found["pii_email"].count) == ("drop", 1)
    assert found["pii_email"].places == ("rows.jsonl:3",)
    assert found["near_duplicate"].policy == "keep"
    assert found["near_duplicate"].places == ("rows.jsonl:2 (as rows.jsonl:1)",)
    assert found["near_leak"].count == 1
    assert found["benchmark_overlap"].count == 2


def test_the_text_says_all_of_it_without_colours(checkup: Checkup) -> None:
    told = text(checkup, findings(checkup, {}))
    assert all(code in told for code in CODES)
    (cut,) = (line for line in told.split("\n") if line.split()[:1] == ["256"])
    assert cut.split() == ["256", "100.00%", "44.44%", "0"]
    assert "near-duplicates: 1 of 4 rows at similarity 0.8 or more" in told
    assert "near leaks: 1 of 1 measured rows at similarity 0.8 or more" in told
    assert "off" not in told
    assert "'Spam' -> 'spam'? differs in case or spacing" in told
    assert "\x1b" not in told and "a@b.org" not in told
    assert all(line == line.rstrip() for line in told.split("\n"))


def test_the_record_is_json_and_short(checkup: Checkup, tmp_path: Path) -> None:
    crowded, _ = near_facts(tmp_path, [f"{LONG} {LONG} {number}" for number in range(100)])
    large = Checkup(survey=checkup.survey, near=crowded)
    plain = json.loads(json.dumps(record(large, findings(large, {})), allow_nan=False))
    assert plain["near"]["surplus"] == 99
    assert len(plain["near"]["pairs"]) == 20 and len(plain["near"]["clusters"][0]) == 20
    assert plain["overlap"] is None
    assert {each["code"] for each in plain["findings"]} == {"pii_email", "control_char", "near_duplicate"}


def test_the_text_fits_a_terminal_whatever_was_found(checkup: Checkup) -> None:
    place = "data/customers/2024/conversations.jsonl:{}".format
    pairs = tuple(Pair(place(n), place(n + 1), 0.9) for n in range(20))
    near = NearFacts(
        threshold=0.8,
        rows=10**6,
        exact=10**6,
        affected=10**6,
        surplus=10**6,
        clusters_in_all=10**6,
        pairs=pairs,
        clusters=(),
        uncompared=10**4,
    )
    found = {"repetition": Found(10**6, 10**6, tuple(map(place, range(20))))}
    counts = {f"repeated_{n}_grams": 10**6 for n in range(5, 11)}
    survey = replace(checkup.survey, found=found, repetition=counts, languages={f"language{n}": n for n in range(30)})
    large = replace(checkup, survey=survey, near=near, leaks=near)
    told = text(large, findings(large, {}))
    assert max(map(len, told.split("\n"))) <= 100
    assert place(0) + ", 1, 2 and 999,997 more" in " ".join(told.split()), (
        "lines of one file are not named with it again"
    )
    assert "and 999,995 more" in told


def test_what_is_off_is_no_finding_and_said_to_be_off(checkup: Checkup) -> None:
    assert "near_leak" not in {each.code for each in findings(checkup, {"near_leak": "off"})}
    less = replace(checkup, near=None, overlap=None)
    assert "off, so not looked for: near_duplicate, benchmark_overlap" in text(less, findings(less, {}))
    assert record(less, ())["off"] == ["near_duplicate", "benchmark_overlap"]
    assert record(checkup, ())["off"] == []


def test_nothing_odd_is_said_to_be_so() -> None:
    survey = Survey()
    survey.add(Text("All is well with the world."), "f:1")
    fine = Checkup(survey=survey.facts)
    assert findings(fine, {}) == ()
    assert text(fine, ()).startswith("findings: nothing odd")


def test_the_policy_error_refuses_and_names_all(checkup: Checkup) -> None:
    refuse(findings(checkup, {"pii_email": "drop"}))
    with pytest.raises(DataError) as caught:
        refuse(findings(checkup, {"pii_email": "error", "control_char": "error"}))
    assert {fault.code for fault in caught.value.faults} == {"pii_email", "control_char"}
    assert "rows.jsonl:3" in str(caught.value)


def test_every_code_has_its_sentence() -> None:
    assert {*DAMAGE, *PRIVATE} <= PER_ROW.keys()
