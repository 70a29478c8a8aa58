"""Real small files of every kind, made here, and read: rows, their numbers, and what is wrong with them."""

import csv
import gzip
import json
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pytest
import zstandard
from pyarrow import parquet
from pydantic import ValidationError

from fulltune.base.errors import RecipeError
from fulltune.data.findings import Findings
from fulltune.data.reading.places import Place
from fulltune.data.sources import LONGEST_ROW, digest, places, read_rows
from fulltune.recipe.data import Source
from fulltune.recipe.load import load_recipe

Read = tuple[list[tuple[int, dict[str, Any]]], Findings]
TOOLS = [{"m": [{"name": "f", "arguments": {"city": "x"}}]}, {"m": [{"name": "g", "arguments": {"q": 1}}]}]


def read(path: Path, content: bytes | None = None, **options: Any) -> Read:
    if content is not None:
        path.write_bytes(content)
    source, findings = Source(path=str(path), **options), Findings()
    found = places(source, findings)
    return [(line, dict(row)) for place in found for line, row in read_rows(place, findings, source)], findings


def codes(findings: Findings) -> list[tuple[str, str]]:
    return [(fault.where.rpartition(":")[2], fault.code) for fault in findings.faults]


def test_cells_are_texts_and_may_hold_line_breaks(tmp_path: Path) -> None:
    content = b'\xef\xbb\xbfa,b\r\n"x\n\ny ""q""",1\r\n\r\n,NULL\r\n'
    rows, findings = read(tmp_path / "t.csv", content)
    assert rows == [(2, {"a": 'x\n\ny "q"', "b": "1"}), (6, {"a": "", "b": "NULL"})]
    assert set(findings.notes) == {"byte_order_mark", "crlf", "blank_line"}
    rows, _ = read(tmp_path / "t.CSV", b"a;b\n1;2\n")
    assert rows == [(2, {"a": "1", "b": "2"})]


def test_wrong_quotes_and_cells_too_many_take_no_other_row_with_them(tmp_path: Path) -> None:
    rows, findings = read(tmp_path / "t.csv", b'a,b\n1,2\n"open,3\n"4",5\n6\n7,8,9\n10,caf\xe9\n11,\0\n12,13')
    assert [number for number, _ in rows] == [2, 4, 9]
    assert codes(findings) == [
        ("3", "csv_quote"),
        ("5", "csv_columns"),
        ("6", "csv_columns"),
        ("7", "encoding"),
        ("8", "encoding"),
    ]
    rows, findings = read(tmp_path / "u.csv", b'a,b\n"never closed,1\n2,3\n')
    assert rows == [(3, {"a": "2", "b": "3"})]
    assert codes(findings) == [("2", "csv_quote")]


@pytest.mark.slow
def test_quotes_that_are_wrong_all_over_end_soon(tmp_path: Path) -> None:
    _, findings = read(tmp_path / "t.csv", b"h\n" + b'a",",b\n' * 400_000)
    assert [fault.code for fault in findings.unreadable] == ["csv_quote"]
    assert len(findings.faults) < 100


def test_tabs_keep_quotes_and_a_header_can_be_given(tmp_path: Path) -> None:
    rows, findings = read(tmp_path / "t.tsv", b'ham\t"a, b\nspam\t"c"\n', header=["label", "text"])
    assert rows == [(1, {"label": "ham", "text": '"a, b'}), (2, {"label": "spam", "text": '"c"'})]
    assert findings.notes["quotes_kept"].startswith("1 x")
    rows, _ = read(tmp_path / "t.tsv", b'a\n"c\nd"\n', quoted=True)
    assert rows == [(2, {"a": "c\nd"})]


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("t.csv", b"a,b\n", "no rows"),
        ("t.csv", b"a,a\n1,2\n", "more than once"),
        ("t.csv", b'"a\n', "header"),
        ("t.txt", b"abcdef\0b", "NUL at byte 6"),
        ("t.txt", b"caf\xe9!", "UTF-8 at byte 3"),
        ("t.md", b" \n\n", "blank"),
        ("t.json", b'{\n "a": [1, 2],\n "b": [1]\n}', "neither"),
        ("t.json", b'{\n "data": [', "not JSON"),
        ("t.json", b'{"data": []}', "no rows"),
        ("t.jsonl", zstandard.compress(b'{"a": 1}\n' * 999)[:-9], "damaged zstd"),
        ("t.jsonl", zstandard.compress(b'{"a": 1}\n')[:9] + b"xxxx", "damaged zstd"),
        ("t.jsonl", gzip.compress(gzip.compress(b'{"a": 1}\n', mtime=0), mtime=0), "gzip data"),
        ("t.parquet", b"PAR1" + b"x" * 99 + b"PAR1", "not a whole Parquet"),
        ("t.arrow", b"ARROW1\0\0" + b"x" * 99, "not a whole Parquet or Arrow"),
        ("t.arrow", b"\xff\xff\xff\xff\x10\0\0\0", "not a whole Parquet or Arrow"),
    ],
)
def test_files_of_which_nothing_can_be_read(tmp_path: Path, name: str, content: bytes, said: str) -> None:
    _, findings = read(tmp_path / name, content)
    assert said in findings.unreadable[0].what
    assert findings.unreadable[0].mend


def test_objects_of_columns_and_rows_under_data(tmp_path: Path) -> None:
    wanted = [(1, {"a": "x", "b": 1}), (2, {"a": "y", "b": 2})]
    for indent in (None, 1):
        for value in ({"a": ["x", "y"], "b": [1, 2]}, {"version": 1, "data": [row for _, row in wanted]}):
            rows, findings = read(tmp_path / "t.json", json.dumps(value, indent=indent).encode())
            assert rows == wanted
            assert not findings.unreadable
    one = {"messages": [{"role": "user", "content": "x"}], "tools": [{"name": "f"}]}
    assert read(tmp_path / "t.json", json.dumps(one).encode())[0] == [(1, one)]
    assert read(tmp_path / "t.jsonl", b'{"a": ["x"]}')[0] == [(1, {"a": ["x"]})]
    assert len(read(tmp_path / "t.json", b'{"a": ["x"]}\n{"a": ["y"]}\n')[0]) == 2


def test_arrays_are_read_in_pieces(tmp_path: Path) -> None:
    rows = [{"a": "ä" * (n * 997 % 70_000)} for n in range(60)] + [{"a": "x" * (LONGEST_ROW - 100)}]
    for indent in (None, 1):
        found, findings = read(tmp_path / "t.json", json.dumps(rows, indent=indent, ensure_ascii=False).encode())
        assert [row for _, row in found] == rows
        assert not findings.unreadable


def test_texts_are_cut_as_asked_and_kept_to_the_byte(tmp_path: Path) -> None:
    content = b"a\n b\r\n\n\nc\n"
    for path in (tmp_path / "t.txt", tmp_path / "t.md"):
        assert read(path, content)[0] == [(1, {"text": "a\n b\r\n\n\nc\n"})]
        assert read(path, content, document="paragraph")[0] == [(1, {"text": "a\n b"}), (5, {"text": "c"})]
        lines = read(path, content, document="line")[0]
        assert [(n, row["text"]) for n, row in lines] == [(1, "a"), (2, " b"), (5, "c")]
    _, findings = read(tmp_path / "long.txt", b"x" * (LONGEST_ROW + 1))
    assert codes(findings) == [("1", "too_long")]


def test_texts_are_cut_at_a_separator_that_stands_alone_in_its_line(tmp_path: Path) -> None:
    content = b"a\n\nb <|end|>\r\n<|end|>\r\n<|end|>\n\n c\n\n<|end|>\n"
    found = [(1, {"text": "a\n\nb <|end|>"}), (6, {"text": "\n c"})]
    assert read(tmp_path / "t.txt", content, separator="<|end|>")[0] == found
    assert read(tmp_path / "t.txt", content.removesuffix(b"<|end|>\n"), separator=" <|end|> ")[0] == found
    assert read(tmp_path / "t.txt", b"a\n", separator="<|end|>")[0] == [(1, {"text": "a"})]
    long = b"x" * 1000 + b"\n"
    rows, findings = read(tmp_path / "t.txt", long * (LONGEST_ROW // 1000) + b"<|end|>\nb\n", separator="<|end|>")
    assert codes(findings) == [("1", "too_long")]
    assert [row["text"] for _, row in rows] == ["b"]
    for wrong in ({"separator": " "}, {"separator": "a\nb"}, {"separator": "--", "document": "line"}):
        with pytest.raises(ValidationError, match="separator"):
            Source(path="t.txt", **wrong)


def tables(folder: Path, rows: list[dict[str, Any]]) -> list[Path]:
    """The same rows as Parquet, Arrow file and Arrow stream."""
    table = pa.Table.from_pylist(rows)
    parquet.write_table(table, folder / "t.parquet", row_group_size=7)
    with pa.ipc.new_file(folder / "t.arrow", table.schema) as out:
        out.write_table(table, max_chunksize=5)
    with pa.ipc.new_stream(folder / "s.arrow", table.schema) as out:
        out.write_table(table, max_chunksize=5)
    return [folder / name for name in ("t.parquet", "t.arrow", "s.arrow")]


def test_landmine_B18_structs_keep_only_their_own_keys(tmp_path: Path) -> None:
    for path in tables(tmp_path, TOOLS):
        assert read(path)[0] == [(1, TOOLS[0]), (2, TOOLS[1])]
    datasets.Dataset.from_list(TOOLS).save_to_disk(tmp_path / "saved")
    assert read(tmp_path / "saved")[0] == [(1, TOOLS[0]), (2, TOOLS[1])]


def test_tables_are_numbered_by_row_and_hold_texts(tmp_path: Path) -> None:
    rows = [{"text": f"ä{n}" * n, "n": n, "none": None, "l": ["x", None]} for n in range(600)]
    for path in tables(tmp_path, rows):
        assert read(path)[0] == list(enumerate(rows, 1))
    for path in tables(tmp_path, [{"text": "a"}, {"text": "x" * (LONGEST_ROW + 1)}, {"text": "c"}]):
        found, findings = read(path)
        assert [number for number, _ in found] == [1, 3]
        assert codes(findings) == [("2", "too_long")]
    for path in tables(tmp_path, [{"text": b"bytes"}]):
        assert read(path)[0] == [(1, {"text": {"bytes": 5}})]


@pytest.mark.parametrize("pack", [gzip.compress, zstandard.compress, lambda b: zstandard.compress(b) * 2])
def test_packed_files_are_told_by_their_bytes(tmp_path: Path, pack: Any) -> None:
    times = 2 if pack not in (gzip.compress, zstandard.compress) else 1
    line = b'{"text": "' + b"x" * 300_000 + b'"}\n'
    assert len(read(tmp_path / "t.jsonl", pack(line))[0]) == times
    assert len(read(tmp_path / "t.csv.gz", pack(b"text\nx\n"))[0]) == 2 * times - 1
    assert len(read(tmp_path / "t.txt.zst", pack(b"text\n"))[0]) == 1


def test_folders_and_patterns_are_read_in_order(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    for name in ("b.jsonl", "a.csv", "sub/c.json", "README.md", ".hidden.jsonl", "x.png"):
        (tmp_path / name).write_bytes(b"a\n1\n" if name.endswith("csv") else b'{"a": "1"}\n')
    rows, findings = read(tmp_path)
    assert len(rows) == 3
    assert findings.notes["file_left_out"].startswith("2 x")
    found = places(Source(path=str(tmp_path / "**/*.js*")), Findings())
    assert [Path(place.path).name for place in found] == [".hidden.jsonl", "b.jsonl", "c.json"]
    _, findings = read(tmp_path / "*.none")
    assert "no file matches" in findings.unreadable[0].what
    (tmp_path / "t.txt").write_text("x")
    assert read(tmp_path)[1].unreadable[0].code == "mixed_files"
    (tmp_path / "empty").mkdir()
    assert "no data files" in read(tmp_path / "empty")[1].unreadable[0].what


@pytest.mark.parametrize(
    "options",
    [
        {"split": "train[:1]"},
        {"name": "x"},
        {"revision": "x"},
        {"streaming": True},
        {"document": "line"},
        {"separator": "--"},
        {"header": ["a"]},
        {"quoted": True},
    ],
)
def test_no_option_is_ignored(tmp_path: Path, options: dict[str, Any]) -> None:
    _, findings = read(tmp_path / "t.jsonl", b'{"a": 1}\n', **options)
    assert [fault.code for fault in findings.unreadable] == ["unused_option"]


def test_landmine_L3_a_slice_of_a_split_is_that_slice(tmp_path: Path) -> None:
    made = datasets.Dataset.from_dict({"text": [f"row {n}" for n in range(40)]})
    made.save_to_disk(tmp_path / "one")
    datasets.DatasetDict({"train": made, "test": made.select(range(4))}).save_to_disk(tmp_path / "two")
    for folder in ("one", "two"):
        for split, count in (("train[:10]", 10), ("train[50%:]", 20), ("train[:2]+train[-3:]", 5)):
            rows, findings = read(tmp_path / folder, split=split)
            assert len(rows) == count, (folder, split, findings.unreadable)
    assert len(read(tmp_path / "one")[0]) == 40
    assert len(read(tmp_path / "two", split="test")[0]) == 4
    assert "train, test" in read(tmp_path / "two")[1].unreadable[0].what
    for split in ("validation", "train[", "x[:1]"):
        assert "split" in read(tmp_path / "two", split=split)[1].unreadable[0].what


def test_a_data_set_is_streamed_and_only_as_far_as_is_asked(tmp_path: Path) -> None:
    """The loading code of the hub, on a folder of its shape."""
    lines = [json.dumps({"text": f"row {n}", "n": n}) for n in range(40)]
    (tmp_path / "train.jsonl").write_text("\n".join(lines))
    (tmp_path / "test.jsonl").write_text(lines[0])
    place = Place("hub", str(tmp_path))

    def streamed(split: str | None, place: Place = place) -> tuple[list[int], Findings]:
        findings = Findings()
        source = Source(path="org/name", split=split, streaming=True)
        return [int(row["n"]) for _, row in read_rows(place, findings, source)], findings

    for split, wanted in (("train", range(40)), ("train[:3]", range(3)), ("train[38:]", (38, 39)), ("test[0:9]", (0,))):
        assert streamed(split)[0] == list(wanted), split
    assert "splits" in streamed(None)[1].unreadable[0].what
    assert "no part of a stream" in streamed("train[:10%]")[1].unreadable[0].what
    assert "empty" in streamed("train[5:5]")[1].unreadable[0].what
    source = Source(path="org/name", split="train", streaming=True)
    before = digest(place, source)
    assert len(before) == 32
    (tmp_path / "train.jsonl").write_text("\n".join(lines[:9]))
    assert digest(place, source) != before
    (tmp_path / "one").mkdir()
    (tmp_path / "one/rows.jsonl").write_text("\n".join(lines))
    assert streamed(None, Place("hub", str(tmp_path / "one")))[0] == list(range(40))


def test_a_hub_that_cannot_be_reached_is_one_fault() -> None:
    script = (
        "from fulltune.data.findings import Findings\nfrom fulltune.data.sources import *\n"
        "from fulltune.recipe.data import Source\n"
        "s, f = Source(path='nobody/nothing', split='train'), Findings()\n"
        "print([list(read_rows(p, f, s)) for p in places(s, f)], len(f.unreadable), f.unreadable[0].mend)"
    )
    env = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "PYTHONPATH": ":".join(sys.path)}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=env, check=True)
    assert done.stdout.startswith("[[]] 1 check the path or the id")


def test_addresses_are_read_through_fsspec(tmp_path: Path) -> None:
    import fsspec

    with fsspec.open("memory://x/rows.jsonl", "wb") as out:
        out.write(gzip.compress(b'{"a": 1}\n{"a": 2}\n'))
    source, findings = Source(path="memory://x/rows.jsonl"), Findings()
    (place,) = places(source, findings)
    assert len(list(read_rows(place, findings, source))) == 2
    assert len(digest(place, source)) == 64
    assert Place("remote", "https://x.org/rows.csv.gz?download=1").suffix == ".csv"
    missing = Place("remote", "memory://x/none.jsonl")
    assert list(read_rows(missing, findings, source)) == []
    assert "cannot be read" in findings.unreadable[0].what
    with pytest.raises(RecipeError, match="zzz"):
        list(read_rows(Place("remote", "zzz://x/none.jsonl"), findings, source))


def test_paths_of_sources_are_rooted_but_addresses_and_ids_are_not(tmp_path: Path) -> None:
    (tmp_path / "org").mkdir()
    (tmp_path / "org/here").mkdir()
    named = ["data/*.jsonl", "s3://b/x.jsonl", "org/name", "org/here", "data/rows.jsonl", {"path": "org/other"}]
    recipe = tmp_path / "r.yaml"
    recipe.write_text(f"model: {{path: /m}}\ndata: {{train: {json.dumps(named)}, test: org/x}}\n")
    loaded = load_recipe(recipe).data
    root = str(tmp_path)
    assert [source.path.replace(root, ".") for source in loaded.train] == [
        "./data/*.jsonl",
        "s3://b/x.jsonl",
        "org/name",
        "./org/here",
        "./data/rows.jsonl",
        "org/other",
    ]
    assert loaded.test[0].path == "org/x"


def test_lines_need_neither_pyarrow_nor_datasets(tmp_path: Path) -> None:
    (tmp_path / "t.jsonl").write_text('{"a": 1}\n')
    script = (
        "import sys\nfrom pathlib import Path\nimport fulltune.data.prepare\n"
        "from fulltune.data.findings import Findings\nfrom fulltune.data.sources import read_rows\n"
        f"print(len(list(read_rows(Path({str(tmp_path / 't.jsonl')!r}), Findings()))))\n"
        "print({'pyarrow', 'datasets', 'zstandard', 'pandas', 'fsspec'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["1", "set()"]


def samples(folder: Path) -> dict[str, bytes]:
    """A small file of every kind."""
    rows = [{"prompt": f"ask ä {n}", "completion": f'say "{n}"\nthere', "l": [{"a": n, "b": None}]} for n in range(12)]
    lines = b"".join(json.dumps(row).encode() + b"\n" for row in rows)
    made = {f"{n}.{path.name}": path.read_bytes() for n, path in enumerate(tables(folder, rows))}
    with (folder / "w.csv").open("w", newline="") as out:
        csv.writer(out).writerows([("a", "b"), *((row["prompt"], row["completion"]) for row in rows)])
    cells = (folder / "w.csv").read_bytes()
    columns = {key: [row[key] for row in rows] for key in ("prompt", "completion")}
    return made | {
        "a.jsonl": lines,
        "b.json": json.dumps(rows, indent=1).encode(),
        "c.json": json.dumps(columns).encode(),
        "d.json": json.dumps({"data": rows}, indent=1).encode(),
        "e.csv": cells,
        "f.tsv": cells.replace(b",", b"\t"),
        "g.txt": lines,
        "h.jsonl.gz": gzip.compress(lines),
        "i.csv.zst": zstandard.compress(cells),
    }


def mutated(content: bytes, dice: random.Random) -> bytes:
    made = bytearray(content)
    for _ in range(dice.choice((1, 1, 2, 5))):
        at = dice.randrange(len(made) + 1)
        match dice.randrange(5):
            case 0:
                del made[at:]
            case 1:
                made[at : at + 1] = bytes([dice.randrange(256)])
            case 2:
                made[at:at] = dice.choice((b'"', b"\n", b"\0", b"[", b"{", b",", b"\xff\xff\xff\x7f", b'"' * 99))
            case 3:
                del made[at : at + dice.randrange(1, 40)]
            case _:
                made[at:at] = made[: dice.randrange(1, 200)]
        made = made or bytearray(b"x")
    return bytes(made)


@pytest.mark.parametrize("times", [25, pytest.param(900, marks=pytest.mark.slow)])
def test_no_mutation_breaks_a_reader(tmp_path: Path, times: int) -> None:
    import resource

    dice = random.Random(7)
    made = samples(tmp_path)
    assert all(not read(tmp_path / name, content)[1].unreadable for name, content in made.items())
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for name, content in made.items():
        for number in range(times):
            bad = mutated(content, dice)
            try:
                rows, findings = read(tmp_path / name, bad)
            except Exception as fault:
                (tmp_path / f"broke-{number}-{name}").write_bytes(bad)
                raise AssertionError(f"{tmp_path}/broke-{number}-{name}") from fault
            assert rows or findings.faults or findings.unreadable
            json.dumps(rows)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 512 * 1024, "KiB of resident memory"
