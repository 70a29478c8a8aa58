"""The benchmarks of training: the arithmetic of rates and limits, the examples, one run from end to end."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks import environment, fresh, models, speed, tokenised, train, training_page
from benchmarks.bars import bars
from benchmarks.contestants.course import Course, Mark, Trained, age
from benchmarks.machine import occasion
from benchmarks.summary import Spread

RUN = Trained(
    marks=[Mark(5.0, 4.0), Mark(9.0, 8.0), Mark(11.0, 11.0), Mark(12.0, 12.5), Mark(13.0, 14.0)],
    tokens=[1000, 1000, 100, 300],
    supervised=[10, 10, 50, 150],
    losses=[4.0, 3.0, 2.0, 1.0],
    prepared=0.5,
    peak=7,
    weights="",
    versions={},
)
"""Four updates: one of four seconds, one of two, two of one with 1.5 CPU seconds each."""


def test_a_pace_is_that_of_the_updates_that_count() -> None:
    found = speed.pace(RUN, threads=2)
    assert (found.tokens, found.supervised, found.seconds) == (200.0, 100.0, 1.0)
    assert found.share == pytest.approx(0.75)
    assert (found.begun, found.first, found.prepared, found.peak) == (5.0, 4.0, 0.5, 7)
    assert found.loss == pytest.approx((40 + 30 + 100 + 150) / 220)


@pytest.mark.parametrize("broken", [{"losses": [1.0, 1.0]}, {"tokens": [1] * 5}, {"marks": RUN.marks[:-1]}])
def test_a_run_whose_numbers_are_not_of_the_same_updates_has_no_pace(broken: dict[str, list[object]]) -> None:
    with pytest.raises(ValueError, match="moments"):
        speed.pace(replace(RUN, **broken), threads=2)


def test_work_and_limit_are_those_of_the_study() -> None:
    """Model M at 207 tokens, 63% supervised: 173 MFLOP a token, 12,500 tokens a second at the rates given there."""
    asked = speed.work(models.SHAPES["M"], length=207, taught=0.63)
    assert asked.whole == pytest.approx(173e6, rel=0.005)
    rates = {"body": 2.7e12, "head": 1.15e12, "attention": 1e12}
    assert speed.bound(asked, rates) == pytest.approx(12_500, rel=0.01)
    assert speed.mfu(1426 * 2, asked, rates | {"body": 2.8e12}) == pytest.approx(0.176, abs=0.001)
    assert speed.work(models.SHAPES["L"], length=0, taught=1).whole == pytest.approx(807e6, rel=0.002)


def test_the_machine_is_as_fast_as_in_its_best_round() -> None:
    slow, fast = {"body": 1.0, "head": 3.0}, {"body": 2.0, "head": 1.0}
    assert speed.fastest([slow, fast]) == {"body": 2.0, "head": 3.0}


def test_groups_by_length_of_few_examples_are_as_even_as_those_of_a_large_file(tmp_path: Path) -> None:
    lines = [{"input_ids": [1] * n, "labels": [-100] + [1] * (n - 1)} for n in range(100, 2, -1)]
    pool, target = tmp_path / "pool.jsonl", tmp_path / "rows.jsonl"
    pool.write_text("".join(json.dumps(line) + "\n" for line in lines))
    lesson = tokenised.pick(pool, target, updates=4, batch=3)
    lengths = [len(json.loads(line)["labels"]) for line in target.read_text().splitlines()]
    groups = [lengths[at : at + 3] for at in range(0, 12, 3)]
    assert all(max(group) - min(group) == 2 for group in groups)
    assert lengths == sorted(lengths)
    assert max(groups[0]) < 30 < 75 < min(groups[3])
    assert (lesson.examples, lesson.tokens, lesson.supervised) == (12, sum(lengths), sum(lengths) - 12)
    with pytest.raises(ValueError, match="too few"):
        tokenised.pick(pool, target, updates=40, batch=3)


def test_the_order_has_each_example_once_and_is_fulltunes() -> None:
    seen = tokenised.order(30, 30, seed=0)
    assert sorted(seen) == list(range(30))
    assert seen != list(range(30))
    assert seen != tokenised.order(30, 30, seed=1)


def test_contestants_of_an_allocator_differ_in_it_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "trl_python", lambda _: Path("python"))
    asked = train._asked(["--against", "hf", "hf-kept", "--threads", "3"])
    ours, default, kept = train.contestants(asked)
    assert ours.environment == default.environment == {"OMP_NUM_THREADS": "3"}
    assert kept.environment == {**default.environment, **train.KEPT}
    assert (default.module, default.options) == (kept.module, kept.options)
    assert "hf-pure" in train._asked([]).against
    ours, compiled = train.contestants(train._asked(["--against", "fulltune-compiled"]))
    assert (ours.module, ours.options, compiled.options) == (compiled.module, (), ("compiled",))
    assert not [name for name in train._asked(["--precision", "float32"]).against if "pure" in name]


def test_an_environment_that_is_a_link_is_not_made_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`venv --clear` empties what a link leads to, which is somebody else's."""
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "kept").touch()
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "theirs")
    monkeypatch.setattr(environment, "ENVIRONMENT", link)
    with pytest.raises(environment.Absent, match="is a link"):
        environment.trl_python(None)
    assert (tmp_path / "theirs" / "kept").exists()


def test_bars_are_as_long_as_their_medians() -> None:
    drawn = bars("a < b", [("one", Spread(100, 90, 200)), ("two", Spread(50, 50, 50))], ours="one")
    assert "a &lt; b" in drawn
    assert 'width="225.0"' in drawn
    assert 'width="112.5"' in drawn


def test_a_page_says_what_is_to_be_held_against_the_numbers(tmp_path: Path) -> None:
    slower = replace(RUN, marks=[replace(mark, at=2 * mark.at) for mark in RUN.marks])
    found = train.Found(runs={"fulltune": [RUN, RUN], "hf": [slower, slower]}, heldout={"fulltune": 2.0, "hf": 2.02})
    lesson = tokenised.Lesson(path=tmp_path, examples=8, tokens=1656, supervised=1043, longest=300)
    rates = {"body": 2.7e12, "head": 1.15e12, "attention": 1e12}
    asked = train._asked(["--threads", "1"])
    shown = training_page.page(asked, occasion("benchmarks.train", []), lesson, found, found.paces(1), rates)
    assert "2.00 (2.00 to 2.00)" in shown
    assert "1.6%" in shown, "200 of 12,400 tokens a second"
    assert "hf: in 2 of 2 rounds others were at work" in shown
    assert "hf: its held-out loss is more than 0.5% from" in shown
    assert "fulltune: in" not in shown


def test_a_process_knows_its_age() -> None:
    assert 0 < age() < 86400


@pytest.mark.slow
def test_fulltune_trains_what_it_is_given(tmp_path: Path) -> None:
    model, rows = tmp_path / "model", tmp_path / "rows.jsonl"
    models.save(model, "tiny")
    lesson = tokenised.write(tokenised.SOURCES["embedded"][0], model, rows, count=8, max_length=64)
    assert lesson.examples == 8
    course = Course(
        model=str(model),
        rows=str(rows),
        heldout=str(rows),
        order=tokenised.order(8, 8, seed=0),
        batch=2,
        precision="float32",
        out=str(tmp_path / "out"),
        answer=str(tmp_path / "answer.json"),
    )
    fresh.execute(fresh.Contestant("fulltune", "train_fulltune"), course, watched=False)
    made = Trained.read(Path(course.answer))
    taken = [json.loads(line) for line in rows.read_text().splitlines()]
    each = [sum(len(taken[n]["labels"]) for n in course.order[at : at + 2]) for at in range(0, 8, 2)]
    assert made.tokens == each, "it saw the examples in the order that the others are given"
    assert sum(made.supervised) == lesson.supervised
    assert speed.pace(made, threads=1).seconds > 0
    assert Path(made.weights, "model.safetensors").exists()
