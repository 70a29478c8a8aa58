"""Bytes -> rows: what cannot be read is named with line, column or byte, and nothing else is lost."""

import gzip
import json
import subprocess
import sys
from pathlib import Path

import pytest

from fulltune.data.findings import Findings
from fulltune.data.sources import LONGEST_ROW, read_rows


def read(path: Path, content: bytes) -> tuple[list[tuple[int, dict]], Findings]:
    path.write_bytes(content)
    findings = Findings()
    return [(line, dict(row)) for line, row in read_rows(path, findings)], findings


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "rows.jsonl"


def codes(findings: Findings) -> list[tuple[str, str]]:
    return [(fault.where.rpartition(":")[2], fault.code) for fault in findings.faults]


def test_lines_end_at_line_feeds_only(file: Path) -> None:
    row = {"text": "a\u2028b\u2029c\x85d"}
    rows, findings = read(file, json.dumps(row, ensure_ascii=False).encode() + b"\n" + b'{"text": "z"}')
    assert rows == [(1, row), (2, {"text": "z"})]
    assert not findings.faults


def test_marks_carriage_returns_and_blank_lines_are_noted(file: Path) -> None:
    rows, findings = read(file, b'\xef\xbb\xbf{"a": "1"}\r\n\r\n{"a": "2"}\r\n')
    assert rows == [(1, {"a": "1"}), (3, {"a": "2"})]
    assert set(findings.notes) == {"byte_order_mark", "crlf", "blank_line"}


@pytest.mark.parametrize(
    ("line", "code", "said"),
    [
        (b"{'a': 1}", "json_parse", "double quotes"),
        (b'{"a": 1,}', "json_parse", "comma"),
        (b'{"a": "raw\ttab"}', "json_parse", "control character"),
        (b'{"a": NaN}', "json_nan", "NaN"),
        (b'{"a": [1, -Infinity]}', "json_nan", "Infinity"),
        (b"null", "not_an_object", "null"),
        (b"[1]", "not_an_object", "array"),
        (b'"x"', "not_an_object", "string"),
        (b"3", "not_an_object", "number"),
        (b"true", "not_an_object", "true or false"),
        (b'{"a": "caf\xe9"}', "encoding", "offset 10"),
        (b'{"a": "\x93x\x94"}', "encoding", "windows-1252"),
        (b'{"a": "\\ud83d"}', "unicode_surrogate", "surrogate"),
        (b"[" * 100_000, "json_parse", "deep"),
    ],
)
def test_bad_lines_are_named_and_the_rest_is_read(file: Path, line: bytes, code: str, said: str) -> None:
    rows, findings = read(file, b'{"a": "1"}\n' + line + b'\n{"a": "3"}\n')
    assert [number for number, _ in rows] == [1, 3]
    assert codes(findings) == [("2", code)]
    fault = findings.faults[0]
    assert said in fault.what + fault.mend
    assert fault.mend


def test_an_escaped_pair_is_a_character(file: Path) -> None:
    rows, findings = read(file, b'{"a": "\\ud83d\\ude00"}\n')
    assert rows[0][1] == {"a": "\N{GRINNING FACE}"}
    assert not findings.faults


def test_control_characters_and_double_keys_are_noted_and_kept(file: Path) -> None:
    rows, findings = read(file, b'{"a": "\\u0000 \\u001b"}\n{"a": "1", "a": "2"}\n{"a": "\\u0009"}\n')
    assert [row for _, row in rows] == [{"a": "\0 \x1b"}, {"a": "2"}, {"a": "\t"}]
    assert findings.notes["control_char"].startswith("1 x")
    assert "(a)" in findings.notes["duplicate_key"]


def test_a_cut_off_last_line_says_so(file: Path) -> None:
    _, findings = read(file, b'{"a": "1"}\n{"a": "2')
    assert "cut off" in findings.faults[0].what


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "empty"),
        (b"\n \n\r\n", "blank lines"),
        ('{"a": 1}'.encode("utf-16"), "UTF-16"),
        ('{"a": 1}'.encode("utf-16-le"), "UTF-16"),
        ('{"a": 1}'.encode("utf-32"), "UTF-32"),
        (b"PAR1xxxx", "Parquet"),
        (b"%PDF-1.7", "PDF"),
        (b"PK\x03\x04xxxx", "zip"),
        (gzip.compress(b'{"a": "1"}\n' * 1000, mtime=0)[:-20], "damaged gzip"),
        (b"[]", "array is empty"),
        (b'[{"a": 1}, {"a":', "not JSON"),
        (b'[{"a": 1}] x', "behind the array"),
    ],
)
def test_files_of_which_nothing_can_be_read(file: Path, content: bytes, said: str) -> None:
    _, findings = read(file, content)
    assert said in findings.unreadable[0].what
    assert findings.unreadable[0].mend


def test_missing_files_folders_and_other_kinds(tmp_path: Path) -> None:
    for path in (tmp_path / "none.jsonl", tmp_path):
        findings = Findings()
        assert list(read_rows(path, findings)) == []
        assert len(findings.unreadable) == 1


def test_gzip_and_arrays_are_read(file: Path) -> None:
    rows, findings = read(file, gzip.compress(b'{"a": "1"}\n{"a": "2"}\n'))
    assert [line for line, _ in rows] == [1, 2]
    assert "gzip" in findings.notes
    rows, findings = read(file, b'\n[\n {"a": "1"},\n {"a":\n "2"}, 7,\n {"a": NaN}, {"a": "3"}\n]\n')
    assert rows == [(3, {"a": "1"}), (4, {"a": "2"}), (6, {"a": "3"})]
    assert codes(findings) == [("5", "not_an_object"), ("6", "json_nan")]


def test_a_row_that_is_too_long_is_skipped_and_the_next_is_read(file: Path) -> None:
    long = b'{"a": "' + b"x" * LONGEST_ROW + b'"}'
    rows, findings = read(file, b'{"a": "1"}\n' + long + b'\n{"a": "3"}\n' + long)
    assert [number for number, _ in rows] == [1, 3]
    assert codes(findings) == [("2", "too_long"), ("4", "too_long")]
    assert f"{len(long) + 1:,} bytes" in findings.faults[0].what
    fits = b'{"a": "' + b"x" * (LONGEST_ROW - 9) + b'"}'
    rows, findings = read(file, fits + b"\n" + fits)
    assert len(rows) == 2


def test_a_line_of_half_a_gigabyte_takes_no_memory(tmp_path: Path) -> None:
    path = tmp_path / "huge.jsonl"
    with path.open("wb") as out:
        out.truncate(512 << 20)  # sparse: zero bytes without a line end
        out.seek(0)
        out.write(b'{"a": "')
    script = (
        "import sys, resource\nfrom pathlib import Path\n"
        "from fulltune.data.findings import Findings\nfrom fulltune.data.sources import read_rows\n"
        f"found = Findings(); before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        f"list(read_rows(Path({str(path)!r}), found))\n"
        "print(found.faults[0].code, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    code, grown = done.stdout.split()
    assert code == "too_long"
    assert int(grown) < 100 * 1024, "KiB of resident memory"


@pytest.mark.parametrize(
    "content",
    [
        b'[{"a": 1},\n{"a": 2},\n',
        b'[{"a": 1},\n{"a": 2}\n',
        b'[{"a": 1} {"a": 2}]',
        b'[{"a": 1},,{"a": 2}]',
        b'[{"a": 1},]',
        b"[",
    ],
)
def test_an_array_is_whole_or_refused(file: Path, content: bytes) -> None:
    _, findings = read(file, content)
    assert [fault.code for fault in findings.unreadable] == ["json_parse"]


def test_elements_of_an_array_on_one_line_are_told_apart(file: Path) -> None:
    rows, findings = read(file, b'[{"a": 1}, 5, {"a": 2}]')
    assert [number for number, _ in rows] == [1, 3]
    assert findings.faults[0].where.endswith(":2")
    rows, _ = read(file, b'[\n{"a": 1},\n\n{"a": 2}\n]\n')
    assert [number for number, _ in rows] == [2, 4]


@pytest.mark.parametrize(
    "value", ["[" * 200 + "]" * 200, "[" * 100_000 + "]" * 100_000, "9" * 5000], ids=["deep", "very deep", "digits"]
)
def test_values_that_break_readers_are_bad_rows_and_the_rest_is_read(file: Path, value: str) -> None:
    rows, findings = read(file, f'{{"a": {value}}}\n{{"a": 1}}\n'.encode())
    assert [number for number, _ in rows] == [2]
    assert [fault.code for fault in findings.faults] == ["json_parse"]
    _, findings = read(file, f'[{{"a": {value}}},\n{{"a": 1}}]\n'.encode())
    assert {fault.code for fault in [*findings.faults, *findings.unreadable]} == {"json_parse"}
