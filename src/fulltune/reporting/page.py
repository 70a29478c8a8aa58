"""The report of a run as one page that needs nothing else: no network, and no script to be read."""

from datetime import UTC, datetime
from importlib.resources import files
from pathlib import Path

from fulltune.base.errors import RecipeError
from fulltune.base.files import write_whole
from fulltune.base.version import __version__
from fulltune.reporting.blends import blends
from fulltune.reporting.conditions import environment, plan
from fulltune.reporting.facts import Beside, data
from fulltune.reporting.markup import Html, el, join, shell, text
from fulltune.reporting.moved import weights
from fulltune.reporting.results import curves, measured, samples, verdict
from fulltune.reporting.story import Story
from fulltune.reporting.transfer import continual

MARK = "<!-- written by fulltune report -->"
"""In the first line of every page. A file without it is somebody's own."""


FINISHED = "<!-- of a run that is done -->"
"""Behind it, where the run was."""
_HEAD = 200
"""Bytes of a page in which both are looked for."""


def finished(path: Path) -> bool:
    """Whether this is the report of a run that was done when it was written."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return FINISHED.encode() in file.read(_HEAD)


def require_place(path: Path) -> None:
    """RecipeError if a page may not be written there; asked before any work is done."""
    if not path.exists():
        return
    if path.is_dir():
        raise RecipeError("this is a folder", where=str(path), mend="name a file for the page, such as report.html")
    with path.open("rb") as file:
        if MARK.encode() not in file.read(_HEAD):
            raise RecipeError("the file exists and is no page of ours", where=str(path), mend="name another")


def write_page(path: Path, page: str) -> None:
    """Write a page; an older one in its place is replaced."""
    write_whole(path, page)


def page(story: Story, beside: Beside, *, fault: str = "") -> Html:
    """The report of a run. `fault`: what ended it, if it did not end by itself."""
    head = el(
        "header", el("h1", story.name), el("p", *_about(story), cls="under"), _state(story, fault), verdict(story)
    )
    body = el(
        "main",
        measured(story),
        continual(story),
        blends(story),
        curves(story),
        samples(story),
        data(story, beside),
        plan(story),
        weights(story),
        environment(story),
    )
    return whole(story.name, join([head, body, footer(_sources(story))]), done=_done(story, fault))


def whole(title: str, body: Html, *, done: bool = False) -> Html:
    """A whole page around its body. `done`: it is the report of a run that is."""
    room = files("fulltune.reporting")
    frame, style, script = (
        (room / name).read_text(encoding="utf-8") for name in ("page.html", "style.css", "hover.js")
    )
    return shell(frame, style, script, TITLE=text(title), BODY=body, STATE=Html(FINISHED if done else ""))


def footer(sources: str) -> Html:
    """By what a page was made, of what, when."""
    written = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    return el("footer", f"fulltune {__version__} · {written} · {sources}")


def _about(story: Story) -> list[object]:
    said: list[object] = [el("b", story.base or "an unknown base model"), " trained"]
    if story.plan:
        said.append(f" for {story.last:,} of {story.plan['updates']:,} updates")
    trained = [source["path"] for source in (story.data.get("sources") or {}).get("train", ())]
    if trained:
        more = f" and {len(trained) - 3} more" if len(trained) > 3 else ""
        said.append(f" on {', '.join(Path(path).name for path in trained[:3])}{more}")
    return [*said, "."]


def _done(story: Story, fault: str) -> bool:
    return story.ended and bool(story.record) and not fault


def _state(story: Story, fault: str) -> Html | None:
    if _done(story, fault):
        return None
    said = "This run is not done: "
    said += f"it stands after update {story.last:,}" if story.steps else "no update was made"
    told = el("p", el("span", said + ".", cls="state"), " What follows is of its state now.")
    why = el("pre", fault) if fault else None
    lacks = el("p", "Not in its folder: " + "; ".join(story.missing) + ".", cls="missing") if story.missing else None
    return join([told, why, lacks])


def _sources(story: Story) -> str:
    return f"made from the cards and the journal in {story.path.resolve()}"
