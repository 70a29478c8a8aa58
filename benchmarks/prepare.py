"""Data preparation side by side: fulltune, TRL's SFTTrainer, a plain script over the datasets library.

Each contestant runs in a fresh process, one after the other, round by round. The first rounds are watched for memory
and not timed, since who looks takes time too; then come the rounds that are timed and not watched.
"""

import argparse
import shutil
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks import compare, environment, material, options, report
from benchmarks.contestants.task import Answer
from benchmarks.fresh import Contestant, Failed, Peak, run
from benchmarks.machine import Occasion, occasion
from benchmarks.rows import BadCorpus
from benchmarks.summary import ratios, spread

OURS = "fulltune"
OTHERS = ("trl", "datasets", "datasets-batched")


@dataclass(slots=True)
class Runs:
    """What one contestant did in all rounds."""

    timed: list[Answer] = field(default_factory=list)
    watched: list[tuple[Answer, Peak]] = field(default_factory=list)

    @property
    def answer(self) -> Answer:
        """Of any round; all of them made the same."""
        return (self.timed or [answer for answer, _ in self.watched])[0]

    @property
    def seconds(self) -> list[float]:
        """Of each timed round, from the file on disk to the end."""
        return [sum(answer.seconds.values()) for answer in self.timed]

    @property
    def seconds_without_load(self) -> list[float]:
        """As `seconds`, from the loaded data set on. fulltune has no such moment: reading is part of all it does."""
        return [answer.seconds["prepare"] for answer in self.timed]

    @property
    def cpu(self) -> list[float]:
        """CPU seconds of each timed round, as `seconds`."""
        return [answer.cpu_seconds for answer in self.timed]

    @property
    def cpu_from_start(self) -> list[float]:
        """The same from the start of the process on, imports too."""
        return [answer.cpu_from_start for answer in self.timed]


def main(words: Sequence[str] | None = None) -> int:
    """Measure, show, write. Exit code 1 if a contestant could not be run, 130 if interrupted."""
    words = sys.argv[1:] if words is None else words
    when = occasion("benchmarks.prepare", words)
    try:
        asked = _asked(words)
        against = contestants(asked)
        with options.bench(asked, [asked.rows]) as bench:
            runs = rounds(bench, against)
            agreed = agreements(bench, runs)
            digests = bench.facts([asked.rows])
    except (Failed, environment.Absent, BadCorpus, OSError) as fault:
        print(f"error: {fault}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    shown = page(asked, when, runs, agreed)
    print(shown)
    record = {"benchmark": "prepare", "occasion": when, "asked": vars(asked), "sha256": digests}
    places = report.write(asked.results, "prepare", shown, record | results(runs, agreed))
    print(f"written: {', '.join(place.name for place in places)} in {asked.results.name}/", file=sys.stderr)
    return 0


def _asked(words: Sequence[str]) -> argparse.Namespace:
    parser = options.parser(__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--rows", type=_rows, default=20_000, help="how many, or `all` that the source has")
    parser.add_argument("--repeats", type=options.positive, default=3, help="timed rounds")
    parser.add_argument("--memory-repeats", type=int, default=1, help="watched rounds, before the timed ones")
    parser.add_argument("--against", nargs="*", choices=OTHERS, default=["trl", "datasets"])
    parser.add_argument("--trl-python", type=Path, help="Python that has TRL; else benchmarks/.env-trl is made")
    asked = parser.parse_args(words)
    if asked.rows is None:
        asked.rows = len(material.corpus(asked.source, asked.seed))
    return asked


def _rows(text: str) -> int | None:
    return None if text == "all" else options.positive(text)


def contestants(asked: argparse.Namespace) -> list[Contestant]:
    """Ours first, then the others in the order in which they were named."""
    made = [Contestant(OURS, "with_fulltune")]
    for name in dict.fromkeys(asked.against):
        match name:
            case "trl":
                made.append(Contestant(name, "with_trl", environment.trl_python(asked.trl_python)))
            case "datasets":
                made.append(Contestant(name, "with_datasets"))
            case "datasets-batched":
                made.append(Contestant(name, "with_datasets", options=("batched",)))
    return made


def rounds(bench: options.Bench, against: Sequence[Contestant]) -> dict[str, Runs]:
    """A B C, A B C, and so on. The first round leaves its rows to be compared."""
    asked = bench.asked
    runs = {contestant.name: Runs() for contestant in against}
    for number in range(asked.memory_repeats + asked.repeats):
        watched = number < asked.memory_repeats
        for contestant in against:
            dump = bench.folder / f"dump-{contestant.name}" if number == 0 else None
            task = bench.task(contestant.name, asked.rows, dump=dump)
            ran = run(contestant, task, watched=watched)
            if Path(task.out).exists():
                shutil.rmtree(task.out)
            if ran.peak is None:
                runs[contestant.name].timed.append(ran.answer)
            else:
                runs[contestant.name].watched.append((ran.answer, ran.peak))
            said = ", ".join(f"{phase} {seconds:.2f} s" for phase, seconds in ran.answer.seconds.items())
            held = f", {report.size(ran.peak.pss)} at most" if ran.peak is not None else ""
            print(f"round {number + 1}, {contestant.name}: {said}{held}", file=sys.stderr, flush=True)
    return runs


def agreements(bench: options.Bench, runs: dict[str, Runs]) -> dict[str, compare.Agreement]:
    """Every other contestant beside fulltune."""
    ours = bench.folder / f"dump-{OURS}"
    return {name: compare.compare(ours, bench.folder / f"dump-{name}", bench.model) for name in runs if name != OURS}


def page(asked: argparse.Namespace, when: Occasion, runs: dict[str, Runs], agreed: dict[str, compare.Agreement]) -> str:
    """The result as Markdown."""
    parts = [
        "# Data preparation, side by side",
        report.facts(dict(_facts(asked, when, runs))),
        _times(runs),
        _cpu(runs),
    ]
    if asked.memory_repeats:
        parts.append(_memory(runs))
    parts.append("\n".join(f"- {line}" for line in _agreed(runs, agreed)))
    parts.append("What is measured and how: [the benchmarks' README](../README.md).")
    return "\n\n".join(parts) + "\n"


def _facts(asked: argparse.Namespace, when: Occasion, runs: dict[str, Runs]) -> Iterator[tuple[str, str]]:
    """What must stand beside the numbers."""
    yield from report.heading(when)
    ours = runs[OURS].answer
    yield (
        "data",
        f"{ours.rows:,} rows, {ours.tokens:,} tokens, {ours.supervised_tokens:,} of them supervised; "
        f"{asked.processes} processes, {asked.repeats} timed rounds",
    )
    yield "versions", report.versions({name: made.answer.versions for name, made in runs.items()})
    for name, made in runs.items():
        for remark in made.answer.remarks.values():
            yield f"note, {name}", remark


def _times(runs: dict[str, Runs]) -> str:
    """Seconds are medians; rates are those of the median."""
    lines = []
    for name, made in runs.items():
        whole, alone = spread(made.seconds), spread(made.seconds_without_load)
        beside = ratios(made.seconds, runs[OURS].seconds)
        cells = [f"{whole.median:.2f}", f"{whole.low:.2f} to {whole.high:.2f}"]
        cells.append("1" if name == OURS else f"{beside.median:.2f} ({beside.low:.2f} to {beside.high:.2f})")
        cells.append("" if name == OURS else f"{alone.median:.2f}")
        cells += [f"{made.answer.rows / whole.median:,.0f}", f"{made.answer.tokens / whole.median:,.0f}"]
        lines.append([name, *cells])
    head = ["contestant", "seconds", "range", "times fulltune", "without load", "rows/s", "tokens/s"]
    return report.table(head, lines)


def _cpu(runs: dict[str, Runs]) -> str:
    """CPU seconds of all processes: medians, and fulltune's as a part of each other's, round by round."""
    ours, lines = runs[OURS], []
    for name, made in runs.items():
        alone, whole = spread(made.cpu), spread(made.cpu_from_start)
        parts = ratios(ours.cpu, made.cpu), ratios(ours.cpu_from_start, made.cpu_from_start)
        shares = ["1" if name == OURS else f"{part.median:.2f} ({part.low:.2f} to {part.high:.2f})" for part in parts]
        cells = [f"{alone.median:.2f}", f"{alone.low:.2f} to {alone.high:.2f}", shares[0]]
        lines.append([name, *cells, f"{whole.median:.2f}", f"{whole.low:.2f} to {whole.high:.2f}", shares[1]])
    head = ["contestant", "CPU s", "range", "fulltune / it", "with start", "range", "fulltune / it"]
    return report.table(head, lines)


def _memory(runs: dict[str, Runs]) -> str:
    """Medians over the watched rounds."""
    lines = []
    for name, made in runs.items():
        peaks = [peak for _, peak in made.watched]
        sizes = [
            spread([peak.pss for peak in peaks]),
            spread([peak.own for peak in peaks]),
            spread([peak.before for peak in peaks]),
            spread([answer.main_peak for answer, _ in made.watched]),
            spread([answer.written for answer, _ in made.watched]),
        ]
        lines.append([name, *(report.size(found.median) for found in sizes), str(max(p.processes for p in peaks))])
    head = ["contestant", "peak, all", "of it no files", "before", "peak, main", "written", "processes"]
    return report.table(head, lines)


def _agreed(runs: dict[str, Runs], agreed: dict[str, compare.Agreement]) -> Iterator[str]:
    """Whether all made the same, and else how they differ."""
    for name, agreement in agreed.items():
        yield compare.said(agreement, name)
        if differing := compare.totals(runs[OURS].answer, runs[name].answer):
            yield f"{name}: {', '.join(differing)}."


def results(runs: dict[str, Runs], agreed: dict[str, compare.Agreement]) -> dict[str, Any]:
    """Every number, raw and summed up."""
    return {
        "contestants": {
            name: {
                "seconds": spread(made.seconds),
                "seconds_without_load": spread(made.seconds_without_load),
                "times_fulltune": ratios(made.seconds, runs[OURS].seconds),
                "cpu": spread(made.cpu),
                "cpu_from_start": spread(made.cpu_from_start),
                "fulltune_cpu": ratios(runs[OURS].cpu, made.cpu),
                "fulltune_cpu_from_start": ratios(runs[OURS].cpu_from_start, made.cpu_from_start),
                "timed": made.timed,
                "watched": [{"answer": answer, "peak": peak} for answer, peak in made.watched],
            }
            for name, made in runs.items()
        },
        "agreement": agreed,
        "equal_totals": {name: not compare.totals(runs[OURS].answer, runs[name].answer) for name in agreed},
    }


if __name__ == "__main__":
    sys.exit(main())
