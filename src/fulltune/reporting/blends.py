"""The mixtures that `fulltune blend` made of a run: the losses of each, and what was learned against what was kept."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fulltune.reporting.figures import number
from fulltune.reporting.markup import Html, el, table
from fulltune.reporting.pareto import Point, picture
from fulltune.reporting.results import section
from fulltune.reporting.story import Story

_TARGET, _RETENTION = "heldout.loss", "retention.loss"


def blends(story: Story) -> Html | None:
    """Of a run that was never blended nothing is said."""
    points: Sequence[Mapping[str, Any]] = story.blend.get("points") or []
    if not points:
        return None
    models = [_called(str(model)) for model in story.blend["models"]]
    losses = [name for name in points[0]["scores"] if name.endswith(".loss")]
    rows = [
        (*(f"{part:.4g}" for part in point["parts"]), *(number(_score(point, name)) for name in losses))
        for point in points
    ]
    note = el(
        "p", "The first columns are the parts of each model; the last model is the result of this run.", cls="faint"
    )
    return section("Blends", "mixtures of models", _picture(story, points), table(rows, (*models, *losses)), note)


def _picture(story: Story, points: Sequence[Mapping[str, Any]]) -> Html | None:
    """None unless two mixtures have both losses."""
    shown = [
        Point(f"{point['parts'][-1]:.4g}", _score(point, _TARGET), _score(point, _RETENTION))
        for point in points
        if math.isfinite(_score(point, _TARGET)) and math.isfinite(_score(point, _RETENTION))
    ]
    if len(shown) < 2:
        return None
    base = story.baseline.scores.get(_RETENTION) if story.baseline else None
    return picture(shown, target="held-out", base=base, each="mixture")


def _score(point: Mapping[str, Any], name: str) -> float:
    """Numbers that are not finite are written by name."""
    return float(point["scores"].get(name, math.nan))


def _called(model: str) -> str:
    path = Path(model)
    return path.parent.name if path.name == "model" and path.parent.name else path.name or model
