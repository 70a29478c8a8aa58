"""Earlier tasks of a chain of runs: what this run took from them or gave them (backward transfer), and its own gain.

Lopez-Paz and Ranzato 2017, arXiv 1706.08840: the score of an old task after learning a new one, minus that before.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fulltune.data.names import short_names
from fulltune.reporting.figures import number
from fulltune.reporting.judge import Score, scores
from fulltune.reporting.markup import Html, el, table
from fulltune.reporting.results import section
from fulltune.reporting.story import Story

_OWN = ("test.loss", "heldout.loss")
"""What the gain on the new task is read from."""


@dataclass(frozen=True, slots=True)
class Transfer:
    """What became of one earlier task."""

    task: str
    run: str
    scores: tuple[Score, ...]
    missing: tuple[str, ...]


def transfers(story: Story) -> list[Transfer]:
    """Every earlier task with its scores before and after, the last one first."""
    found = scores(story)
    names = _retention(story)
    made = []
    for task in story.plan.get("chain") or ():
        suites = tuple(f"{suite}." for suite in task["suites"])
        losses = names.get(task["run"], ()) if task["retention"] else ()
        own = [score for score in found if score.name in losses]
        own += [score for score in found if suites and score.name.startswith(suites)]
        made.append(Transfer(task["name"], task["run"], tuple(own), tuple(task["missing"])))
    return made


def _retention(story: Story) -> Mapping[str, Sequence[str]]:
    """Run folder -> names of the losses of its rows."""
    sources: list[dict[str, Any]] = (story.data.get("sources") or {}).get("retention") or []
    sizes = ((story.data.get("splits") or {}).get("retention") or {}).get("by_source") or []
    paths = [source["path"] for source, size in zip(sources, sizes, strict=False) if size]
    found: dict[str, list[str]] = {}
    for path, name in zip(paths, short_names(paths), strict=True):
        found.setdefault(path, []).append(f"retention.{name}.loss" if len(paths) > 1 else "retention.loss")
    return found


def change(score: Score) -> float | None:
    """After minus before."""
    if score.before is None or score.after is None or not math.isfinite(score.after - score.before):
        return None
    return score.after - score.before


def loss_transfer(found: Sequence[Transfer]) -> tuple[float, int] | None:
    """Mean change of the loss over the tasks that have one, and how many they are; of several sources, by tokens."""
    means = []
    for task in found:
        losses = [score for score in task.scores if score.name.startswith("retention.") and change(score) is not None]
        weights = [score.counted or 1 for score in losses]
        if losses:
            moved = [change(score) or 0.0 for score in losses]
            means.append(math.fsum(w * one for w, one in zip(weights, moved, strict=True)) / sum(weights))
    return (math.fsum(means) / len(means), len(means)) if means else None


def gain(story: Story) -> Score | None:
    """The score of the run's own task."""
    found = {score.name: score for score in scores(story) if change(score) is not None}
    return next((found[name] for name in _OWN if name in found), None)


def summary(story: Story) -> list[str]:
    """Backward transfer and forward gain in a sentence each."""
    said = []
    if moved := loss_transfer(transfers(story)):
        mean, tasks = moved
        which = "forgotten" if mean > 0 else "improved" if mean < 0 else "unchanged"
        of = "1 earlier task" if tasks == 1 else f"{tasks} earlier tasks"
        said.append(f"Backward transfer, mean change of the loss of {of}: {mean:+.4f} nats per token ({which}).")
    if own := gain(story):
        moved_by = change(own) or 0.0
        which = "gained" if moved_by < 0 else "lost" if moved_by > 0 else "unchanged"
        said.append(f"Forward gain, change of {own.name} of the new task: {moved_by:+.4f} nats per token ({which}).")
    return said


def continual(story: Story) -> Html | None:
    """The section of a report; nothing where a run does not come from another one."""
    found = transfers(story)
    if not found:
        return None
    rows = [
        (
            task.task,
            score.name,
            _shown(score.before),
            _shown(score.after),
            "not measured" if (moved := change(score)) is None else f"{moved:+.4f}",
            el("span", "better" if score.better else "worse", cls="good" if score.better else "bad")
            if score.better is not None
            else "",
        )
        for task in found
        for score in task.scores
    ]
    lines: list[Html | None] = [el("p", sentence) for sentence in summary(story)]
    if rows:
        lines.append(table(rows, ("task", "score", "before", "after", "backward transfer", "")))
    lines.append(
        el(
            "p",
            "Backward transfer is the score of an earlier task after this run minus that before it",
            " (Lopez-Paz and Ranzato 2017). The model comes from: ",
            ", ".join(f"{task.task} ({task.run})" for task in found),
            ".",
            cls="faint",
        )
    )
    lost = [el("li", f"{task.task}: {why}") for task in found for why in task.missing]
    lines.append(el("div", el("p", "Not measured again:"), el("ul", *lost), cls="missing") if lost else None)
    return section("Earlier tasks", "what the runs before this one were judged by", *lines)


def _shown(value: float | None) -> str:
    return "not measured" if value is None else number(value)
