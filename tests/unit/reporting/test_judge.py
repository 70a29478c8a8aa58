"""The verdict in words follows from the numbers by rules that are written down."""

from pathlib import Path
from typing import Any

import pytest

from fulltune.reporting.judge import cautions, falls, fitted, gained, kept, scores
from fulltune.reporting.story import Story, read_story
from tests.unit.reporting.folders import bare, evaluation, step


def told(path: Path, lines: list[dict[str, Any]], **cards: Any) -> Story:
    return read_story(bare(path / f"run-{len(list(path.iterdir()))}", lines, **cards))


def trained(path: Path, held: list[float], *, trains: float = 1.0, result: int | None = None) -> Story:
    """One evaluation after each update; `held`: held-out losses, the first before training."""
    lines = [evaluation(0, held[0])]
    for at, loss in enumerate(held[1:], 1):
        lines += [step(at, trains), evaluation(at, loss)]
    return told(path, lines, record={"result_step": len(held) - 1 if result is None else result})


def test_overfitting_has_the_update_from_which_it_grew(tmp_path: Path) -> None:
    verdict = fitted(trained(tmp_path, [5.0, 2.0, 1.5, 1.8, 2.2], trains=1.4, result=2))
    assert (verdict.said, verdict.tone) == ("from update 2", "bad")
    assert (verdict.before, verdict.after) == ("1.500", "2.200")
    assert "lowest after update 2 and grew from there by 0.7000" in verdict.words
    assert "The result is of update 2." in verdict.words
    assert "a small gap of 0.1000, 6.7% of held-out loss" in verdict.words


def test_growth_below_a_hundredth_is_none(tmp_path: Path) -> None:
    verdict = fitted(trained(tmp_path, [5.0, 2.0, 1.500, 1.514], trains=1.4))
    assert verdict.said == "none seen"
    assert "grew by less than 1% of its lowest value" in verdict.words
    assert fitted(trained(tmp_path, [5.0, 2.0, 1.500, 1.516], trains=1.4)).said == "from update 2"


def test_a_wide_gap_is_said_though_held_out_loss_never_grew(tmp_path: Path) -> None:
    verdict = fitted(trained(tmp_path, [5.0, 2.0, 1.5], trains=0.4))
    assert verdict.said == "none seen, but the gap is wide"
    assert verdict.tone == ""
    assert "a wide gap of 1.100, 73% of held-out loss" in verdict.words
    assert "too small to matter" in fitted(trained(tmp_path, [5.0, 0.1, 0.021], trains=0.006)).words
    assert "no gap" in fitted(trained(tmp_path, [5.0, 2.0, 1.5], trains=1.9)).words


def test_the_gap_is_to_the_mean_by_taught_tokens_of_the_updates_since_the_evaluation_before(tmp_path: Path) -> None:
    lines = [evaluation(0, 5.0), step(1, 9.0), evaluation(1, 4.0)]
    lines += [step(2, 1.0, supervised_tokens=30), step(3, 3.0, supervised_tokens=10), evaluation(3, 2.0)]
    assert "training loss over the updates before it 1.500" in fitted(told(tmp_path, lines)).words


def test_without_held_out_loss_nothing_is_said_of_overfitting(tmp_path: Path) -> None:
    for lines in ([], [step(1, 2.0)], [evaluation(0, 5.0)]):
        assert fitted(told(tmp_path, lines)).said == "unknown"


@pytest.mark.parametrize(
    ("after", "said", "tone"),
    [(0.9, "kept", "good"), (1.009, "kept", "good"), (1.03, "a little lost", ""), (1.06, "lost", "bad")],
)
def test_what_was_kept_by_how_far_retention_loss_grew(tmp_path: Path, after: float, said: str, tone: str) -> None:
    verdict = kept(told(tmp_path, [evaluation(0, 5.0, 1.0), step(1, 3.0), evaluation(1, 2.0, after)]))
    assert (verdict.said, verdict.tone, verdict.before) == (said, tone, "1")


def test_what_was_not_measured_is_not_called_kept(tmp_path: Path) -> None:
    assert kept(told(tmp_path, [evaluation(0, 5.0), step(1, 3.0), evaluation(1, 2.0)])).said == "not measured"
    assert kept(told(tmp_path, [evaluation(0, 5.0, 1.0)])).said == "unknown"


def test_gain_is_that_of_test_data_where_there_is_some(tmp_path: Path) -> None:
    old, new = evaluation(0, 5.0), evaluation(1, 2.0)
    assert gained(told(tmp_path, [old, step(1, 3.0), new])).words.startswith("Loss on held-out data, −3 (−60%)")
    old["scores"]["test.loss"], new["scores"]["test.loss"] = 5.0, 6.0
    verdict = gained(told(tmp_path, [old, step(1, 3.0), new]))
    assert (verdict.said, verdict.before, verdict.after) == ("worse", "5", "6")
    assert gained(told(tmp_path, [evaluation(0, 5.0), step(1, 3.0), evaluation(1, 5.0)])).said == "unchanged"


def test_without_any_measure_training_loss_is_called_what_it_is(tmp_path: Path) -> None:
    verdict = gained(told(tmp_path, [step(n, 10.0 - n) for n in range(1, 9)]))
    assert (verdict.said, verdict.before, verdict.after) == ("unproven", "9", "2")
    assert gained(told(tmp_path, [])).said == "unknown"


def test_less_is_better_of_losses_and_more_of_all_else_unless_it_says_so() -> None:
    assert [falls(name) for name in ("heldout.loss", "a.b.perplexity", "sums.exact", "qa.f1")] == [
        True,
        True,
        False,
        False,
    ]
    assert falls("sums.exact", "lower")
    assert not falls("heldout.loss", "higher")


def test_intervals_that_overlap_are_no_sure_gain(tmp_path: Path) -> None:
    def scored(old: tuple[float, float], new: tuple[float, float]) -> bool | None:
        before = evaluation(0, 5.0, intervals={"heldout.loss": old})
        after = evaluation(1, 4.0, intervals={"heldout.loss": new})
        return scores(told(tmp_path, [before, step(1, 3.0), after]))[0].sure

    assert scored((4.8, 5.2), (3.9, 4.1)) is True
    assert scored((4.0, 6.0), (3.0, 5.0)) is False
    assert scores(trained(tmp_path, [5.0, 4.0]))[0].sure is None


def test_a_result_that_held_out_data_chose_is_said_to_be_flattered(tmp_path: Path) -> None:
    lines = [evaluation(0, 5.0), step(1, 3.0), evaluation(1, 4.0), step(2, 3.0), evaluation(2, 3.0)]
    record = {"result_step": 2}
    (first, command), *_ = cautions(told(tmp_path, lines, record=record))
    assert "chosen by held-out data out of 2 states" in first
    assert "No data.test was kept apart" in first
    assert command == ""
    splits = {"test": {"examples": 7}}
    story = told(tmp_path, lines, record=record, data={"splits": splits})
    assert cautions(story)[0][1] == f"fulltune evaluate {story.path}"
    odd = [{"kind": "warning", "step": 1, "what": "spike", "rows": []}] * 2
    assert any("2 updates drew a warning" in said for said, _ in cautions(told(tmp_path, [*lines, *odd])))
