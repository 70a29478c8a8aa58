"""Time that saving takes away from training: fulltune in the background, fulltune waited for, a plain script.

All save the same state of the same model in one process, in turns; between saves training goes on.
"""

import argparse
import dataclasses
import itertools
import os
import statistics
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy
import torch
import transformers

from benchmarks import options, report
from benchmarks.bed import SHAPES, Bed
from benchmarks.machine import Occasion, occasion
from benchmarks.savers import Saver, savers
from benchmarks.summary import Spread, ratios, spread

OURS = "fulltune"


@dataclass(frozen=True, slots=True, kw_only=True)
class Round:
    """One save, in seconds."""

    blocked: float
    """In which the call did not return."""
    waited: float
    """In which updates after it stood still, because what they were to move was still being copied."""
    stood: float
    """From the call until the checkpoint stood, as seen between updates."""
    updates: int
    """That ran meanwhile; one behind the call if the call did everything."""
    slowed: float
    """By which these updates were longer than as many without a save, besides the waiting."""
    quiet: float
    """Of an update without a save."""

    @property
    def away(self) -> float:
        """Taken from training: it was blocked, or waited for the copy."""
        return self.blocked + self.waited

    @property
    def pace(self) -> float:
        """Of the updates that ran meanwhile, as a part of the pace without a save; the waiting is left out."""
        calm = self.updates * self.quiet
        return calm / (calm + self.slowed)


def main(words: Sequence[str] | None = None) -> int:
    """Measure, show, write. Exit code 130 if interrupted."""
    words = sys.argv[1:] if words is None else words
    asked = _asked(words)
    when = occasion("benchmarks.saving", words)
    bed = Bed(asked.shape, asked.device, asked.precision, rows=asked.rows, tokens=asked.tokens)
    try:
        with tempfile.TemporaryDirectory(dir=asked.work, prefix="fulltune-bench-") as folder:
            ways = savers(bed, Path(folder))
            try:
                measured = time_saves(bed, ways, asked.repeats, asked.quiet)
            finally:
                for saver in ways.values():  # nothing is written into a folder that is being removed
                    saver.wait()
    except KeyboardInterrupt:
        return 130
    shown = page(asked, when, bed, measured)
    print(shown)
    found = {
        "measured": measured,
        "away_of_plain": {name: dataclasses.asdict(part) for name, part in parts(measured).items()},
    }
    record = {"benchmark": "saving", "occasion": when, "asked": vars(asked), "parameters": bed.parameters, **found}
    places = report.write(asked.results, "saving", shown, record)
    print(f"written: {', '.join(place.name for place in places)} in {asked.results.name}/", file=sys.stderr)
    return 0


def _asked(words: Sequence[str]) -> argparse.Namespace:
    about = __doc__.partition("\n")[0] if __doc__ else None
    made = argparse.ArgumentParser(description=about, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    made.add_argument("--shape", choices=SHAPES, default="135m", help="of the random model")
    made.add_argument("--device", default="cuda:0" if torch.cuda.is_available() else "cpu", help="it is trained on")
    made.add_argument("--precision", choices=["float32", "bf16-mixed"], default="float32", help="of the forward pass")
    made.add_argument("--rows", type=options.positive, default=2, help="of an update")
    made.add_argument("--tokens", type=options.positive, default=256, help="of a row")
    made.add_argument("--repeats", type=options.positive, default=5, help="rounds, after one that is not counted")
    made.add_argument("--quiet", type=options.positive, default=5, help="updates without a save before each save")
    made.add_argument("--work", type=Path, help="folder on the disk to save to; else that for temporary files")
    made.add_argument("--results", type=Path, default=report.RESULTS, help="folder for the results")
    return made.parse_args(words)


def time_saves(bed: Bed, ways: Mapping[str, Saver], repeats: int, quiet: int) -> dict[str, list[Round]]:
    """Every way in turn, so many times; a first round, in which memory is taken and caches fill, is not counted."""
    numbers = itertools.count(1)
    found: dict[str, list[Round]] = {name: [] for name in ways}
    for number in range(repeats + 1):
        for name, saver in ways.items():
            made = time_save(bed, saver, next(numbers), quiet)
            print(f"{name}: {made.away:.3f} s away, stood after {made.stood:.1f} s", file=sys.stderr, flush=True)
            if number:
                found[name].append(made)
    return found


def time_save(bed: Bed, saver: Saver, number: int, quiet: int) -> Round:
    """Some updates without a save, one save, updates until it stands."""
    os.sync()  # nobody pays for what the last one left unwritten
    calm = [bed.update() for _ in range(quiet)]
    begun = bed.now()
    saver.save(number)
    blocked = bed.now() - begun
    stands, stood = saver.stands(), blocked
    # At least one update: whatever is still being copied when weights are to move, is waited for there.
    busy = [bed.update()]
    while not stands:
        stands, stood = saver.stands(), bed.now() - begun
        if not stands:
            busy.append(bed.update())
    saver.wait()
    whole = statistics.median(calm)
    return Round(
        blocked=blocked,
        waited=saver.waited,
        stood=stood,
        updates=len(busy),
        slowed=sum(busy) - len(busy) * whole - saver.waited,
        quiet=whole,
    )


def parts(measured: Mapping[str, Sequence[Round]]) -> dict[str, Spread]:
    """What each takes away from training, as a part of what the plain ways take in the same round."""
    away = {name: [one.away for one in rounds] for name, rounds in measured.items()}
    plain = [name for name in away if name.startswith("plain")]
    return {
        f"{name} / {other}": ratios(values, away[other])
        for name, values in away.items()
        if name not in plain
        for other in plain
    }


def page(asked: argparse.Namespace, when: Occasion, bed: Bed, measured: Mapping[str, Sequence[Round]]) -> str:
    """The result as Markdown."""
    found = [
        "# Time that saving takes away from training",
        report.facts(dict(_facts(asked, when, bed))),
        _times(measured),
        _parts(measured),
        "What is measured and how: [the benchmarks' README](../README.md).",
    ]
    return "\n\n".join(found) + "\n"


def _facts(asked: argparse.Namespace, when: Occasion, bed: Bed) -> Iterator[tuple[str, str]]:
    yield from report.heading(when)
    device = asked.device if asked.device == "cpu" else torch.cuda.get_device_name(asked.device)
    yield (
        "model",
        f"random Llama, {bed.parameters:,} parameters, tied, AdamW; {report.size(12 * bed.parameters)} to save",
    )
    yield "training", f"{device}, {asked.precision}, {asked.rows} rows of {asked.tokens} tokens an update"
    yield "rounds", f"{asked.repeats} counted, {asked.quiet} updates without a save before each save"
    own = {"torch": str(torch.__version__), "transformers": transformers.__version__, "numpy": numpy.__version__}
    yield "versions", report.versions({OURS: own})


def _times(measured: Mapping[str, Sequence[Round]]) -> str:
    """Medians, with the range of what matters most."""
    lines = []
    for name, rounds in measured.items():
        away = spread([one.away for one in rounds])
        blocked, waited, stood = (
            statistics.median(values)
            for values in zip(*((one.blocked, one.waited, one.stood) for one in rounds), strict=True)
        )
        updates, pace, slowed = (
            statistics.median(values)
            for values in zip(*((one.updates, one.pace, one.slowed) for one in rounds), strict=True)
        )
        lines.append(
            [
                name,
                f"{away.median:.3f} ({away.low:.3f} to {away.high:.3f})",
                f"{blocked:.3f}",
                f"{waited:.3f}",
                f"{stood:.1f}",
                f"{updates:.0f}",
                f"{pace:.0%}",
                f"{slowed:.3f}",
            ]
        )
    head = ["seconds", "away from training", "blocked", "waited for the copy", "stood after", "updates meanwhile"]
    return report.table([*head, "their pace", "slowed by, in all"], lines)


def _parts(measured: Mapping[str, Sequence[Round]]) -> str:
    lines = [
        [name, f"{part.median:.1%}", f"{part.low:.1%}", f"{part.high:.1%}"] for name, part in parts(measured).items()
    ]
    return report.table(["away from training, as a part", "median", "lowest", "highest"], lines)


if __name__ == "__main__":
    sys.exit(main())
