"""The parts of the benchmarks: rows, numbers, tables, what is shown of a command, what is seen of processes."""

import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from transformers import AutoTokenizer

from benchmarks import compare, environment, fresh, machine, material, options, prepare, report, rows, summary, watch
from benchmarks.contestants import columns, dump
from benchmarks.contestants.task import Answer, Clock, Task, main_peak
from benchmarks.contestants.with_fulltune import recipe
from fulltune.recipe.load import load_recipe
from tests.conftest import ROOT

MIB = 2**20


def test_rows_are_always_the_same(tmp_path: Path) -> None:
    for name in ("one", "two"):
        rows.write(tmp_path / name, rows.embedded(), 900)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
    assert list(rows.rows(rows.embedded(), 900, seed=1)) != list(rows.rows(rows.embedded(), 900))
    assert [*rows.rows(rows.embedded(), 900)][:100] == [*rows.rows(rows.embedded(), 100)]


def test_no_two_rows_are_alike_and_all_can_be_taught() -> None:
    made = list(rows.rows(rows.embedded(), 3000))
    assert len({json.dumps(turns) for turns in made}) == 3000
    assert len({turns[0]["content"] for turns in made}) == 3000
    assert {turn["role"] for turns in made for turn in turns} == {"user", "assistant"}
    assert all(turns[-1]["content"].strip() for turns in made)
    assert len({len(turns) for turns in made}) > 4


def test_a_corpus_of_ones_own(tmp_path: Path) -> None:
    path = tmp_path / "own.jsonl"
    pairs = [{"question": "a b", "answer": "c"}, {"prompt": "a", "completion": "c", "id": 3}]
    whole = {"messages": [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}]}
    path.write_text("".join(json.dumps(row) + "\n" for row in [*pairs, whole]))
    corpus = rows.corpus_of(path)
    assert corpus[0] == [{"role": "user", "content": "a b"}, {"role": "assistant", "content": "c"}]
    assert next(iter(rows.rows(corpus[2:], 1)))[1] == {"role": "user", "content": "u [0]"}


@pytest.mark.parametrize(
    "line",
    [
        "[]",
        "{",
        '{"text": "a"}',
        '{"messages": []}',
        '{"messages": [{"role": "tool", "content": "a"}]}',
        '{"messages": [{"role": "user", "content": null}]}',
        '{"messages": [{"role": "user", "content": "a", "tool_calls": []}]}',
        '{"question": 3, "answer": "a"}',
    ],
)
def test_a_corpus_that_rows_cannot_be_made_from(tmp_path: Path, line: str) -> None:
    path = tmp_path / "own.jsonl"
    path.write_text('{"prompt": "a", "completion": "b"}\n' + line + "\n")
    with pytest.raises(rows.BadCorpus, match=r"own\.jsonl:2"):
        rows.corpus_of(path)
    path.write_text("")
    with pytest.raises(rows.BadCorpus, match="no row"):
        rows.corpus_of(path)


def test_the_template_writes_what_the_embedded_one_writes(tmp_path: Path) -> None:
    material.model_folder(tmp_path / "made", None, None)
    material.model_folder(tmp_path / "own", ROOT / "src/fulltune/embedded/model", None)
    assert not list(tmp_path.rglob("*.safetensors"))
    made, own = (AutoTokenizer.from_pretrained(tmp_path / name) for name in ("made", "own"))
    assert made.chat_template != own.chat_template
    for turns in rows.rows(rows.embedded(), 50):
        for prompt in (False, True):
            texts = {t.apply_chat_template(turns, tokenize=False, add_generation_prompt=prompt) for t in (made, own)}
            assert len(texts) == 1


def test_a_tokenizer_without_a_config_gets_one(tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    bare.mkdir()
    (bare / "tokenizer.json").write_text("{}")
    material.model_folder(tmp_path / "made", bare, material.TEMPLATE)
    assert {path.name for path in (tmp_path / "made").iterdir()} == {
        "chat_template.jinja",
        "config.json",
        "tokenizer.json",
    }
    assert material.digest(tmp_path / "made") != material.digest(bare)


def test_numbers() -> None:
    found = summary.spread([3.0, 1.0, 2.0])
    assert (found.median, found.low, found.high, found.share) == (2.0, 1.0, 3.0, 1.0)
    # In pairs: a machine that was three times slower in the second round changes no ratio.
    assert summary.ratios([2.0, 6.0], [1.0, 3.0]) == summary.Spread(2.0, 2.0, 2.0)
    assert summary.growth((100, 1_000), (300, 5_000)) == 20.0
    assert summary.spread([0.0]).share == 0.0


def test_a_table_is_aligned() -> None:
    text = report.table(["who", "seconds"], [["fulltune", "1.00"], ["a", "10.00"]])
    assert text.splitlines() == [
        "| who      | seconds |",
        "|----------|--------:|",
        "| fulltune |    1.00 |",
        "| a        |   10.00 |",
    ]


def test_results_are_never_overwritten(tmp_path: Path) -> None:
    one, first = report.write(tmp_path / "new", "prepare", "page", {"number": summary.spread([1.0])})
    two, second = report.write(tmp_path / "new", "prepare", "other", {"path": Path("/a/b")})
    assert one == two
    assert first != second
    assert one.read_text().startswith("other") and second.name in one.read_text()
    assert json.loads(first.read_text()) == {"number": {"median": 1.0, "low": 1.0, "high": 1.0}}
    assert json.loads(second.read_text()) == {"path": "b"}


def test_versions_are_named_once_unless_they_differ() -> None:
    found = {"ours": {"torch": "1", "numpy": "2"}, "trl": {"torch": "1", "numpy": "3", "trl": "4"}}
    assert report.versions(found) == "torch 1, numpy 2 (ours), 3 (trl), trl 4"


def test_no_path_of_this_machine_is_shown() -> None:
    inside = str(ROOT / "benchmarks" / "template.jinja")
    words = ["--rows", "5", "--source", "/secret/place/rows.jsonl", f"--template={inside}", "--work=/secret/place"]
    shown = machine.command("benchmarks.prepare", words)
    assert shown == (
        "python -m benchmarks.prepare --rows 5 --source .../rows.jsonl --template=benchmarks/template.jinja "
        "--work=.../place"
    )


def test_this_machine() -> None:
    found = machine.machine()
    assert found.cores > 0 and found.memory > 100 * MIB and found.cpu


HOLD = "import os; held = b'x' * {size}; os.write(1, b'held\\n'); input()"
START = f"""
import subprocess, sys
child = subprocess.Popen([sys.executable, '-c', {HOLD!r}.format(size=30 * 2**20)])
{HOLD.format(size=50 * MIB)}
child.wait()
"""


def test_all_processes_of_a_session_are_seen() -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", START],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    assert process.stdout is not None
    with watch.Watch(process.pid, every=0.001) as looking:
        assert [process.stdout.readline() for _ in range(2)] == [b"held\n"] * 2
        seen = watch.memory(process.pid)
        process.communicate(b"\n\n")
    assert seen.processes == 2
    assert 80 * MIB < seen.own < 200 * MIB
    assert 50 * MIB < seen.main < seen.own - 30 * MIB
    assert seen.own <= seen.pss
    assert looking.seen
    assert watch.memory(process.pid).processes == 0


def look(at: float, size: int) -> watch.Memory:
    return watch.Memory(at=at, processes=size, pss=10 * size, own=size, main=size)


def test_a_peak_is_that_of_the_timed_phases() -> None:
    seen = [look(0.0, 9), look(1.0, 2), look(2.0, 3), look(3.0, 5), look(4.0, 4), look(5.0, 8)]
    found = fresh.peak(seen, (1.5, 4.5))
    assert (found.before, found.pss, found.own, found.processes, found.looks) == (20, 50, 5, 5, 3)
    with pytest.raises(fresh.Failed, match="more rows"):
        fresh.peak(seen, (1.4, 1.5))


def task(folder: Path) -> Task:
    return Task(
        rows=str(folder / "rows.jsonl"),
        model=str(folder / "model"),
        out=str(folder / "out"),
        answer=str(folder / "answer.json"),
        processes=1,
        max_length=64,
        heldout=0.1,
    )


def test_tasks_and_answers_travel_as_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = task(tmp_path)
    asked.write(tmp_path / "task.json")
    monkeypatch.setattr(sys, "argv", ["contestant", str(tmp_path / "task.json")])
    assert Task.given() == asked
    assert asked.workers is None
    clock = Clock()
    before = time.monotonic()
    with clock.phase("load"):
        pass
    with clock.phase("prepare"):
        sum(range(1_000_000))
    answer = Answer(
        phases=clock.phases,
        cpu=clock.cpu,
        main_peak=main_peak(),
        rows=1,
        tokens=2,
        supervised_tokens=1,
        written=0,
        versions={},
        remarks={},
    )
    answer.write(asked.answer)
    assert Answer.read(Path(asked.answer)) == answer
    assert answer.seconds.keys() == {"load", "prepare"}
    assert before <= answer.window[0] <= answer.window[1] <= time.monotonic()
    assert answer.main_peak > 10 * MIB
    assert 0 < answer.cpu_seconds < answer.cpu_from_start


def test_all_rows_are_as_many_as_the_source_has(tmp_path: Path) -> None:
    source = tmp_path / "rows.jsonl"
    source.write_text('{"question": "a", "answer": "b"}\n' * 7)
    assert prepare._asked(["--rows", "all", "--source", str(source)]).rows == 7
    assert prepare._asked(["--rows", "12"]).rows == 12


def test_our_recipe_is_one(tmp_path: Path) -> None:
    asked, remarks = recipe(task(tmp_path))
    made = load_recipe(asked)
    assert made.data.on_bad_row == "error"
    assert ("processes" in asked["data"]) != ("processes" in remarks)


def written(folder: Path, made: list[tuple[list[int], list[int]]]) -> Path:
    ids, taught = ([value for row in made for value in row[part]] for part in (0, 1))
    dump.write(str(folder), np.array(ids), np.array(taught), np.array([len(row[0]) for row in made]))
    return folder


def test_differences_are_found_whatever_the_order(tmp_path: Path) -> None:
    ours = written(tmp_path / "ours", [([1, 2, 3], [0, 1, 1]), ([4, 5], [0, 1]), ([6], [1])])
    same = written(tmp_path / "same", [([6], [1]), ([4, 5], [0, 1]), ([1, 2, 3], [0, 1, 1])])
    other = written(tmp_path / "other", [([4, 5], [1, 0]), ([1, 2, 3], [0, 1, 1]), ([7], [1])])
    whole = compare.compare(ours, same, tmp_path)
    assert whole.whole
    assert compare.said(whole, "it") == "it: the same tokens in all 3 rows, and the same of them taught."
    part = compare.compare(ours, other, tmp_path)
    assert not part.whole
    assert (part.rows, part.same_tokens, part.same_taught) == (3, 2, 1)
    assert (part.ours, part.theirs) == ((("5", 1),), (("4", 1),))
    assert "taught by it alone: `4` 1 times" in compare.said(part, "it")


def test_columns_are_counted_and_dumped(tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    ids = pa.chunked_array([pa.array([[1, 2, 3], [4]]), pa.array([[5, 6]]).slice(0)])
    labels = pa.chunked_array([pa.array([[-100, 2, 3], [4]]), pa.array([[9, 9], [-100, 6]]).slice(1)])
    taught = columns.mask(labels)
    assert taught.to_pylist() == [[0, 1, 1], [1], [0, 1]]
    assert columns.counts(ids, taught) == (3, 6, 4)
    columns.write_dump(str(tmp_path / "dump"), ids, taught)
    flat = dump.read(tmp_path / "dump")
    assert [values.tolist() for values in flat] == [
        [1, 2, 3, 4, 5, 6],
        [False, True, True, True, False, True],
        [3, 1, 2],
    ]


def test_an_environment_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(environment.Absent, match="there is no"):
        environment.trl_python(tmp_path / "python")
    script = tmp_path / "python"
    script.write_text("#!/bin/sh\nexit 1\n")
    script.chmod(0o755)
    with pytest.raises(environment.Absent, match="cannot import trl"):
        environment.trl_python(script)


def test_trl_is_pinned() -> None:
    lines = [line for line in environment.REQUIREMENTS.read_text().splitlines() if not line.startswith("#")]
    pinned = {line.partition("==")[0].lower() for line in environment.CONSTRAINTS.read_text().splitlines()}
    assert "trl" in {line.partition("==")[0] for line in lines}
    for line in lines:
        assert ("==" in line) != (line.partition("==")[0].lower() in pinned), f"{line}: one pin, here or there"


@pytest.mark.parametrize("text", ["0", "-1", "a"])
def test_counts_are_whole_numbers_from_one(text: str) -> None:
    with pytest.raises(ValueError):
        options.positive(text)
