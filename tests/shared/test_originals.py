"""The real sets in the files in which they were published, counted against an independent reading of each."""

import csv
import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fulltune.data.findings import Findings
from fulltune.data.sources import places, read_rows
from fulltune.recipe.data import Source
from tests.conftest import SHARED

pytestmark = pytest.mark.usefixtures("shared")
Rows = list[dict[str, Any]]


def read(path: Path | str, **options: Any) -> Rows:
    source, findings = Source(path=str(SHARED / "data" / path), **options), Findings()
    rows = [dict(row) for place in places(source, findings) for _, row in read_rows(place, findings, source)]
    assert not findings.unreadable
    assert not findings.faults
    return rows


def by_json_lines(path: Path) -> Rows:
    packed = path.suffix == ".gz"
    content = gzip.decompress(path.read_bytes()) if packed else path.read_bytes()
    return [json.loads(line) for line in content.split(b"\n") if line.strip()]


def by_json(path: Path) -> Rows:
    return json.loads(path.read_text())


def by_csv(path: Path) -> Rows:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def by_split(*names: str) -> Callable[[Path], Rows]:
    def rows(path: Path) -> Rows:
        lines = path.read_bytes().decode().removesuffix("\n").split("\n")
        return [dict(zip(names, line.removesuffix("\r").split("\t"), strict=True)) for line in lines]

    return rows


WAYS: list[tuple[str, Callable[[Path], Rows], tuple[str, ...]]] = [
    ("advbench/original/harmful_behaviors.csv", by_csv, ()),
    ("arc_easy/original/arc_easy.jsonl", by_json_lines, ()),
    ("banking77/original/train.csv", by_csv, ()),
    ("banking77/original/test.csv", by_csv, ()),
    ("c4_demo/original/c4_demo.jsonl", by_json_lines, ()),
    ("conlang_translation/original/bigbench_conlang_translation.jsonl", by_json_lines, ()),
    ("dolly_hhrlhf_small/original/dolly_hhrlhf_train_small.jsonl", by_json_lines, ()),
    ("glaive_toolcall_demo/original/glaive_toolcall_en_demo.json", by_json, ()),
    ("gsm8k/original/train.jsonl", by_json_lines, ()),
    ("gsm8k/original/test.jsonl", by_json_lines, ()),
    ("hh_rlhf_harmless/original/harmless-base-test.jsonl.gz", by_json_lines, ()),
    ("lambada_openai/original/lambada_openai_every5th.jsonl", by_json_lines, ()),
    ("mt_bench/original/question.jsonl", by_json_lines, ()),
    ("oasst_en100/original/en_100_tree.jsonl", by_json_lines, ()),
    ("qmsum_product/original/Product_test.jsonl", by_json_lines, ()),
    ("self_instruct_seeds/original/seed_tasks.jsonl", by_json_lines, ()),
    ("self_instruct_seeds/alpaca.json", by_json, ()),
    ("sms_spam/original/sms.tsv", by_split("label", "text"), ("label", "text")),
    ("sst2/original/train.tsv", by_split("text", "label"), ("text", "label")),
    ("sst2/original/dev.tsv", by_split("text", "label"), ("text", "label")),
    ("sst2/original/test.tsv", by_split("text", "label"), ("text", "label")),
]


@pytest.mark.parametrize(("name", "independent", "header"), WAYS, ids=[name for name, _, _ in WAYS])
def test_rows_are_those_of_an_independent_reading(
    name: str, independent: Callable[[Path], Rows], header: tuple[str, ...]
) -> None:
    rows = read(name, header=header or None)
    assert len(rows) > 10
    assert rows == independent(SHARED / "data" / name)


@pytest.mark.parametrize(
    "name",
    ["tinyshakespeare/original/input.txt", "tinystories/original/val_stories.txt", "wikitext2/original/valid.txt"],
)
def test_texts_are_one_document_paragraphs_or_lines(name: str) -> None:
    text = (SHARED / "data" / name).read_bytes().decode()
    assert read(name) == [{"text": text}]
    lines = [line.rstrip("\r") for line in text.split("\n") if line.strip()]
    assert [row["text"] for row in read(name, document="line")] == lines
    paragraphs = read(name, document="paragraph")
    assert [line for row in paragraphs for line in row["text"].split("\n")] == lines


def test_a_folder_and_a_pattern_give_all_files_of_a_set() -> None:
    both = read("gsm8k/original/train.jsonl"), read("gsm8k/original/test.jsonl")
    assert read("gsm8k/original") == both[1] + both[0]
    assert read("gsm8k/original/t*.jsonl") == both[1] + both[0]


def test_a_list_of_texts_is_no_set_of_rows() -> None:
    source, findings = Source(path=str(SHARED / "data/banking77/original/categories.json")), Findings()
    (place,) = places(source, findings)
    assert list(read_rows(place, findings, source)) == []
    assert {fault.code for fault in findings.faults} == {"not_an_object"}
