"""Curves as inline SVG: axes, names at the ends of lines, and the numbers behind them for who points at one."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from fulltune.reporting.figures import counted, number, short
from fulltune.reporting.markup import Html, data, el, fold, join, table
from fulltune.reporting.scales import Scale, horizontal, vertical
from fulltune.reporting.series import Points, buckets, finite, smooth, thinned

_DRAWN = 700
"""Points of a curve that are drawn: a chart is no more pixels wide."""
_SMOOTH = 72
_NOISY = 150
"""A curve of more points gets a line of means over it."""
_TOLD = 240
"""Stretches of a curve whose numbers are told to who points at them."""
_ROWS = 60
"""Rows of the table of numbers."""
_SMALL = 372
"""Width of a chart that stands beside another; a wider one is scrolled on a narrow screen, and not made smaller."""
_DOTS = 60
"""More dots than these would lie on each other, and are left out."""
_ODD = 60
"""Places of values that are not finite that are marked."""


@dataclass(frozen=True, slots=True)
class Line:
    """One curve: its name, its points, and the class that colours it."""

    name: str
    points: Points
    cls: str = "a"
    dots: bool = False
    """Measured now and then, so that each value gets a dot."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Chart:
    """Curves over the same updates."""

    title: str
    lines: Sequence[Line]
    unit: str = ""
    note: str = ""
    width: int = _SMALL
    height: int = 168
    mark: float | None = None
    """The update that the result is of."""
    level: tuple[str, float] | None = None
    """A name and a value to compare with, drawn across."""
    zero: bool = False
    named: bool = False
    """Whether the names of lines stand at their ends."""
    reach: tuple[float, float] | None = None
    """First and last update, if not those of the lines."""


def figure(chart: Chart) -> Html:
    """A chart with its title and the table of its numbers; a line that says so if there is nothing to draw."""
    lines = [line for line in chart.lines if finite(line.points)]
    odd = sum(len(line.points) - len(finite(line.points)) for line in chart.lines)
    notes = [chart.note] if chart.note else []
    notes += [f"{counted(odd, 'value is', 'values are')} not finite: see the marks at the top."] if odd else []
    title = el("figcaption", el("b", chart.title), " ", el("span", chart.unit, cls="faint"))
    if not lines:
        return el("figure", title, el("p", "Nothing was recorded.", cls="missing"), cls="chart")
    x, y = _scales(chart, lines)
    notes = ["Logarithmic scale.", *notes] if y.log else notes
    told = [{"name": line.name, "rows": _told(line)} for line in lines]
    told += [{"name": chart.level[0], "rows": [[chart.level[1]]]}] if chart.level else []
    picture = el(
        "svg",
        *_frame(chart, x, y),
        *(_drawn(line, x, y) for line in lines),
        *_odd_marks(chart, x),
        *(_names(lines, x, y) if chart.named else ()),
        viewBox=f"0 0 {chart.width} {chart.height}",
        cls="big" if chart.width > _SMALL else None,
        role="img",
        aria_label=f"{chart.title}: {', '.join(line.name for line in lines)}",
        data_told=data(told),
        data_x=data([x.low, x.high, x.start, x.stop, chart.width]),
    )
    readout = el("p", " ".join(notes), cls="readout faint")  # the script writes numbers there in its place
    return el("figure", title, picture, readout, fold("numbers", *_tables(lines)), cls="chart")


def _scales(chart: Chart, lines: Sequence[Line]) -> tuple[Scale, Scale]:
    values = [y for line in lines for _, y in finite(line.points)]
    values += [chart.level[1]] if chart.level is not None else []
    reach = chart.reach or [x for line in lines for x, _ in line.points]
    right = chart.width - (92 if chart.named else 10)
    return horizontal(reach, 46, right), vertical(values, 10, chart.height - 22, zero=chart.zero)


def _frame(chart: Chart, x: Scale, y: Scale) -> list[Html]:
    made = []
    left, right = _at(x.start), _at(x.stop)
    for value in y.ticks:
        at = y(value)
        made.append(el("line", x1=left, x2=right, y1=_at(at), y2=_at(at), cls="grid"))
        made.append(el("text", short(value), x=40, y=_at(at + 3.5), cls="tick end"))
    for value in x.ticks:
        made.append(el("text", short(value), x=_at(x(value)), y=chart.height - 6, cls="tick middle"))
    if chart.level is not None:
        name, value = chart.level
        at = y(value)
        made.append(el("line", x1=left, x2=right, y1=_at(at), y2=_at(at), cls="level"))
        made.append(el("text", name, x=right, y=_at(at + 12 if at < 22 else at - 5), cls="tick end"))
    if chart.mark is not None and x.low <= chart.mark <= x.high:
        at = x(chart.mark)
        made.append(el("line", x1=_at(at), x2=_at(at), y1=10, y2=_at(y.start), cls="mark"))
        if chart.named:
            made.append(el("text", "result", x=_at(at - 5), y=18, cls="tick end"))
    return made


def _drawn(line: Line, x: Scale, y: Scale) -> Html:
    noisy = len(line.points) > _NOISY and not line.dots
    made = [polyline(thinned(line.points, _DRAWN), x, y, f"line {line.cls}{' raw' if noisy else ''}")]
    if noisy:
        made.append(polyline(smooth(line.points, _SMOOTH), x, y, f"line {line.cls}"))
    if line.dots and len(line.points) <= _DOTS:
        dots = finite(line.points)
        made += [el("circle", cx=_at(x(a)), cy=_at(y(b)), r=2.4, cls=f"dot {line.cls}") for a, b in dots]
    return join(made)


def polyline(points: Points, x: Scale, y: Scale, cls: str) -> Html:
    """A line through points."""
    return el("polyline", points=" ".join(f"{_at(x(a))},{_at(y(b))}" for a, b in points), cls=cls)


def _odd_marks(chart: Chart, x: Scale) -> list[Html]:
    places = [at for line in chart.lines for at, value in line.points if not math.isfinite(value)]
    return [
        el("line", x1=_at(x(at)), x2=_at(x(at)), y1=2, y2=9, cls="odd") for at in places[:_ODD] if x.low <= at <= x.high
    ]


def _names(lines: Sequence[Line], x: Scale, y: Scale) -> list[Html]:
    """Names beside the ends of their lines, moved apart where they would lie over each other."""
    ends = [(y(place[1]), place[0], line) for line in lines for place in finite(line.points)[-1:]]
    ends.sort(key=lambda end: end[0])
    made, free = [], 14.0
    lowest = y.start - 13.0 * (len(ends) - 1)
    for at, last, line in ends:
        place = min(max(at, free), lowest)
        free, lowest = place + 13, lowest + 13
        name = line.name if len(line.name) <= 14 else line.name[:13] + "…"
        made.append(el("text", name, x=_at(x(last) + 8), y=_at(place + 4), cls=f"name {line.cls}"))
    return made


def _told(line: Line) -> list[list[float | None]]:
    """[first, last, low, mean, high] of each stretch."""
    rounded = [
        [bucket.first, bucket.last, *(_digits(v) for v in (bucket.low, bucket.mean, bucket.high))]
        for bucket in buckets(line.points, _TOLD)
    ]
    return [[row[1], row[3]] if row[0] == row[1] else row for row in rounded]


def _digits(value: float) -> float | None:
    return float(f"{value:.5g}") if math.isfinite(value) else None


def _tables(lines: Sequence[Line]) -> list[Html]:
    made = []
    for line in lines:
        held = buckets(line.points, _ROWS)
        if all(bucket.first == bucket.last for bucket in held):
            rows = [(f"{bucket.first:g}", number(bucket.mean)) for bucket in held]
            made.append(table(rows, ("update", line.name)))
            continue
        spans = [f"{bucket.first:g}–{bucket.last:g}" for bucket in held]
        told = [tuple(map(number, (bucket.low, bucket.mean, bucket.high))) for bucket in held]
        heads = ("updates", f"{line.name}: lowest", "mean", "highest")
        made.append(table([(span, *values) for span, values in zip(spans, told, strict=True)], heads))
    return made


def _at(place: float) -> str:
    return f"{place:.1f}".removesuffix(".0")
