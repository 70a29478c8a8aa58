"""The Pareto picture: what was learned against what was kept, and which of several states nobody beats in both."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from fulltune.reporting.figures import number, short
from fulltune.reporting.markup import Html, el, fold, table
from fulltune.reporting.scales import Scale, vertical

_WIDTH, _HEIGHT = 800, 380
_LEFT, _RIGHT, _TOP, _BELOW = 60, 130, 12, 40
"""Room around the picture: for numbers, for names, and for what the axes are called."""
_NAMED = 24
"""Points whose names are written."""


@dataclass(frozen=True, slots=True)
class Point:
    """A model by the loss of what it was to learn and the loss of what it was not to forget; less is better in both."""

    name: str
    target: float
    retention: float
    cls: str = "a"
    way: Sequence[tuple[float, float]] = field(default=())
    """(target, retention) of the states before it, in their order."""


def front(points: Sequence[Point]) -> list[Point]:
    """The points that no other one beats in one loss without being worse in the other, by target loss."""
    best = [
        point
        for point in points
        if not any(
            other.target <= point.target
            and other.retention <= point.retention
            and (other.target, other.retention) != (point.target, point.retention)
            for other in points
        )
    ]
    return sorted(best, key=lambda point: (point.target, point.retention))


def picture(points: Sequence[Point], *, target: str, base: float | None = None, each: str = "run") -> Html:
    """A figure of points, their front dashed. `target`: what the losses are of; `base`: retention loss before.

    `each`: what a point is.
    """
    title = el(
        "figcaption",
        el("b", "What was learned against what was kept"),
        " ",
        el("span", "lower left is better", cls="faint"),
    )
    svg, best = _plot(points, target, base)
    rows = [(p.name, number(p.target), number(p.retention), "yes" if p in best else "") for p in points]
    note = el(
        "p",
        f"The dashed line joins each {each} that no other one beats in both.",
        " Small dots are earlier states." if any(point.way for point in points) else None,
        cls="faint",
    )
    heads = (each, f"{target} loss", "retention loss", "on the front")
    return el("figure", title, svg, note, fold("numbers", table(rows, heads)), cls="pareto")


def drawing(points: Sequence[Point], *, target: str, base: float | None, style: str) -> Html:
    """The same as an SVG file of its own; `style`: the pages' CSS."""
    inside = [el("style", style), el("rect", width=_WIDTH, height=_HEIGHT, fill="var(--back)")]
    own = f"width: {_WIDTH}px; height: {_HEIGHT}px; font-family: system-ui, sans-serif"  # not as wide as a page
    svg, _ = _plot(
        points, target, base, *inside, xmlns="http://www.w3.org/2000/svg", width=_WIDTH, height=_HEIGHT, style=own
    )
    return svg


def _plot(
    points: Sequence[Point], target: str, base: float | None, *before: Html, **named: object
) -> tuple[Html, list[Point]]:
    """The figure's SVG and the front; `before` stands in it before what is drawn, `named` are attributes of it."""
    inner = [(point.target, point.retention) for point in points]
    inner += [state for point in points for state in point.way if _near(state, inner)]
    across = vertical([a for a, _ in inner], _WIDTH - _RIGHT, _LEFT)
    upward = vertical([b for _, b in inner] + ([] if base is None else [base]), _TOP, _HEIGHT - _BELOW)
    drawn = [*_axes(across, upward, target), *_level(base, upward)]
    best = front(points)
    drawn.append(el("polyline", points=_path([(p.target, p.retention) for p in best], across, upward), cls="front"))
    for point in points:
        drawn += _way(point, across, upward)
    drawn += _points(points, best, across, upward)
    svg = el(
        "svg",
        *before,
        *drawn,
        viewBox=f"0 0 {_WIDTH} {_HEIGHT}",
        role="img",
        aria_label=f"{target} loss against retention loss",
        cls="big",
        **named,
    )
    return svg, best


def _near(state: tuple[float, float], ends: Sequence[tuple[float, float]]) -> bool:
    """Whether an earlier state lies so near the results that showing it does not press them together."""
    spans = [(min(column), max(column)) for column in zip(*ends, strict=True)]
    return all(
        low - max(high - low, 0.15 * abs(high)) <= value <= high + max(high - low, 0.15 * abs(high))
        for value, (low, high) in zip(state, spans, strict=True)
    )


def _axes(across: Scale, upward: Scale, target: str) -> list[Html]:
    made = []
    for value in across.ticks:
        at = f"{across(value):.1f}"
        made.append(el("line", x1=at, x2=at, y1=_TOP, y2=_HEIGHT - _BELOW, cls="grid"))
        made.append(el("text", short(value), x=at, y=_HEIGHT - _BELOW + 15, cls="tick middle"))
    for value in upward.ticks:
        at = f"{upward(value):.1f}"
        made.append(el("line", x1=_LEFT, x2=_WIDTH - _RIGHT, y1=at, y2=at, cls="grid"))
        made.append(el("text", short(value), x=_LEFT - 6, y=f"{upward(value) + 3.5:.1f}", cls="tick end"))
    log = (" (logarithmic)" if scale.log else "" for scale in (across, upward))
    made.append(
        el("text", f"{target} loss{next(log)}", x=(_LEFT + _WIDTH - _RIGHT) / 2, y=_HEIGHT - 6, cls="tick middle")
    )
    turned = f"rotate(-90 12 {(_TOP + _HEIGHT - _BELOW) / 2})"
    made.append(
        el(
            "text",
            f"retention loss{next(log)}",
            x=12,
            y=(_TOP + _HEIGHT - _BELOW) / 2,
            transform=turned,
            cls="tick middle",
        )
    )
    return made


def _level(base: float | None, upward: Scale) -> list[Html]:
    if base is None:
        return []
    at = upward(base)
    line = el("line", x1=_LEFT, x2=_WIDTH - _RIGHT, y1=f"{at:.1f}", y2=f"{at:.1f}", cls="level")
    return [line, el("text", "retention before training", x=_LEFT + 6, y=f"{at - 5:.1f}", cls="tick")]


def _way(point: Point, across: Scale, upward: Scale) -> list[Html]:
    states = [
        state for state in point.way if across.low <= state[0] <= across.high and upward.low <= state[1] <= upward.high
    ]
    if not states:
        return []
    path = _path([*states, (point.target, point.retention)], across, upward)
    line = el("polyline", points=path, cls=f"line raw {point.cls}")
    return [line, *(_dot(state, across, upward, 1.8, f"dot {point.cls}") for state in states)]


def _points(points: Sequence[Point], best: Sequence[Point], across: Scale, upward: Scale) -> list[Html]:
    made = []
    free = -1e9
    for point in sorted(points, key=lambda p: upward(p.retention)):
        place = (point.target, point.retention)
        made.append(_dot(place, across, upward, 4.6, f"{'dot' if point in best else 'ring'} {point.cls}"))
        if len(points) <= _NAMED:
            x, y = across(point.target), max(upward(point.retention) + 4, free)
            free = y + 13
            name = point.name if len(point.name) <= 20 else point.name[:19] + "…"
            made.append(el("text", name, x=f"{x + 9:.1f}", y=f"{y:.1f}", cls=f"name {point.cls}"))
    return made


def _dot(place: tuple[float, float], across: Scale, upward: Scale, radius: float, cls: str) -> Html:
    return el("circle", cx=f"{across(place[0]):.1f}", cy=f"{upward(place[1]):.1f}", r=radius, cls=cls)


def _path(places: Sequence[tuple[float, float]], across: Scale, upward: Scale) -> str:
    return " ".join(f"{across(a):.1f},{upward(b):.1f}" for a, b in places)
