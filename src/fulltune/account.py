"""Gives account of runs: the report in every run folder, with what its prepared data tells; several runs compared."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from fulltune.base.errors import FulltuneError, RecipeError
from fulltune.base.log import LOGGER
from fulltune.inspection.rows import Reader
from fulltune.material import stores
from fulltune.model.folder import load_tokenizer
from fulltune.reporting.compare import Compared, compared
from fulltune.reporting.compare_page import page as compare_page
from fulltune.reporting.facts import Beside, Taught
from fulltune.reporting.page import finished, page, require_place, write_page
from fulltune.reporting.story import read_story
from fulltune.runs import RunFolder, is_run_folder, open_run

_SHOWN = 700
"""Tokens of the example that are shown."""


@contextmanager
def reported(run: RunFolder, *, mute: bool) -> Iterator[None]:
    """In here a run is trained. However it ends, its report is written then; what ended it is raised all the same.

    Where nothing came of it, not even a line in the journal, the folder stays as it was. `mute`: this process is not
    the one that writes.
    """
    before = _size(run.journal)
    try:
        yield
    except Exception as fault:
        if not mute and _size(run.journal) != before:
            try:
                _after(run, fault)
            finally:
                raise fault  # what ended the run, whatever became of its report
        raise
    if not mute:
        write(run)


def write(run: RunFolder, *, fault: str = "") -> None:
    """Write `report.html` of a run; a file of that name that is none of ours stays, with a warning."""
    try:
        require_place(run.report)
    except RecipeError as theirs:
        LOGGER.warning(f"no report is written: {theirs.faults[0].what} ({run.report})")
        return
    write_page(run.report, page(read_story(run.path), _beside(run), fault=fault))


def catch_up(run: RunFolder) -> None:
    """Write the report of a run that is done, if it was killed before that: between the record and the last report."""
    if not finished(run.report):
        write(run)


def report(run: str | os.PathLike[str], *, out: str | os.PathLike[str] | None = None) -> Path:
    """Write the report of a run folder, as it stands now: one page that needs no network. Returns where it is.

    `out`: where to, by default `report.html` in the folder.

    >>> fulltune.report("runs/recipe")
    """
    folder = Path(run)
    _require_run(folder)
    place = folder / "report.html" if out is None else Path(out)
    require_place(place)
    try:
        beside = _beside(open_run(folder, {}, whole=False))
    except FulltuneError as fault:  # a folder of another version, say; what it tells by itself is told
        beside = Beside(why=fault.faults[0].what)
    write_page(place, page(read_story(folder), beside))
    return place


def compare(runs: Sequence[str | os.PathLike[str]], *, page: str | os.PathLike[str] | None = None) -> Compared:
    """Run folders side by side: scores with the best marked, and where their recipes differ. `page`: write a page too.

    >>> print(fulltune.compare(["runs/one", "runs/other"]).as_text())
    """
    folders, place = [Path(run) for run in runs], None if page is None else Path(page)
    for folder in folders:
        _require_run(folder)
    if place is not None:
        require_place(place)
    stories = [read_story(folder) for folder in folders]
    found = compared(stories)
    if place is not None:
        write_page(place, compare_page(found, stories))
    return found


def _require_run(path: Path) -> None:
    if not is_run_folder(path):
        raise RecipeError("this is no run folder", where=str(path), mend="name one, such as runs/<the recipe's stem>")


def _after(run: RunFolder, fault: Exception) -> None:
    """The report of a run that failed. If that fails too, of a full disk say, it comes second."""
    try:
        write(run, fault=str(fault) or type(fault).__name__)
    except Exception as second:
        LOGGER.error(f"besides, the report could not be written: {second}")
        raise


def _size(journal: Path) -> int:
    return journal.stat().st_size if journal.exists() else 0


def _beside(run: RunFolder) -> Beside:
    """Lengths of the training examples, and the one of median length as it is taught."""
    try:
        store = stores(run.data, run.data_facts())["train"]
        row = int(np.argmin(np.abs(store.lengths - np.median(store.lengths))))
        lengths = store.lengths.tolist()
        shown = Reader(load_tokenizer(run.recipe.model)).read(store, "train", row)
    except (FulltuneError, KeyError) as fault:
        why = fault.faults[0].what if isinstance(fault, FulltuneError) else "there are no training examples"
        return Beside(why=why)
    pieces = [(piece.text, piece.taught, piece.special) for piece in shown.pieces if piece.stop <= _SHOWN]
    left_out = max(shown.length - _SHOWN, 0)
    return Beside(Taught(shown.origin, shown.length, shown.taught, pieces, left_out), lengths)
