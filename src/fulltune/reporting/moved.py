"""How far the weights of each layer lie from the base, as a table whose cells are tinted."""

import math
from collections.abc import Mapping
from typing import Any

from fulltune.reporting.markup import Html, el, fold, missing
from fulltune.reporting.results import section
from fulltune.reporting.story import Story


def weights(story: Story) -> Html:
    """Relative distance from the base, by layer and part."""
    about = "relative to the size of the base's own"
    found = story.record.get("weights") or []
    if not found:
        why = "the run has no result yet" if not story.record else "the record has none"
        return section("Weight change", about, missing(f"How far the weights moved is not known: {why}."))
    layered = [part for part in found if part["layer"] is not None]
    others = [part for part in found if part["layer"] is None]
    most = max((_value(part) for part in found if math.isfinite(_value(part))), default=0.0) or 1.0
    parts = list(dict.fromkeys(part["part"] for part in layered))
    rows = []
    for layer in sorted({part["layer"] for part in layered}):
        of = {part["part"]: part for part in layered if part["layer"] == layer}
        rows.append(el("tr", el("th", str(layer), scope="row"), *(_cell(of.get(part), most) for part in parts)))
    outside = [el("tr", el("th", part["part"], scope="row"), _cell(part, most)) for part in others]
    say = (
        "‖tuned − base‖ / ‖base‖ (L2) over all weights of a part, as they are on disk. A part that moved far more than"
        " its neighbours is where to look first if something was forgotten."
    )
    made = [el("p", say, cls="faint")]
    if outside:
        made.append(_heat("outside of the layers", ["change"], outside))
    if rows:
        grid = _heat("layer", parts, rows)
        made.append(fold(f"all {len(rows)} layers", grid) if len(rows) > 40 else grid)
    return section("Weight change", about, *made)


def _heat(name: str, heads: list[str], rows: list[Html]) -> Html:
    head = el("thead", el("tr", el("th", name, scope="col"), *(el("th", part, scope="col") for part in heads)))
    return el("div", el("table", head, el("tbody", *rows), cls="heat"), cls="wide")


def _cell(part: Mapping[str, Any] | None, most: float) -> Html:
    if part is None:
        return el("td", "")
    value = _value(part)
    if not math.isfinite(value):
        return el("td", "base is zero")
    tint = min(value / most, 1.0)
    return el("td", f"{value:.2%}" if value >= 1e-4 or value == 0 else f"{value:.1e}", style=f"--tint:{tint:.3f}")


def _value(part: Mapping[str, Any]) -> float:
    return float(part["relative"])
