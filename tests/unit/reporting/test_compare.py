"""Several runs side by side: the best is marked, only differences are shown, the picture joins whom nobody beats."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fulltune.account import compare
from fulltune.base.errors import RecipeError
from fulltune.reporting.compare import compared
from fulltune.reporting.pareto import Point, front, picture
from fulltune.reporting.story import read_story
from tests.unit.reporting.folders import EVIL, bare, evaluation, step
from tests.unit.reporting.test_page import Elements

DONE = {"kind": "end", "step": 2, "result_step": 2}


def made(folder: Path, held: float, kept: float | None, lr: str = "1.0e-05", **cards: Any) -> Path:
    """A run of two updates with two evaluations."""
    lines = [
        evaluation(0, 5.0, 1.0),
        step(1, 4.0),
        evaluation(1, 4.0, kept),
        step(2, 3.0),
        evaluation(2, held, kept),
        DONE,
    ]
    run = bare(folder, lines, **{"record": {"result_step": 2}, "data": {"fingerprint": "f"}, **cards})
    path = run / "recipe.yaml"
    path.write_text(path.read_text().replace("1.0e-05", lr))
    return run


@pytest.fixture
def runs(tmp_path: Path) -> list[Path]:
    return [
        made(tmp_path / "plain", 2.0, 1.5),
        made(tmp_path / "replay", 2.2, 1.1, lr="5.0e-06"),
        made(tmp_path / "worse", 2.5, 1.2),
    ]


def test_the_best_of_each_score_is_marked(runs: list[Path]) -> None:
    found = compare(runs)
    assert found.names == ("plain", "replay", "worse")
    assert found.scores == {"heldout.loss": (2.0, 2.2, 2.5), "retention.loss": (1.5, 1.1, 1.2)}
    assert found.best == {"heldout.loss": (0,), "retention.loss": (1,)}
    assert found.before == {"heldout.loss": 5.0, "retention.loss": 1.0}
    text = found.as_text()
    assert re.search(r"^heldout.loss +5 +2 \* +2.200 +2.500$", text, re.MULTILINE)
    assert re.search(r"^retention.loss +1 +1.500 +1.100 \* +1.200$", text, re.MULTILINE)


def test_only_what_differs_of_the_recipes_is_shown(runs: list[Path]) -> None:
    found = compare(runs)
    assert found.recipes == {"optim.lr": (1e-5, 5e-6, 1e-5)}
    assert "model.path" not in found.as_text()
    assert "the recipes are the same" in compare([runs[0], runs[2]]).as_text()


def test_programs_get_the_same(runs: list[Path]) -> None:
    values = json.loads(json.dumps(compare(runs).as_values(), allow_nan=False))
    assert values["best"] == {"heldout.loss": ["plain"], "retention.loss": ["replay"]}
    assert values["runs"]["replay"]["scores"] == {"heldout.loss": 2.2, "retention.loss": 1.1}
    assert values["runs"]["replay"]["recipe"] == {"optim.lr": 5e-6}


def test_more_is_better_where_a_score_says_so_and_ties_share_the_mark(tmp_path: Path) -> None:
    folders = []
    for name, exact in (("a", 0.5), ("b", 0.7), ("c", 0.7)):
        report = evaluation(2, 2.0, better={"qa.exact": "higher"})
        report["scores"]["qa.exact"] = exact
        folders.append(bare(tmp_path / name, [step(2, 1.0), report], record={"result_step": 2}))
    found = compare(folders)
    assert found.best == {"heldout.loss": (), "qa.exact": (1, 2)}


def test_what_does_not_compare_is_said(tmp_path: Path, runs: list[Path]) -> None:
    other = made(tmp_path / "other", 1.0, None, data={"fingerprint": "g"})
    text = compare([runs[0], other]).as_text()
    assert "prepared from other data" in text
    assert re.search(r"^retention.loss +1 +1.500 +-$", text, re.MULTILINE)
    half = bare(tmp_path / "half", [evaluation(0, 5.0, 1.0), step(1, 4.0), evaluation(1, 3.0, 1.2)])
    assert "not done, so its last measured state is shown: half" in compare([runs[0], half]).as_text()


def test_runs_of_the_same_name_are_told_apart(tmp_path: Path) -> None:
    found = compare([made(tmp_path / name / "run", 2.0, 1.0) for name in ("one", "two")])
    assert found.names == ("one/run", "two/run")
    run = tmp_path / "one" / "run"
    assert compare([run, run]).names == ("one/run (1)", "one/run (2)")


def test_one_run_or_no_run_is_refused(tmp_path: Path, runs: list[Path]) -> None:
    with pytest.raises(RecipeError, match="compares with nothing"):
        compare(runs[:1])
    with pytest.raises(RecipeError, match="no run folder"):
        compare([runs[0], tmp_path])


def test_the_page_has_scores_differences_picture_and_curves(tmp_path: Path, runs: list[Path]) -> None:
    compare(runs, page=tmp_path / "page.html")
    text = (tmp_path / "page.html").read_text()
    elements = Elements(text)
    ids = [attrs.get("id") for tag, attrs in elements.found if tag == "section"]
    assert ids == ["scores", "recipes", "gain-and-loss", "curves"]
    assert re.findall(r'class="best">([\d.]+)', text) == ["2", "1.100"]
    titles = re.findall(r"<figcaption><b>(.*?)</b>", text)
    assert titles[1:] == ["Held-out loss", "Retention loss", "Training loss", "Learning rate"]
    assert len(re.findall(r'<polyline points="[^"]+" class="line (?:a|b|d)"', text)) == 12
    assert "dot a" in text
    assert 'class="ring d"' in text, "the run that another beats in both is a ring"
    assert "https:" not in text
    assert not {tag for tag, _ in elements.found} & {"link", "img", "a", "iframe"}


def test_without_retention_there_is_no_picture_and_it_says_so(tmp_path: Path) -> None:
    runs = [bare(tmp_path / name, [step(1, 1.0), evaluation(1, 2.0)]) for name in ("a", "b")]
    compare(runs, page=tmp_path / "page.html")
    assert "There is no picture of target against retention" in (tmp_path / "page.html").read_text()


def test_names_and_settings_bring_no_markup_in(tmp_path: Path) -> None:
    runs = [made(tmp_path / "<img src=x onerror=alert(1)>", 2.0, 1.5), made(tmp_path / "b", 2.1, 1.4)]
    (runs[1] / "recipe.yaml").write_text(
        (runs[1] / "recipe.yaml").read_text().replace("my-org/my-model", json.dumps(EVIL.replace("\u202e", "")))
    )
    compare(runs, page=tmp_path / "page.html")
    elements = Elements((tmp_path / "page.html").read_text())
    assert "img" not in {tag for tag, _ in elements.found}
    assert [tag for tag, _ in elements.found].count("script") == 1
    assert not [name for _, attrs in elements.found for name in attrs if name.startswith("on")]


def test_a_page_that_is_not_ours_stays(tmp_path: Path, runs: list[Path]) -> None:
    (tmp_path / "mine.html").write_text("years of work")
    with pytest.raises(RecipeError):
        compare(runs, page=tmp_path / "mine.html")
    assert (tmp_path / "mine.html").read_text() == "years of work"


PLACES = st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=1, max_size=20)


@given(PLACES)
def test_the_front_is_whom_nobody_beats(places: list[tuple[int, int]]) -> None:
    points = [Point(str(n), float(a), float(b)) for n, (a, b) in enumerate(places)]
    best = front(points)
    for point in points:
        beaten = any(
            (other.target <= point.target and other.retention < point.retention)
            or (other.target < point.target and other.retention <= point.retention)
            for other in points
        )
        assert (point in best) != beaten
    assert best == sorted(best, key=lambda point: (point.target, point.retention))


def test_the_picture_puts_better_to_the_lower_left() -> None:
    text = picture([Point("good", 1.0, 1.0, "a"), Point("bad", 2.0, 2.0, "b")], target="held-out", base=0.9)
    found = dict(re.findall(r'<circle cx="([\d.]+)" cy="[\d.]+" r="4.6" class="(?:dot|ring) (\w)"', text))
    across = {cls: float(x) for x, cls in found.items()}
    upward = {
        cls: float(y)
        for y, cls in re.findall(r'<circle cx="[\d.]+" cy="([\d.]+)" r="4.6" class="(?:dot|ring) (\w)"', text)
    }
    assert across["a"] < across["b"]
    assert upward["a"] > upward["b"], "an SVG counts from the top"
    assert "retention before training" in text


def test_stories_are_enough(runs: list[Path]) -> None:
    assert compared([read_story(run) for run in runs]) == compare(runs)
