"""Preferences: what a judge's command must answer, what both orders mean, and how sure a count of wins is."""

import json
import os
import shlex
import sys
import time
from pathlib import Path

import pytest

from fulltune.base.errors import CheckpointError, DataError, Interrupted, RecipeError
from fulltune.evaluation.judging import Judge
from fulltune.evaluation.pairs import Pair, pairs
from fulltune.evaluation.wins import counted, wilson

LONGER = "print('tie' if len(q['a']) == len(q['b']) else 'a' if len(q['a']) > len(q['b']) else 'b')"


def pair(number: int, one: str, other: str) -> Pair:
    return Pair(str(number), f"prompt {number} \u202e", (), one, other)


def judge(body: str, *, each: bool = True, seconds: float = 60.0) -> Judge:
    """A judge in Python; `body` is run for each question `q`."""
    loop = f"for line in sys.stdin:\n q = json.loads(line)\n {body}" if each else body
    command = [sys.executable, "-I", "-S", "-c", f"import json, sys, time, os\n{loop}"]
    return Judge.of(shlex.join(command), seconds)


def nothing() -> None:
    pass


def test_both_orders_are_asked_and_a_preference_must_hold_in_both() -> None:
    found = judge(LONGER)([pair(0, "long", "no"), pair(1, "no", "long"), pair(2, "yes", "not")], nothing)
    assert [item.verdict for item in found] == ["one", "other", "tie"]
    assert [item.said for item in found] == [("a", "b"), ("b", "a"), ("tie", "tie")]
    assert not any(item.swayed for item in found)


def test_a_judge_that_likes_the_first_answer_prefers_nobody() -> None:
    found = judge("print('a')")([pair(0, "x", "y"), pair(1, "y", "x")], nothing)
    assert [(item.verdict, item.swayed) for item in found] == [("tie", True), ("tie", True)]


def test_half_a_preference_is_a_tie_too() -> None:
    found = judge("print('a' if q['a'] == 'x' else 'tie')")([pair(0, "x", "y")], nothing)
    assert [(item.said, item.verdict, item.swayed) for item in found] == [(("a", "tie"), "tie", True)]


def test_what_a_judge_is_told_and_that_equal_answers_are_no_question(tmp_path: Path) -> None:
    seen = tmp_path / "seen"
    told = Pair("7", "which\n?", ("right", "correct"), 'quo"te', "ünï")
    body = f"open({str(seen)!r}, 'a').write(line); print('tie')"
    found = judge(body)([told, pair(1, "same", "same")], nothing)
    lines = [json.loads(line) for line in seen.read_text().splitlines()]
    shared = {"prompt": "which\n?", "reference": ["right", "correct"]}
    assert lines == [{**shared, "a": 'quo"te', "b": "ünï"}, {**shared, "a": "ünï", "b": 'quo"te'}]
    assert [(item.verdict, item.swayed) for item in found] == [("tie", False), ("tie", False)]


def test_no_shell_reads_the_command(tmp_path: Path) -> None:
    made = Judge.of(
        f"{shlex.quote(sys.executable)} -c 'raise SystemExit(3)' ; touch {tmp_path}/x $(touch {tmp_path}/y)", 60
    )
    with pytest.raises(DataError, match="ended with 3"):
        made([pair(0, "x", "y")], nothing)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("print('A is better')", "wrote 'A is better' in line 1, which is not a, b or tie"),
        ("pass", "wrote 0 lines for 2 questions"),
        ("print('a\\na')", "wrote 4 lines for 2 questions"),
        ("sys.exit('no model')", "ended with 1: no model"),
        ("sys.stdout.buffer.write(b'\\xff\\n')", "not UTF-8"),
        ("print('\\x1b[2J hf_abcdefghijklmnopqrstuvwx')", r"\*\*\*"),
    ],
)
def test_broken_answers_are_errors_that_name_the_command(body: str, said: str) -> None:
    with pytest.raises(DataError, match=said) as fault:
        judge(body)([pair(0, "x", "y")], nothing)
    assert "--judge" in str(fault.value)
    assert "\x1b" not in str(fault.value)


def test_a_judge_that_takes_too_long_ends_with_all_that_it_started(tmp_path: Path) -> None:
    mark = tmp_path / "child"
    body = f"pid = os.fork()\nif pid: open({str(mark)!r}, 'w').write(str(pid))\ntime.sleep(600)"
    with pytest.raises(DataError, match="no whole answer within 1 seconds"):
        judge(body, each=False, seconds=1.0)([pair(0, "x", "y")], nothing)
    child = int(mark.read_text())
    for _ in range(100):
        if not Path(f"/proc/{child}").exists() or "Z" in Path(f"/proc/{child}/stat").read_text().split()[2]:
            break
        time.sleep(0.05)
    else:
        os.kill(child, 9)
        pytest.fail("what the judge started is still there")


def test_a_signal_is_heard_while_a_judge_works() -> None:
    def asked() -> None:
        raise Interrupted("stopped")

    with pytest.raises(Interrupted):
        judge("time.sleep(600)", each=False)([pair(0, "x", "y")], asked)


@pytest.mark.parametrize(
    ("command", "said"), [("", "empty"), ("'judge", "No closing quotation"), ("./nowhere-7", "cannot be started")]
)
def test_what_is_no_command_is_said(command: str, said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        Judge.of(command, 5)([pair(0, "x", "y")], nothing)


def test_the_command_is_shown_without_its_secrets() -> None:
    told = "env API_TOKEN=abcdefgh judge --api-key=abcdefgh12345 --api-key 12345678 --keys 'two words' --password -v"
    shown = "env API_TOKEN=*** judge --api-key=*** --api-key *** --keys 'two words' --password -v"
    assert str(Judge.of(told, 1)) == shown


def test_wins_have_wilson_intervals_and_an_exact_test() -> None:
    """Values of Wilson's interval for 8 of 10 as in Newcombe 1998's formula; the sign test of 8 : 2 is 112 / 1024."""
    found = counted([*["one"] * 8, *["other"] * 2, *["tie"] * 5], suite="s", one="x", other="y", confidence=0.95)
    assert (found.prompts, found.one_wins, found.other_wins, found.ties) == (15, 8, 2, 5)
    assert found.shares == {"x": 0.8, "y": 0.2}
    assert found.intervals["x"] == pytest.approx((0.49016, 0.94332), abs=1e-4)
    assert found.intervals["y"] == pytest.approx((0.05668, 0.50984), abs=1e-4)
    assert found.p == pytest.approx(112 / 1024)
    assert wilson(0, 5, 0.95) == pytest.approx((0.0, 0.43448), abs=1e-4)


def test_ties_alone_say_nothing() -> None:
    found = counted(["tie"] * 3, suite="", one="x", other="y", confidence=0.95)
    assert (found.shares, found.intervals, found.p) == ({}, {}, 1.0)


def test_answers_to_other_questions_are_no_pairs(tmp_path: Path) -> None:
    lines = [{"id": "0", "question": text, "right": [], "answer": "x"} for text in ("one", "two")]
    for name, line in zip(("a", "b"), lines, strict=True):
        (tmp_path / name).write_text(json.dumps(line) + "\n")
    (tmp_path / "c").write_text("")
    assert next(pairs(tmp_path / "a", tmp_path / "a")).one == "x"
    for other in ("b", "c"):
        with pytest.raises(CheckpointError, match="do not fit together"):
            list(pairs(tmp_path / "a", tmp_path / other))
