"""The best state so far, by a rule: what breaks it is never best, and a run that goes on knows what was."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from fulltune.base.errors import RecipeError
from fulltune.base.records import Progress
from fulltune.base.rule import Bound, Rule
from fulltune.training.choosing import choose, choose_anew, fallen_back, selection

PLAIN = Rule("heldout.loss", "lower")
RULE = Rule("heldout.loss", "lower", (Bound("retention.loss", "lower", 0.1, over_base=True),))
BASE = {"heldout.loss": 5.0, "retention.loss": 1.0}


def after(rule: Rule, *states: tuple[float, float]) -> list[Progress]:
    """Where a run stands after each evaluation of (held-out, retention) loss."""
    progress, seen = Progress(base=BASE), []
    for update, (heldout, retention) in enumerate(states, 1):
        scores = {"heldout.loss": heldout, "retention.loss": retention}
        progress = choose(replace(progress, update=update), rule, scores)
        seen.append(progress)
    return seen


def test_what_breaks_the_rule_is_never_best_and_counts_for_patience() -> None:
    seen = after(RULE, (4.0, 1.0), (3.0, 1.05), (2.0, 1.2), (1.0, 1.5), (2.9, 1.09))
    assert [one.best_update for one in seen] == [1, 2, 2, 2, 5]
    assert [one.stale for one in seen] == [0, 0, 1, 2, 0]
    assert [one.nearest_update for one in seen] == [None] * 5, "one that keeps it is there"
    plain = after(PLAIN, (4.0, 1.0), (3.0, 1.05), (2.0, 1.2), (1.0, 1.5), (2.9, 1.09))
    assert [one.best_update for one in plain] == [1, 2, 3, 4, 4]


def test_where_none_keeps_it_the_least_breaking_one_is_kept_and_said_to_be_no_best() -> None:
    seen = after(RULE, (4.0, 1.3), (3.0, 1.2), (2.0, 1.4))
    assert [one.best_update for one in seen] == [None] * 3
    assert [one.chosen for one in seen] == [1, 2, 2]
    assert [one.stale for one in seen] == [1, 2, 3], "nothing of it is a new best"
    assert "no state keeps checkpoint.best_by" in fallen_back(seen[-1], RULE, asked=True)
    made = selection(seen[-1], RULE, {"heldout.loss": 3.0, "retention.loss": 1.2})
    assert made is not None
    assert not made.kept
    assert made.broken == ("retention.loss at most 0.1 worse than the base's: 0.2000",)
    later = choose(replace(seen[-1], update=4), RULE, {"heldout.loss": 9.0, "retention.loss": 1.0})
    assert (later.best_update, later.chosen, later.stale) == (4, 4, 0), "the first that keeps it goes before all others"
    assert fallen_back(later, RULE, asked=True) == ""


def test_of_equals_the_first_is_best() -> None:
    assert [one.best_update for one in after(PLAIN, (2.0, 1.0), (2.0, 1.0))] == [1, 1]
    assert [one.nearest_update for one in after(RULE, (2.0, 1.5), (2.0, 1.5))] == [1, 1]


def test_landmine_I4_the_best_is_the_highest_where_the_metric_says_so_whatever_its_name() -> None:
    rule = Rule("said.loss", "higher")
    progress = Progress()
    for update, score in enumerate((0.1, 0.4, 0.2), 1):
        progress = choose(replace(progress, update=update), rule, {"said.loss": score})
    assert (progress.best_update, progress.best_score, progress.stale) == (2, 0.4, 1)


def test_an_evaluation_without_the_score_counts_for_nothing() -> None:
    (before,) = after(RULE, (4.0, 1.0))
    assert choose(replace(before, update=2), RULE, {"heldout.loss": 1.0}) == replace(before, update=2)
    assert fallen_back(Progress(), RULE, asked=True).endswith("the result is the last one")
    assert fallen_back(Progress(), RULE, asked=False) == ""
    assert selection(Progress(), RULE, {}) is None


def journal(path: Path, base: dict[str, float]) -> Path:
    lines = [{"kind": "evaluation", "step": 0, "scores": base}]
    for update, scores in enumerate(((4.0, 1.3), (3.0, 1.05), (2.0, 1.5)), 1):
        named = dict(zip(("heldout.loss", "retention.loss"), scores, strict=True))
        lines.append({"kind": "suite", "step": update, "suite": "maths", "scores": {"numeric": update / 10}})
        lines.append({"kind": "evaluation", "step": update, "scores": named})
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def test_a_rule_that_changed_judges_anew_what_is_still_on_disk(tmp_path: Path) -> None:
    path = journal(tmp_path / "journal.jsonl", BASE)
    before = after(PLAIN, (4.0, 1.3), (3.0, 1.05), (2.0, 1.5))[-1]
    assert before.best_update == 3
    now = choose_anew(before, RULE, path, [1, 2, 3])
    assert (now.best_update, now.best_score, now.stale, now.update, now.best_by) == (2, 3.0, 1, 3, str(RULE))
    gone = choose_anew(before, RULE, path, [1, 3])
    assert (gone.best_update, gone.nearest_update) == (None, 1), "nobody can choose what was removed"
    maths = choose_anew(before, Rule("maths.numeric", "higher"), path, [1, 2])
    assert (maths.best_update, maths.stale) == (2, 1)
    assert choose_anew(replace(before, base={}), RULE, path, [1, 2, 3]).base == BASE


def test_a_rule_that_counts_from_what_nobody_measured_is_refused(tmp_path: Path) -> None:
    path = journal(tmp_path / "journal.jsonl", {"heldout.loss": 5.0})
    with pytest.raises(RecipeError, match="not measured before the first update"):
        choose_anew(Progress(), RULE, path, [1])
