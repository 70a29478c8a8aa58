"""Rows in parts: the same store however many processes made it, wherever it was killed, whatever was left out."""

import gc
import json
import os
import shutil
import signal
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fulltune.base.errors import DataError, Interrupted, MachineError
from fulltune.base.records import IGNORE, DataFacts
from fulltune.base.stop import listening
from fulltune.data import gather, pool, work
from fulltune.data.doctor.near import near_duplicates
from fulltune.data.prepare import Kit, Preparation, identity, prepare
from fulltune.data.store import Store
from fulltune.data.template import Template
from tests import tiny
from tests.unit.data.test_prepare import TOKENS, opened, run, section


def kit() -> Kit:
    tokens = tiny.tokenizer()
    return Kit(tokens, Template(tokens, None, "t"))


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_cycles_are_looked_for_as_before_once_the_rows_are_done() -> None:
    before, seen = gc.get_threshold(), []
    pool.do([1], lambda: lambda task: seen.append(gc.get_threshold()), None, 1)
    assert seen[0] > before
    with pytest.raises(ZeroDivisionError):
        pool.do([0], lambda: lambda task: 1 // task, None, 1)  # type: ignore[arg-type, return-value]
    assert gc.get_threshold() == before


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gather, "ROWS", 8)


def messy(path: Path) -> Path:
    """Rows with faults, repetitions and near-repetitions in several parts."""
    made: list[Any] = [dict(row) for row in tiny.rows(60)]
    made[9], made[33] = made[2], made[2]
    made[20] = {"prompt": "a", "completion": ""}
    made[41] = {"prompt": "a"}
    lines = [json.dumps(row) for row in made]
    lines[50] = "not json"
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.mark.usefixtures("small")
def test_two_processes_make_the_same_store_as_one(tmp_path: Path) -> None:
    rows, facts = messy(tmp_path / "rows.jsonl"), []
    for processes in (1, 2):
        asked = section(train=str(rows), heldout=0.3, on_bad_row="drop", processes=processes)
        here = kit()
        name = identity(asked, "tokens", here.template)
        facts.append(prepare(asked, here, tmp_path / f"s{processes}", name, load=kit))
    assert facts[0] == facts[1]
    assert contents(tmp_path / "s1") == contents(tmp_path / "s2")
    assert facts[0].dropped == {"duplicate": 2, "empty_answer": 1, "json_parse": 1, "missing_field": 1}
    assert len(list((tmp_path / "s1/shards").iterdir())) == 8


@pytest.mark.usefixtures("small")
def test_parts_change_nothing_but_where_tokens_lie(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = messy(tmp_path / "rows.jsonl")
    many = run(tmp_path / "many", train=str(rows), heldout=0.3, on_bad_row="drop")
    monkeypatch.setattr(gather, "ROWS", 4096)
    one = run(tmp_path / "one", train=str(rows), heldout=0.3, on_bad_row="drop")
    assert many == one
    for split in ("train", "heldout"):
        left, right = opened(tmp_path / "many", many, split), opened(tmp_path / "one", one, split)
        assert [left.origin(n) for n in range(len(left))] == [right.origin(n) for n in range(len(right))]
        assert all(
            (left[n].ids == right[n].ids).all() and (left[n].labels == right[n].labels).all() for n in range(len(left))
        )


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("killed_after", [0, 1, 5, 7])
def test_a_killed_preparation_goes_on_and_ends_with_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, killed_after: int
) -> None:
    rows = messy(tmp_path / "rows.jsonl")
    asked = section(train=str(rows), heldout=0.3, on_bad_row="drop")
    whole = prepare(asked, kit(), tmp_path / "whole", "x", parts=tmp_path / "p")
    made: list[str] = []
    real: Callable[..., None] = work.Worker.__call__

    class KilledError(BaseException):
        pass

    def counting(self: work.Worker, task: work.Task, most: int | None) -> None:
        if not task.folder.exists():
            if most is not None and len(made) == most:
                (task.folder.with_name(f"{task.folder.name}.draft")).mkdir()
                raise KilledError
            made.append(task.folder.name)
        real(self, task)

    monkeypatch.setattr(work.Worker, "__call__", lambda self, task: counting(self, task, killed_after))
    with pytest.raises(KilledError):
        prepare(asked, kit(), tmp_path / "half", "x", parts=tmp_path / "parts")
    shutil.rmtree(tmp_path / "half", ignore_errors=True)
    monkeypatch.setattr(work.Worker, "__call__", lambda self, task: counting(self, task, None))
    again = prepare(asked, kit(), tmp_path / "half", "x", parts=tmp_path / "parts")
    assert again == whole
    assert contents(tmp_path / "half") == contents(tmp_path / "whole")
    assert len(made) == len(set(made)) == 8, "no part was made twice"


@pytest.mark.usefixtures("small")
def test_rejected_rows_stand_with_their_reasons(tmp_path: Path) -> None:
    rows = messy(tmp_path / "rows.jsonl")
    facts = run(tmp_path / "s", train=str(rows), on_bad_row="drop")
    told = [json.loads(line) for line in (tmp_path / "s/rejected.jsonl").read_text().splitlines()]
    found = {(int(line["origin"].rpartition(":")[2]), line["code"]) for line in told}
    assert found == {
        (10, "duplicate"),
        (34, "duplicate"),
        (21, "empty_answer"),
        (42, "missing_field"),
        (51, "json_parse"),
    }
    assert len(told) == sum(facts.dropped.values())
    lines = rows.read_text().splitlines()
    for line in told:
        number = int(line["origin"].rpartition(":")[2])
        assert line["row"] == (None if line["code"] == "json_parse" else json.loads(lines[number - 1]))
        assert line["what"]
    assert not (run_clean(tmp_path) / "rejected.jsonl").exists()


def run_clean(tmp_path: Path) -> Path:
    run(tmp_path / "clean", train=str(tiny.jsonl(tmp_path / "clean.jsonl", tiny.rows(5))))
    return tmp_path / "clean"


@pytest.mark.slow
def test_a_process_that_is_killed_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gather, "ROWS", 8)
    rows = tiny.jsonl(tmp_path / "rows.jsonl", tiny.rows(60))
    asked = section(train=str(rows), processes=2)
    with pytest.raises(MachineError, match="killed"):
        Preparation(asked, kit(), tmp_path / "parts", load=_dying)


def _dying() -> Kit:
    made = kit()
    object.__setattr__(made, "template", None)
    os.kill(os.getpid(), signal.SIGKILL)
    return made


def test_a_fault_in_another_process_is_the_same_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gather, "ROWS", 8)
    rows = tiny.jsonl(tmp_path / "rows.jsonl", tiny.rows(60))
    with pytest.raises(DataError, match="no chat template"):
        Preparation(section(train=str(rows), processes=2), kit(), tmp_path / "parts", load=_without_template)


def _without_template() -> Kit:
    tokens = tiny.tokenizer()
    tokens.chat_template = None
    return Kit(tokens, Template(tokens, None, "t"))


@pytest.mark.usefixtures("small")
def test_a_signal_ends_each_step_of_a_preparation(tmp_path: Path) -> None:
    made = long_rows(40)
    rows = tiny.jsonl(tmp_path / "rows.jsonl", [*made, nearly(made[4])])
    asked, here = section(train=str(rows), max_length=999), kit()
    work = Preparation(asked, here, tmp_path / "parts")
    work.examine()
    for step in (
        lambda: identity(asked, "tokens", here.template),
        lambda: Preparation(asked, here, tmp_path / "other"),
        work.examine,
        lambda: work.publish(tmp_path / "store", "x"),
    ):
        with listening(), pytest.raises(Interrupted):
            os.kill(os.getpid(), signal.SIGTERM)
            step()
    assert not list((tmp_path / "other").glob("*")), "no part was begun"
    assert not (tmp_path / "store/shards/000000").exists()


def test_a_signal_is_heard_while_waiting_for_other_processes() -> None:
    with listening(), pytest.raises(Interrupted):
        os.kill(os.getpid(), signal.SIGTERM)
        pool._settle({Future()})


def test_a_signal_ends_the_search_for_near_duplicates(tmp_path: Path) -> None:
    made = long_rows(12)
    rows = tiny.jsonl(tmp_path / "rows.jsonl", [*made, nearly(made[4])])
    Preparation(section(train=str(rows), max_length=999), kit(), tmp_path / "parts")
    folders = sorted((tmp_path / "parts").glob("*/near"))
    side = np.zeros(13, np.int8)
    assert len(near_duplicates(folders, side).surplus) == 1
    with listening(), pytest.raises(Interrupted):
        os.kill(os.getpid(), signal.SIGTERM)
        near_duplicates(folders, side)


def documents(path: Path, lengths: list[int]) -> Path:
    words = "the a cat dog sat ran on under mat tree".split()
    made = [{"text": " ".join(words[(n + k) % 10] for k in range(length))} for n, length in enumerate(lengths)]
    return tiny.jsonl(path, made)


def predicted(store: Store) -> list[int]:
    """Every token that is taught, in order."""
    return [int(label) for n in range(len(store)) for label in store[n].labels if label != IGNORE]


def test_a_long_document_is_split_and_no_token_is_lost(tmp_path: Path) -> None:
    rows = documents(tmp_path / "d.jsonl", [100, 3, 40])
    with pytest.raises(DataError, match="too_long|data.max_length allows"):
        run(tmp_path / "s0", train=str(rows), max_length=32)
    whole = run(tmp_path / "s1", train=str(rows), max_length=999)
    split = run(tmp_path / "s2", train=str(rows), max_length=32, over_length="split")
    one, many = opened(tmp_path / "s1", whole, "train"), opened(tmp_path / "s2", split, "train")
    assert predicted(many) == predicted(one)
    assert max(many.lengths) == 32
    assert (split.kept, split.truncated) == (3, 0)
    assert split.splits["train"].examples > 3
    assert split.splits["train"].supervised_tokens == whole.splits["train"].supervised_tokens
    chats = tiny.jsonl(tmp_path / "c.jsonl", [{"prompt": "a", "completion": "the cat " * 50}])
    with pytest.raises(DataError, match="only documents can be split"):
        run(tmp_path / "s3", train=str(chats), max_length=32, over_length="split")


def test_documents_are_joined_and_none_is_cut(tmp_path: Path) -> None:
    rows = documents(tmp_path / "d.jsonl", [5, 6, 7, 8, 9, 10, 20, 4, 100, 3])
    alone = run(tmp_path / "s1", train=str(rows), max_length=999)
    joined = run(tmp_path / "s2", train={"path": str(rows), "join": True}, max_length=32, over_length="split")
    one, many = opened(tmp_path / "s1", alone, "train"), opened(tmp_path / "s2", joined, "train")
    assert predicted(many) == predicted(one), "the same is taught, no document is taught to begin another"
    assert joined.kept == joined.rows == 10
    split = run(tmp_path / "s3", train=str(rows), max_length=32, over_length="split")
    assert joined.splits["train"].examples < split.splits["train"].examples
    assert max(many.lengths) <= 32
    begins = TOKENS.bos_token_id
    # But for the long one, no document begins in one example and ends in another.
    assert [int(many[n].ids[0]) for n in range(3)] == [begins] * 3
    assert sum(int((many[n].ids == begins).sum()) for n in range(len(many))) == 10


def test_further_rows_are_taught_and_never_measured(tmp_path: Path) -> None:
    made = [
        {"instruction": f"do {row['prompt']}", "input": "the cat", "output": row["completion"]} for row in tiny.rows(40)
    ]
    rows = tiny.jsonl(tmp_path / "r.jsonl", made)
    source = {"path": str(rows), "augment": "field_order"}
    plain = run(tmp_path / "s1", train=str(rows), heldout=0.3)
    more = run(tmp_path / "s2", train=source, heldout=0.3)
    assert more.splits["heldout"] == plain.splits["heldout"]
    train = plain.splits["train"].examples
    assert more.splits["train"].examples == 2 * train
    assert more.sources["train"][0].augmented == train
    assert (more.rows, more.kept) == (plain.rows, plain.kept) == (40, 40)
    store = opened(tmp_path / "s2", more, "train")
    texts = [TOKENS.decode(store[n].ids) for n in range(4)]
    assert [store.origin(n).rpartition(":")[2] for n in (0, 2)] == [store.origin(n).rpartition(":")[2] for n in (1, 3)]
    assert texts[0] != texts[1]


def test_replay_is_never_held_out_and_stays_apart_from_what_is_measured(tmp_path: Path) -> None:
    rows = tiny.jsonl(tmp_path / "r.jsonl", tiny.rows(30))
    general = tiny.jsonl(tmp_path / "g.jsonl", [{"text": f"the cat sat {n}"} for n in range(20)])
    facts = run(tmp_path / "s", train=str(rows), replay=str(general), heldout=0.5)
    assert facts.splits["train"].by_source[1] == 20
    with pytest.raises(DataError, match="train holds the same content"):
        run(tmp_path / "s2", train=str(rows), replay=str(general), retention=str(general))


def test_checks_leave_rows_out_or_refuse(tmp_path: Path) -> None:
    made = [dict(row) for row in tiny.rows(30)]
    made[3]["completion"] += " mail zoe@example.org"
    rows = tiny.jsonl(tmp_path / "r.jsonl", made)
    kept = run(tmp_path / "s", train=str(rows))
    assert kept.doctor["survey"]["found"]["pii_email"]["rows"] == 1
    dropped = run(tmp_path / "s2", train=str(rows), checks={"pii_email": "drop"})
    assert dropped.dropped == {"pii_email": 1}
    assert dropped.splits["train"].examples == 29
    (told,) = (tmp_path / "s2/rejected.jsonl").read_text().splitlines()
    assert json.loads(told)["code"] == "pii_email"
    with pytest.raises(DataError, match="e-mail"):
        run(tmp_path / "s3", train=str(rows), checks={"pii_email": "error"})


def long_rows(count: int) -> list[dict[str, str]]:
    rng = np.random.default_rng(0)
    words = [f"{'bcdfghklmnprst'[n % 14]}{'aeiou'[n % 5]}{'bcdfghklmnprst'[n // 5 % 14]}{n % 7}" for n in range(400)]
    text = lambda size: " ".join(words[k] for k in rng.integers(0, 400, size))  # noqa: E731
    return [{"prompt": text(30), "completion": text(30)} for _ in range(count)]


def nearly(row: dict[str, str]) -> dict[str, str]:
    return {**row, "completion": row["completion"] + "!! oh"}


@pytest.mark.usefixtures("small")
def test_near_duplicates_are_kept_dropped_or_refused(tmp_path: Path) -> None:
    made = long_rows(40)
    made[25] = nearly(made[4])
    rows = tiny.jsonl(tmp_path / "r.jsonl", made)
    ask = partial(run, train=str(rows), max_length=999)
    kept: DataFacts = ask(tmp_path / "s1")
    assert kept.doctor["near"]["surplus"] == 1
    assert kept.doctor["near"]["pairs"][0]["first"] == f"{rows}:5"
    assert kept.doctor["near"]["pairs"][0]["second"] == f"{rows}:26"
    dropped = ask(tmp_path / "s2", checks={"near_duplicate": "drop"})
    assert dropped.dropped == {"near_duplicate": 1}
    store = opened(tmp_path / "s2", dropped, "train")
    assert f"{rows}:26" not in {store.origin(n) for n in range(len(store))}
    with pytest.raises(DataError) as caught:
        ask(tmp_path / "s3", checks={"near_duplicate": "error"})
    assert [fault.code for fault in caught.value.faults] == ["near_duplicate"]
    assert ask(tmp_path / "s4", checks={"near_duplicate": "off"}).doctor["near"] is None


def test_near_leaks_and_benchmarks(tmp_path: Path) -> None:
    made = long_rows(40)
    rows = tiny.jsonl(tmp_path / "r.jsonl", made)
    test = tiny.jsonl(tmp_path / "t.jsonl", [nearly(made[7]), *long_rows(43)[40:]])
    ask = partial(run, train=str(rows), test=str(test), max_length=999)
    assert ask(tmp_path / "s1").doctor["leaks"]["surplus"] == 1
    dropped = ask(tmp_path / "s2", checks={"near_leak": "drop"})
    assert dropped.dropped == {"near_leak": 1}
    assert dropped.splits["test"].examples == 3
    bench = tiny.jsonl(tmp_path / "b.jsonl", [{"question": made[11]["prompt"], "choices": ["x", "y"]}])
    facts = run(tmp_path / "s3", train=str(rows), benchmarks=str(bench), max_length=999)
    assert facts.doctor["overlap"]["places"] == [f"{rows}:12"]
    gone = run(
        tmp_path / "s4", train=str(rows), benchmarks=str(bench), max_length=999, checks={"benchmark_overlap": "drop"}
    )
    assert gone.dropped == {"benchmark_overlap": 1}


def test_a_test_share_and_a_capped_one(tmp_path: Path) -> None:
    rows = tiny.jsonl(tmp_path / "r.jsonl", tiny.rows(100))
    facts = run(tmp_path / "s", train=str(rows), heldout={"share": 0.3, "max_examples": 7}, test=0.2)
    sizes = {split: facts.splits[split].examples for split in ("train", "heldout", "test")}
    assert sizes["heldout"] == 7
    assert 8 < sizes["test"] < 32
    assert sum(sizes.values()) == 100


def test_strata(tmp_path: Path) -> None:
    made = [{**row, "kind": "rare" if n % 10 == 0 else "usual"} for n, row in enumerate(tiny.rows(100))]
    rows = tiny.jsonl(tmp_path / "r.jsonl", made)
    facts = run(tmp_path / "s", train=str(rows), heldout={"share": 0.2, "stratify_by": "kind"})
    store = opened(tmp_path / "s", facts, "heldout")
    held = [made[int(store.origin(n).rpartition(":")[2]) - 1]["kind"] for n in range(len(store))]
    assert (held.count("rare"), held.count("usual")) == (2, 18)
    assert facts.doctor["labels"]["counts"] == {'"rare"': 10, '"usual"': 90}
    with pytest.raises(DataError, match="stratified"):
        run(tmp_path / "s2", train=str(rows), heldout={"share": 0.2, "stratify_by": "nothing"})
