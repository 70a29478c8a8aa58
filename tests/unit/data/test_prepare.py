"""Rows on disk -> stores and a card: everything counted, nothing lost in silence."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fulltune.base.errors import DataError
from fulltune.base.records import DataFacts
from fulltune.data.prepare import Kit, Preparation, identity, prepare
from fulltune.data.store import Store
from fulltune.data.template import Template
from fulltune.recipe.data import DataSection
from fulltune.recipe.load import load_recipe
from tests import tiny

TOKENS = tiny.tokenizer()


def section(**data: Any) -> DataSection:
    return load_recipe({"model": {"path": "x/y"}, "data": {"max_length": 256, "heldout": 0, **data}}).data


def run(folder: Path, **data: Any) -> DataFacts:
    asked, template = section(**data), Template(TOKENS, None, "t")
    return prepare(asked, Kit(TOKENS, template), folder, identity(asked, "tokens", template))


def opened(folder: Path, facts: DataFacts, split: str) -> Store:
    return Store(folder / split, [source.files for source in facts.sources[split]])


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    return tiny.jsonl(tmp_path / "rows.jsonl", tiny.rows(50))


def test_the_card_counts_everything(tmp_path: Path, rows: Path) -> None:
    facts = run(tmp_path / "s", train=str(rows), heldout=0.2)
    train, heldout = facts.splits["train"], facts.splits["heldout"]
    assert facts.rows == facts.kept == train.examples + heldout.examples == 50
    assert 0 < heldout.examples < 25
    assert facts.dropped == {}
    assert facts.sources["train"][0].format == "prompt_completion"
    assert facts.sources["train"][0].rows == 50
    store = opened(tmp_path / "s", facts, "train")
    assert train.tokens == int(store.lengths.sum())
    assert train.supervised_tokens == sum(store[i].supervised for i in range(len(store)))
    assert facts.stop_ids == (tiny.SPECIAL.index("<|end|>"),)
    assert len(facts.template) == 64


def test_the_held_out_side_is_the_same_in_any_order_and_no_row_is_on_both(tmp_path: Path) -> None:
    made = tiny.rows(60)
    sides = []
    for n, order in enumerate((made, made[::-1], made[:40])):
        path = tiny.jsonl(tmp_path / f"{n}.jsonl", order)
        facts = run(tmp_path / f"s{n}", train=str(path), heldout=0.3)
        store = opened(tmp_path / f"s{n}", facts, "heldout")
        sides.append({order[int(store.origin(i).rpartition(":")[2]) - 1]["prompt"] for i in range(len(store))})
    assert sides[0] == sides[1]
    assert sides[2] == sides[0] & {row["prompt"] for row in made[:40]}


def test_rows_of_a_group_stay_together(tmp_path: Path) -> None:
    made = [{**row, "tree": n // 5} for n, row in enumerate(tiny.rows(60))]
    path = tiny.jsonl(tmp_path / "g.jsonl", made)
    facts = run(tmp_path / "s", train=str(path), heldout=0.3, group_by="tree")
    store = opened(tmp_path / "s", facts, "heldout")
    held = {int(store.origin(i).rpartition(":")[2]) - 1 for i in range(len(store))}
    assert 0 < len(held) < 60
    assert all(held >= set(range(g * 5, g * 5 + 5)) or not held & set(range(g * 5, g * 5 + 5)) for g in range(12))
    with pytest.raises(DataError, match="data.group_by"):
        run(tmp_path / "s2", train=str(path), group_by="nothing", heldout=0.3)


def test_duplicates_are_an_error_or_dropped_or_kept(tmp_path: Path) -> None:
    made = tiny.rows(10)
    path = tiny.jsonl(tmp_path / "d.jsonl", [*made, made[3], {**made[5], "extra": 1}])
    with pytest.raises(DataError) as caught:
        run(tmp_path / "s", train=str(path))
    assert [fault.where for fault in caught.value.faults] == [f"{path}:11", f"{path}:12"]
    assert f"{path}:4" in caught.value.faults[0].what
    for option in ("duplicates", "on_bad_row"):
        facts = run(tmp_path / option, train=str(path), **{option: "drop"})
        assert facts.dropped == {"duplicate": 2}
        assert facts.splits["train"].examples == 10
    kept = run(tmp_path / "k", train=str(path), duplicates="keep")
    assert kept.splits["train"].examples == 12
    assert kept.notes["duplicate"].startswith("2 x")


def test_repeated_rows_of_tasks_that_are_only_read_are_counted(tmp_path: Path) -> None:
    """And a row that is a repetition and has a misspelled label is left out once."""
    made = [{"text": f"text {n}", "label": ("ham", "spam")[n % 2]} for n in range(60)]
    odd = {"text": "odd", "label": "spam "}
    path = tiny.jsonl(tmp_path / "l.jsonl", [*made, made[3], odd, odd])
    template = Template(TOKENS, None, "t")
    work = Preparation(section(train=str(path), on_bad_row="drop"), Kit(TOKENS, template), tmp_path / "parts")
    work.examine()
    assert work.card["dropped"] == {"duplicate": 1, "label": 2}
    assert (work.card["rows"], work.card["kept"]) == (63, 60)


def test_all_faults_of_all_files_are_told_in_one_run(tmp_path: Path) -> None:
    one = tmp_path / "one.jsonl"
    one.write_text(
        '{"prompt": "a", "completion": "b"}\n{"prompt": "a"}\nnot json\n{"prompt": "a", "completion": " "}\n'
    )
    two = tiny.jsonl(tmp_path / "two.jsonl", [{"text": "x"}, {"text": 3}])
    with pytest.raises(DataError) as caught:
        run(tmp_path / "s", train=[str(one)], retention=[str(two)])
    assert [(Path(f.where).name, f.code) for f in caught.value.faults] == [
        ("one.jsonl:2", "missing_field"),
        ("one.jsonl:3", "json_parse"),
        ("one.jsonl:4", "empty_answer"),
        ("two.jsonl:2", "type"),
    ]
    assert "4 rows cannot be taught, 2 are fine" in caught.value.note


def test_dropped_rows_are_counted_by_reason(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    path.write_text(
        '{"prompt": "a", "completion": "b"}\n{"prompt": "a"}\nnot json\n{"prompt": "c", "completion": ""}\n'
    )
    facts = run(tmp_path / "s", train=str(path), on_bad_row="drop")
    assert facts.dropped == {"empty_answer": 1, "json_parse": 1, "missing_field": 1}
    assert (facts.rows, facts.kept) == (4, 1)


def test_files_that_cannot_be_read_are_an_error_in_any_case(tmp_path: Path, rows: Path) -> None:
    (tmp_path / "empty.jsonl").write_text("")
    files = [str(rows), str(tmp_path / "empty.jsonl"), str(tmp_path / "no.jsonl")]
    for policy in ("error", "drop"):
        with pytest.raises(DataError) as caught:
            run(tmp_path / policy, train=files, on_bad_row=policy)
        assert [fault.code for fault in caught.value.faults] == ["empty_file", "no_file"]


def test_nothing_left_is_an_error(tmp_path: Path) -> None:
    path = tiny.jsonl(tmp_path / "r.jsonl", [{"prompt": "a", "completion": ""}])
    with pytest.raises(DataError, match="is left for data.train; left out: {'empty_answer': 1}"):
        run(tmp_path / "s", train=str(path), on_bad_row="drop")


def test_nothing_held_out_is_an_error(tmp_path: Path) -> None:
    path = tiny.jsonl(tmp_path / "r.jsonl", tiny.rows(3))
    with pytest.raises(DataError, match="held out"):
        run(tmp_path / "s", train=str(path), heldout=0.0001)


def test_mixed_schemas_are_named_or_read_each_by_its_keys(tmp_path: Path) -> None:
    made = [*tiny.rows(4), {"instruction": "i", "input": "", "output": "o"}, {"text": "document"}]
    path = tiny.jsonl(tmp_path / "m.jsonl", made)
    with pytest.raises(DataError) as caught:
        run(tmp_path / "s", train=str(path))
    assert [(f.where, f.code) for f in caught.value.faults] == [
        (f"{path}:5", "mixed_schema"),
        (f"{path}:6", "mixed_schema"),
    ]
    facts = run(tmp_path / "s2", train=str(path), on_bad_row="drop")
    assert facts.kept == 6
    assert "instruction" in facts.notes["mixed_schema"]


def test_a_named_format_is_not_guessed(tmp_path: Path) -> None:
    path = tiny.jsonl(tmp_path / "m.jsonl", [{"text": "a b c", "label": 1}, {"text": "c d e", "label": None}])
    assert run(tmp_path / "s", train={"path": str(path), "format": "text"}).kept == 2
    with pytest.raises(DataError, match="the label is null"):
        run(tmp_path / "s2", train=str(path))


def test_a_format_from_outside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_formats.py").write_text(
        "from fulltune.data.example import Text\ndef shout(row):\n    return Text(row['said'].upper())\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    path = tiny.jsonl(tmp_path / "m.jsonl", [{"said": "a b"}, {"unsaid": 1}])
    source = {"path": str(path), "format": "my_formats:shout"}
    with pytest.raises(DataError, match="KeyError"):
        run(tmp_path / "s", train=source)
    facts = run(tmp_path / "s2", train=source, on_bad_row="drop")
    assert TOKENS.decode(opened(tmp_path / "s2", facts, "train")[0].ids) == "<s>A B</s>"


def test_landmine_L1_code_from_outside_is_part_of_the_fingerprint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A format that was edited would else go on giving what it gave before."""
    module = tmp_path / "edited_formats.py"
    module.write_text("from fulltune.data.example import Text\ndef one(row):\n    return Text(row['said'])\n")
    monkeypatch.syspath_prepend(tmp_path)
    path = tiny.jsonl(tmp_path / "m.jsonl", [{"said": "a b"}])
    asked, template = section(train={"path": str(path), "format": "edited_formats:one"}), Template(TOKENS, None, "t")
    before = identity(asked, "tokens", template)
    assert identity(asked, "tokens", template) == before
    module.write_text(module.read_text().replace("row['said']", "row['said'].upper()"))
    assert identity(asked, "tokens", template) != before


def test_leaks_into_heldout_and_test_are_named(tmp_path: Path) -> None:
    made = tiny.rows(10)
    train = tiny.jsonl(tmp_path / "train.jsonl", made)
    leaking = {"prompt": made[4]["prompt"].upper(), "completion": made[4]["completion"] + " "}
    other = tiny.jsonl(tmp_path / "other.jsonl", [*tiny.rows(3, seed=9), leaking])
    for split in ("heldout", "test"):
        with pytest.raises(DataError, match=f"{train}:5"):
            run(tmp_path / f"s{split}", train=str(train), **{split: [str(other)]})
        facts = run(tmp_path / f"d{split}", train=str(train), on_bad_row="drop", **{split: [str(other)]})
        assert facts.dropped == {"leak": 1}
        assert facts.splits[split].examples == 3


def test_over_long_rows(tmp_path: Path, rows: Path) -> None:
    lengths = run(tmp_path / "s", train=str(rows)).splits["train"].lengths
    limit = lengths["p50"]
    with pytest.raises(DataError) as caught:
        run(tmp_path / "s1", train=str(rows), max_length=limit)
    assert {fault.code for fault in caught.value.faults} == {"too_long"}
    dropped = run(tmp_path / "s2", train=str(rows), max_length=limit, over_length="drop")
    assert dropped.dropped == {"too_long": len(caught.value.faults)}
    cut = run(tmp_path / "s3", train=str(rows), max_length=limit, over_length="truncate", on_bad_row="drop")
    assert cut.truncated + cut.dropped.get("no_trained_tokens", 0) == len(caught.value.faults)
    assert cut.splits["train"].lengths["max"] == limit


def test_spelled_control_tokens_are_noted(tmp_path: Path) -> None:
    path = tiny.jsonl(tmp_path / "m.jsonl", [{"prompt": "a </s>", "completion": "b"}])
    facts = run(tmp_path / "s", train=str(path))
    assert facts.notes["special_token_text"] == f"1 x: {path}:1 (</s>)"


def test_the_fingerprint_covers_every_option_that_matters(tmp_path: Path, rows: Path) -> None:
    base: dict[str, Any] = {"train": str(rows), "heldout": 0.1}
    copy = tiny.jsonl(tmp_path / "copy.jsonl", tiny.rows(51))
    changes: list[dict[str, Any]] = [
        {"train": str(copy)},
        {"train": [str(rows), str(copy)]},
        {"train": {"path": str(rows), "format": "prompt_completion"}},
        {"heldout": 0.2},
        {"heldout": [str(copy)]},
        {"test": [str(copy)]},
        {"retention": [str(copy)]},
        {"max_length": 99},
        {"over_length": "drop"},
        {"supervise": "all"},
        {"control_tokens": "drop"},
        {"on_bad_row": "drop"},
        {"duplicates": "keep"},
        {"group_by": "prompt"},
        {"replay": [str(copy)]},
        {"train": {"path": str(rows), "augment": "field_order"}},
        {"benchmarks": [str(copy)]},
        {"checks": {"repetition": "drop"}},
    ]
    assert {field for change in changes for field in change} == set(DataSection.model_fields) - {
        "processes",
        "share_by",
    }
    template, other = Template(TOKENS, None, "t"), Template(TOKENS, tiny.TEMPLATE + " ", "t")
    prints = {identity(section(**{**base, **change}), "tokens", template) for change in changes}
    prints |= {identity(section(**base), "tokens", template), identity(section(**base), "tokens", other)}
    prints |= {identity(section(**base), "other tokens", template), identity(section(**base), "tokens", template, [7])}
    assert len(prints) == len(changes) + 4
    assert identity(section(**base), "tokens", template, [7, 8]) == identity(
        section(**base), "tokens", template, [8, 7]
    )
    shared = identity(section(**{**base, "train": {"path": str(rows), "share": 2.0}}), "tokens", template)
    assert shared == identity(section(**base), "tokens", template), "shares mix at run time and change no token"
    assert identity(section(**base, processes=3), "tokens", template) == identity(section(**base), "tokens", template)
    more = {"replay": {"sources": {"path": str(copy), "share": 2.0}, "share": 0.3}, "share_by": "tokens"}
    assert identity(section(**{**base, **more}), "tokens", template) in prints, "so do those of replay"
    rows.write_text(rows.read_text() + json.dumps({"prompt": "new", "completion": "row"}) + "\n")
    assert identity(section(**base), "tokens", template) not in prints


def test_replay_lies_behind_the_training_rows_and_is_never_held_out(tmp_path: Path, rows: Path) -> None:
    general = [tiny.jsonl(tmp_path / f"{n}.jsonl", tiny.rows(20, seed=n)) for n in (5, 6)]
    facts = run(tmp_path / "s", train=str(rows), heldout=0.3, replay=[str(path) for path in general])
    train, heldout = facts.splits["train"], facts.splits["heldout"]
    assert train.by_source == (50 - heldout.examples, 20, 20)
    assert heldout.by_source == (heldout.examples,)
    store = opened(tmp_path / "s", facts, "train")
    origins = [store.origin(i) for i in range(len(store))]
    assert origins[train.by_source[0] :] == [f"{path}:{n + 1}" for path in general for n in range(20)]
    ends = np.cumsum(train.by_source)
    assert train.tokens_by_source == tuple(int(part.sum()) for part in np.split(store.lengths, ends[:-1]))
    alone = run(tmp_path / "alone", train=str(rows), heldout=0.3)
    assert alone.splits["heldout"] == heldout, "replay moves no row to the other side"


def test_replay_is_kept_apart_from_what_is_held_out(tmp_path: Path, rows: Path) -> None:
    general = tiny.jsonl(tmp_path / "general.jsonl", [*tiny.rows(5, seed=7), tiny.rows(50)[3]])
    test = tiny.jsonl(tmp_path / "test.jsonl", tiny.rows(2, seed=7))
    with pytest.raises(DataError) as caught:
        run(tmp_path / "s", train=str(test), heldout=[str(rows)], replay=str(general), duplicates="keep")
    assert [fault.code for fault in caught.value.faults] == ["leak"]
    with pytest.raises(DataError) as caught:
        run(tmp_path / "s2", train=str(rows), test=str(test), replay=str(general), duplicates="keep")
    assert [fault.code for fault in caught.value.faults] == ["leak"] * 2


def test_a_test_row_that_fell_to_the_held_out_share_is_a_leak(tmp_path: Path) -> None:
    made = tiny.rows(60)
    facts = run(tmp_path / "s", train=str(tiny.jsonl(tmp_path / "t.jsonl", made)), heldout=0.5)
    lines = opened(tmp_path / "s", facts, "heldout")
    held = [made[int(lines.origin(i).rpartition(":")[2]) - 1] for i in range(len(lines))]
    test = tiny.jsonl(tmp_path / "test.jsonl", held[:5])
    with pytest.raises(DataError) as caught:
        run(tmp_path / "s2", train=str(tmp_path / "t.jsonl"), heldout=0.5, test=str(test))
    assert [fault.code for fault in caught.value.faults] == ["leak"] * 5


def test_equal_contents_of_two_groups_are_not_on_both_sides(tmp_path: Path) -> None:
    made = [
        {**row, "prompt": case(row["prompt"]), "g": f"{case.__name__}{n}"}
        for n, row in enumerate(tiny.rows(60))
        for case in (str.lower, str.upper)
    ]
    path = str(tiny.jsonl(tmp_path / "t.jsonl", made))
    with pytest.raises(DataError) as caught:
        run(tmp_path / "s", train=path, heldout=0.3, group_by="g", duplicates="keep")
    leaks = len(caught.value.faults)
    assert leaks > 10
    assert {fault.code for fault in caught.value.faults} == {"leak"}
    facts = run(tmp_path / "s2", train=path, heldout=0.3, group_by="g", duplicates="keep", on_bad_row="drop")
    assert facts.dropped == {"leak": leaks}


@pytest.mark.parametrize("content", ["one line", "lines"])
@pytest.mark.parametrize("duplicates", ["error", "drop", "keep"])
def test_duplicates_in_an_array(tmp_path: Path, content: str, duplicates: str) -> None:
    path, made = tmp_path / "t.json", tiny.rows(4)
    path.write_text(json.dumps([*made, made[0], made[1]], indent=0 if content == "lines" else None))
    if duplicates == "error":
        with pytest.raises(DataError) as caught:
            run(tmp_path / "s", train=str(path))
        assert len({fault.where for fault in caught.value.faults}) == 2
    else:
        facts = run(tmp_path / "s", train=str(path), duplicates=duplicates)
        assert facts.kept == (4 if duplicates == "drop" else 6)
        assert facts.dropped == ({"duplicate": 2} if duplicates == "drop" else {})


def test_a_file_named_twice_and_one_of_which_nothing_is_left(tmp_path: Path, rows: Path) -> None:
    with pytest.raises(DataError, match="twice"):
        run(tmp_path / "s", train=[str(rows), str(rows)], duplicates="drop")
    bad = tiny.jsonl(tmp_path / "bad.jsonl", [{"prompt": "a", "completion": ""}])
    with pytest.raises(DataError, match=r"none of its 1 rows is left for data\.retention"):
        run(tmp_path / "s2", train=str(rows), retention=str(bad), on_bad_row="drop")


def test_columns_that_nobody_reads_are_noted(tmp_path: Path) -> None:
    made = [{**row, "id": n, "answer": "x", "g": n} for n, row in enumerate(tiny.rows(30))]
    facts = run(tmp_path / "s", train=str(tiny.jsonl(tmp_path / "t.jsonl", made)), group_by="g", heldout=0.5)
    assert facts.notes["unused_column"] == f"1 x: {tmp_path / 't.jsonl'} (answer)"


def test_origins_name_the_file_of_a_source_of_several(tmp_path: Path) -> None:
    folder = tmp_path / "many"
    folder.mkdir()
    for n in range(3):
        tiny.jsonl(folder / f"{n}.jsonl", tiny.rows(30)[n * 10 : n * 10 + 10])
    facts = run(tmp_path / "s", train=str(folder), heldout=0)
    files = tuple(str(folder / f"{n}.jsonl") for n in range(3))
    assert facts.sources["train"][0].files == files
    store = opened(tmp_path / "s", facts, "train")
    assert [store.origin(n) for n in range(30)] == [f"{files[n // 10]}:{n % 10 + 1}" for n in range(30)]


def test_a_store_is_named_by_all_files_their_bytes_and_the_way_they_are_read(tmp_path: Path) -> None:
    def name(**source: Any) -> str:
        asked, template = section(train={"path": str(tmp_path / "*.txt"), **source}), Template(TOKENS, None, "t")
        return identity(asked, "tokens", template)

    (tmp_path / "a.txt").write_text("one")
    names = [name(), name(document="line")]
    (tmp_path / "b.txt").write_text("two")
    names.append(name())
    (tmp_path / "b.txt").write_text("three")
    names.append(name())
    (tmp_path / "b.txt").rename(tmp_path / "c.txt")
    names.append(name())
    assert len(set(names)) == len(names)
    assert name() == names[-1]


def test_a_file_that_two_patterns_match_is_named(tmp_path: Path, rows: Path) -> None:
    with pytest.raises(DataError, match="twice") as caught:
        run(tmp_path / "s", train=[str(rows), str(rows.parent / "*.jsonl")])
    assert [fault.where for fault in caught.value.faults] == [str(rows)]


def test_a_leak_and_a_repeat_name_the_file_of_a_pattern(tmp_path: Path) -> None:
    for n in range(2):
        tiny.jsonl(tmp_path / f"{n}.jsonl", tiny.rows(5))
    with pytest.raises(DataError, match="the same content as") as caught:
        run(tmp_path / "s", train=str(tmp_path / "*.jsonl"), heldout=0)
    assert [fault.where for fault in caught.value.faults] == [f"{tmp_path / '1.jsonl'}:{n}" for n in range(1, 6)]
