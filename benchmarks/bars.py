"""Bars beside each other, as an SVG file that needs no page around it."""

from collections.abc import Sequence

from benchmarks.summary import Spread
from fulltune.reporting.markup import Html, el

_WIDTH, _LEFT, _ROW, _TOP = 720, 190, 26, 34


def bars(title: str, values: Sequence[tuple[str, Spread]], *, ours: str) -> str:
    """One bar for each name, as long as its median; a thin line goes from the lowest to the highest value."""
    longest = max(found.high for _, found in values)
    scale = (_WIDTH - _LEFT - 80) / longest
    height = _TOP + _ROW * len(values) + 8
    made: list[Html] = [
        el("rect", width=_WIDTH, height=height, fill="white"),
        el("text", title, x=8, y=20, font_weight="bold"),
    ]
    for place, (name, found) in enumerate(values):
        y = _TOP + _ROW * place
        middle = y + 9
        fill = "#1f6f8b" if name == ours else "#b8c4cc"
        made += [
            el("text", name, x=_LEFT - 8, y=y + 14, text_anchor="end"),
            el("rect", x=_LEFT, y=y, width=round(found.median * scale, 1), height=18, fill=fill),
            el(
                "line",
                x1=round(_LEFT + found.low * scale, 1),
                x2=round(_LEFT + found.high * scale, 1),
                y1=middle,
                y2=middle,
                stroke="#333",
            ),
            el("text", f"{found.median:,.0f}", x=round(_LEFT + found.high * scale + 6, 1), y=y + 14),
        ]
    drawn = el(
        "svg",
        *made,
        xmlns="http://www.w3.org/2000/svg",
        viewBox=f"0 0 {_WIDTH} {height}",
        font_family="sans-serif",
        font_size=13,
    )
    return str(drawn) + "\n"
