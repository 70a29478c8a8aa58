"""A chart draws the numbers that it is given, where they belong, and tells them."""

import itertools
import json
import math
import re
from xml.etree import ElementTree

import pytest

from fulltune.reporting.charts import Chart, Line, figure
from fulltune.reporting.figures import change, duration, interval, number, percent, short
from fulltune.reporting.scales import Scale, horizontal, vertical

POINTS = [(0.0, 4.0), (5.0, 2.0), (10.0, 3.0)]


def drawn(chart: Chart) -> ElementTree.Element:
    """The figure as a tree: it is well-formed XML too."""
    return ElementTree.fromstring(figure(chart))


def places(root: ElementTree.Element, cls: str) -> list[tuple[float, float]]:
    (line,) = [each for each in root.iter("polyline") if each.get("class") == cls]
    return [(float(x), float(y)) for x, y in (pair.split(",") for pair in (line.get("points") or "").split())]


def test_points_lie_where_their_numbers_say() -> None:
    root = drawn(Chart(title="Loss", lines=[Line("loss", POINTS, "a")], width=400, height=200))
    x, y = horizontal([0, 10], 46, 390), vertical([2, 3, 4], 10, 178)
    assert places(root, "line a") == [(pytest.approx(x(a), abs=0.05), pytest.approx(y(b), abs=0.05)) for a, b in POINTS]
    # A greater number lies higher, and all of them inside of the picture.
    heights = [at for _, at in places(root, "line a")]
    assert 10 < heights[0] < heights[2] < heights[1] < 178
    # The scale can be read back from its grid: each tick's line lies where its number is said to lie.
    ticks = [each for each in root.iter("text") if each.get("class") == "tick end"]
    assert len(ticks) >= 3
    for tick in ticks:
        assert float(tick.get("y") or 0) - 3.5 == pytest.approx(y(float(tick.text or "nan")), abs=0.06)


def test_the_numbers_are_told_beside_the_picture() -> None:
    text = figure(Chart(title="Loss", lines=[Line("loss", POINTS)]))
    (told,) = re.findall(r'data-told="([^"]*)"', text)
    assert json.loads(told.replace("&quot;", '"')) == [{"name": "loss", "rows": [[0, 4.0], [5, 2.0], [10, 3.0]]}]
    assert re.findall(r'<th scope="row">(\d+)</th><td>(\d)</td>', text) == [("0", "4"), ("5", "2"), ("10", "3")]


def test_a_noisy_curve_keeps_its_spike_under_a_line_of_means() -> None:
    points = [(float(n), 1.0 + n % 2) for n in range(5000)]
    points[4321] = (4321.0, 9.0)
    root = drawn(Chart(title="Loss", lines=[Line("loss", points, "c")]))
    top = min(at for _, at in places(root, "line c raw"))
    assert top == min(at for each in root.iter("polyline") for _, at in places(root, each.get("class") or ""))
    assert len(places(root, "line c raw")) <= 702
    assert len(places(root, "line c")) <= 72


def test_what_is_not_finite_is_marked_and_said() -> None:
    text = figure(Chart(title="Loss", lines=[Line("loss", [(0, 1.0), (1, math.nan), (2, math.inf), (3, 2.0)])]))
    assert "2 values are not finite: see the marks" in text
    assert text.count('class="odd"') == 2
    assert "nan" not in text.lower()
    assert "infinity" not in text.lower()


def test_nothing_to_draw_is_said() -> None:
    for lines in ([], [Line("loss", [])], [Line("loss", [(0, math.nan)])]):
        text = figure(Chart(title="Loss", lines=lines))
        assert "Nothing was recorded." in text
        assert "<svg" not in text


@pytest.mark.parametrize("points", [[(0, 0.0)], [(7, 5.0)], [(0, 2.0), (1, 2.0)], [(0, -3.0), (1, 3.0)], [(0, 1e-9)]])
def test_odd_ranges_still_make_a_picture(points: list[tuple[float, float]]) -> None:
    root = drawn(Chart(title="Loss", lines=[Line("loss", points, dots=True)]))
    assert len(list(root.iter("circle"))) == len(points)
    assert all(
        math.isfinite(float(value)) for each in root.iter("circle") for value in (each.get("cx"), each.get("cy"))
    )


def test_a_wide_range_is_drawn_by_its_logarithm_and_says_so() -> None:
    text = figure(Chart(title="Loss", lines=[Line("loss", [(0, 100.0), (1, 10.0), (2, 1.0)], "a")], height=200))
    assert "Logarithmic scale." in text
    heights = [at for _, at in places(ElementTree.fromstring(text), "line a")]
    assert heights[1] - heights[0] == pytest.approx(heights[2] - heights[1], abs=0.11)
    assert "Logarithmic" not in figure(Chart(title="", lines=[Line("loss", [(0, 100.0), (1, 0.0)])]))


def test_ticks_are_round_and_lie_inside() -> None:
    assert Scale(0, 1, 0, 100).ticks == [0, 0.25, 0.5, 0.75, 1]
    assert Scale(1.4, 2.6, 0, 1).ticks == [1.5, 2.0, 2.5]
    assert Scale(0.02, 9, 0, 1, log=True).ticks == [0.1, 1.0]
    assert Scale(0.5, 9, 0, 1, log=True).ticks == [0.5, 1.0, 2.0, 5.0]


def test_names_at_the_ends_of_lines_do_not_lie_over_each_other() -> None:
    lines = [Line(f"run {n}", [(0, 1.0), (1, 1.0 + n / 1000)], "a") for n in range(6)]
    root = drawn(Chart(title="Loss", lines=lines, named=True, height=280))
    heights = sorted(float(each.get("y") or 0) for each in root.iter("text") if each.get("class") == "name a")
    assert all(below - above >= 12.9 for above, below in itertools.pairwise(heights))


def test_numbers_as_people_read_them() -> None:
    told = [number(v) for v in (0, 1234567.0, 0.0210137, 12.0, 3.14159, 1e-7, -2.5, math.nan, 999.96)]
    assert told == ["0", "1.23e6", "0.02101", "12", "3.142", "1e-7", "-2.500", "not a number", "1,000"]
    assert interval((0.052139, 12.3456)) == "[0.0521, 12.3]"
    assert change(2.0, 1.5) == "−0.5000 (−25%)"
    assert change(1.0, 1.0) == "+0 (+0%)"
    assert change(0.0, 1.0) == "+1"
    assert change(1.0, math.inf) == ""
    assert [percent(v) for v in (0, 0.0004, 0.0123, 0.5, 0.9976, 0.99985, 0.99999, 1)] == [
        "0%",
        "under 0.1%",
        "1.2%",
        "50%",
        "99.8%",
        "99.98%",
        "over 99.99%",
        "100%",
    ]
    assert [duration(v) for v in (0.5, 41, 200, 18_720)] == ["0.5 s", "41 s", "3 min 20 s", "5 h 12 min"]
    assert [short(v) for v in (0, 20_000, 2.5e6, 0.0004, 0.25)] == ["0", "20k", "2.5M", "4e-4", "0.25"]
