"""What fine-tuning a teller of tiny stories on something else makes it forget, and how much each cure undoes.

Ordinary runs of fulltune on real data and a real pretrained model, each cure with several seeds beside plain training.
"""

import argparse
import dataclasses
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from importlib.metadata import version
from multiprocessing import active_children, get_context
from pathlib import Path

from benchmarks import options, report, undone
from benchmarks.cures import CURES, PLAIN, Cure, named
from benchmarks.fresh import ROOT
from benchmarks.lessons import LENGTH, LESSONS, Amounts, material
from benchmarks.machine import Occasion, occasion
from benchmarks.trials import Losses, Measured, Setting, Trial, blends, done, fisher, remove, run, trial
from fulltune.base.errors import FulltuneError
from fulltune.base.version import __version__

Waves = tuple[list[Trial], list[Trial], list[Trial]]
"""What others need, the runs, what is made of their results."""


def main(words: Sequence[str] | None = None) -> int:
    """Run what is not done yet, show, write. Exit code 1 if a run failed, 130 if interrupted; then it goes on there."""
    words = sys.argv[1:] if words is None else words
    asked = _asked(words)
    when = occasion("benchmarks.forgetting", words)
    begun = time.perf_counter()
    try:
        waves = _waves(asked, named(asked.cures or [cure.name for cure in CURES]))
        before = 0 if asked.again else sum(bool(done(one)) for wave in waves for one in wave)
        with _pool(asked.processes) as pool:
            measured = [one for wave in waves for one in _run(pool, wave, asked.again)]
        found = {lesson.name: [one for one in measured if one.lesson == lesson.name] for lesson in LESSONS}
        found = {name: ones for name, ones in found.items() if ones}
        came = {name: undone.outcomes(ones) for name, ones in found.items()}
    except (FulltuneError, OSError, ValueError, KeyError) as fault:
        print(f"error: {fault}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    seconds = round(time.perf_counter() - begun)
    spent = {"runs done before": before, "seconds": seconds, "load at its end": round(os.getloadavg()[0], 1)}
    shown = page(asked, when, found, came, spent)
    print(shown)
    record = {
        "benchmark": "forgetting",
        "occasion": when,
        "versions": _versions(),
        "asked": vars(asked),
        "spent": spent,
        "cures": [dataclasses.asdict(cure) for cure in CURES if any(one.cure == cure.name for one in measured)],
        "outcomes": came,
        "measured": measured,
    }
    places = report.write(asked.results, "forgetting", shown, record)
    asked.images.mkdir(parents=True, exist_ok=True)
    for name, ones in came.items():
        (asked.images / f"forgetting-{name}.svg").write_text(
            undone.picture(ones, _before(found[name]).stories), encoding="utf-8"
        )
    print(f"written: {', '.join(place.name for place in places)} in {asked.results.name}/", file=sys.stderr)
    return 0


def _asked(words: Sequence[str]) -> argparse.Namespace:
    about = __doc__.partition("\n")[0] if __doc__ else None
    made = argparse.ArgumentParser(description=about, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    made.add_argument("--shared", type=Path, default=ROOT.parent / "shared", help="the folder of models and data")
    made.add_argument("--lessons", nargs="+", default=[one.name for one in LESSONS], help="what is taught")
    made.add_argument("--cures", nargs="+", help="some of them, by name; all, unless given")
    made.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="each draws rows, and their order")
    made.add_argument("--rows", type=options.positive, default=160, help="examples that are taught")
    made.add_argument("--heldout", type=options.positive, default=80, help="examples that target loss is measured on")
    made.add_argument("--kept", type=options.positive, default=64, help="stories that show what was forgotten")
    made.add_argument("--replayed", type=options.positive, default=160, help="stories for replay and for ewc")
    made.add_argument("--epochs", type=float, default=2.0)
    made.add_argument("--batch", type=options.positive, default=8, help="examples of one update")
    made.add_argument("--lr", type=float, default=1e-3, help="peak learning rate")
    made.add_argument("--processes", type=options.positive, default=2, help="runs at a time, of one thread each")
    made.add_argument("--again", action="store_true", help="run what is done already, too")
    made.add_argument("--work", type=Path, default=ROOT / "benchmarks/.forgetting", help="where runs lie")
    made.add_argument("--results", type=Path, default=report.RESULTS, help="folder for the results")
    made.add_argument("--images", type=Path, default=ROOT / "docs/images", help="folder for the pictures")
    return made.parse_args(words)


def _waves(asked: argparse.Namespace, cures: Sequence[Cure]) -> Waves:
    work = asked.work.resolve()
    setting = Setting((asked.shared / "models/stories260K").resolve(), work, asked.lr, asked.epochs, asked.batch)
    amounts = Amounts(asked.rows, asked.heldout, asked.kept, asked.replayed)
    waves: Waves = ([], [], [])
    lessons = [(number, one) for number, one in enumerate(LESSONS) if one.name in asked.lessons]
    rows = {
        (lesson.name, seed): material(lesson, seed, amounts, asked.shared, work / "rows")
        for _, lesson in lessons
        for seed in asked.seeds
    }
    for cure in cures:
        for number, lesson in lessons:
            for seed in asked.seeds if number == 0 or cure.everywhere else ():
                given = rows[lesson.name, seed]
                if cure.needs_fisher:
                    waves[0].append(fisher(setting, lesson.name, seed, given))
                if cure.blended is None:
                    waves[1].append(trial(setting, lesson.name, seed, given, cure))
                if cure.name == PLAIN and any(other.blended is not None for other in cures):
                    waves[2].append(blends(waves[1][-1], cures))
    return waves


def _run(pool: ProcessPoolExecutor, wave: Sequence[Trial], again: bool) -> list[Measured]:
    """So many at a time; one that is done already is read. The first that fails ends it."""
    wave = list({(one.folder, one.cures): one for one in wave}.values())
    if again:
        for one in wave:
            remove(one)
    ready = {one.folder: found for one in wave if (found := done(one))}
    waiting = [one for one in wave if one.folder not in ready]
    running = {pool.submit(run, one): one for one in waiting}
    for number, future in enumerate(as_completed(running), 1):
        ready[running[future].folder] = future.result()
        for each in ready[running[future].folder]:
            print(f"{number} of {len(waiting)}: {_line(each)}", file=sys.stderr, flush=True)
    return [each for one in wave for each in ready[one.folder] if each.cure != "fisher"]


@contextmanager
def _pool(processes: int) -> Iterator[ProcessPoolExecutor]:
    """Processes that end with this one, and where something went wrong at once: their runs save and stop in order."""
    os.environ["OMP_NUM_THREADS"] = "1"  # of the processes that are started
    with options.endable(), ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        try:
            yield pool
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            for child in active_children():
                child.terminate()
            raise


def _line(one: Measured) -> str:
    stories = f"stories {one.before.stories:.3f} -> {one.after.stories:.3f}"
    return f"{one.lesson}, seed {one.seed}, {one.cure}: target {one.after.target:.3f}, {stories}, {one.cpu:.0f} s"


def _before(found: Sequence[Measured]) -> Losses:
    return found[0].before


def _versions() -> dict[str, str]:
    return {"fulltune": __version__, **{name: version(name) for name in ("torch", "transformers")}}


def page(
    asked: argparse.Namespace,
    when: Occasion,
    found: Mapping[str, Sequence[Measured]],
    came: Mapping[str, Sequence[undone.Outcome]],
    spent: Mapping[str, float],
) -> str:
    """The result as Markdown: a table for each lesson."""
    parts = ["# Forgetting, and its cures", report.facts(dict(_facts(asked, when, found, spent)))]
    for name, ones in came.items():
        before, plain = _before(found[name]), ones[0]
        parts += [
            f"## stories260K, taught {name}",
            f"Before: target {before.target:.3f}, stories {before.stories:.3f}. Plain training: target "
            f"{plain.target.mean:.3f}, stories {plain.stories.mean:.3f}.",
            undone.table(ones),
            report.facts({"the claim": undone.CLAIM, "measured": "; ".join(undone.verdicts(ones)) or "no replay"}),
        ]
    parts.append("What is measured and how: [the benchmarks' README](../README.md).")
    return "\n\n".join(parts) + "\n"


def _facts(
    asked: argparse.Namespace, when: Occasion, found: Mapping[str, Sequence[Measured]], spent: Mapping[str, float]
) -> Iterator[tuple[str, str]]:
    yield from report.heading(when)
    yield "versions", ", ".join(f"{name} {number}" for name, number in _versions().items())
    yield (
        "plain run",
        f"{asked.rows} examples of up to {LENGTH} tokens, {asked.epochs:g} epochs of {asked.batch} a batch, peak rate "
        f"{asked.lr:g}, float32, seeds {', '.join(map(str, asked.seeds))}",
    )
    runs = [one for ones in found.values() for one in ones]
    cpu, clock = (sum(values) / 60 for values in ([one.cpu for one in runs], [one.seconds for one in runs]))
    yield "all runs", f"{cpu:.0f} minutes of processor time, one thread each; {clock:.0f} minutes on the clock"
    yield "this command", ", ".join(f"{name}: {number:g}" for name, number in spent.items())


if __name__ == "__main__":
    sys.exit(main())
