"""Training side by side: fulltune, TRL's SFTTrainer, transformers' Trainer, as whole processes.

All learn the same tokenised examples from the same weights, as many in an update, in the same number format. Each runs
in a fresh process, one after the other, round by round.
"""

import argparse
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from benchmarks import environment, models, options, report, tokenised, training_page
from benchmarks.bars import bars
from benchmarks.contestants.course import Course, Trained
from benchmarks.fresh import Contestant, Failed, execute
from benchmarks.machine import occasion
from benchmarks.speed import Pace, fastest, pace
from benchmarks.summary import spread

OURS, COMPILED = "fulltune", "fulltune-compiled"
KEPT = {
    "MALLOC_MMAP_THRESHOLD_": str(1 << 30),
    "MALLOC_TRIM_THRESHOLD_": str(1 << 30),
    "MALLOC_TOP_PAD_": str(64 << 20),
}
"""With these glibc keeps what is freed for the next one, as fulltune tells it by itself."""
OTHERS: Mapping[str, tuple[str, ...]] = {
    "trl": ("trl",),
    "trl-best": ("trl", "grouped", "stored"),
    "hf": ("grouped",),
    "hf-pure": ("grouped", "pure"),
}
"""What is asked of train_trainer; each also with KEPT, as `<name>-kept`."""
_AGAINST = [COMPILED, *(name + kept for name in OTHERS for kept in ("", "-kept"))]


@dataclass(slots=True)
class Found:
    """What came of all rounds."""

    runs: dict[str, list[Trained]] = field(default_factory=dict)
    heldout: dict[str, float] = field(default_factory=dict)
    rates: list[dict[str, float]] = field(default_factory=list)

    def paces(self, threads: int) -> dict[str, list[Pace]]:
        """By contestant, one a round."""
        return {name: [pace(run, threads) for run in made] for name, made in self.runs.items()}


def main(words: Sequence[str] | None = None) -> int:
    """Measure, show, write. Exit code 1 if a contestant could not be run, 130 if interrupted."""
    words = sys.argv[1:] if words is None else words
    asked = _asked(words)
    when = occasion("benchmarks.train", words)
    try:
        with options.endable(), tempfile.TemporaryDirectory(dir=asked.work, prefix="fulltune-bench-") as folder:
            against = contestants(asked)
            course, lesson = prepared(asked, Path(folder))
            found = rounds(asked, against, course, lesson)
    except (Failed, environment.Absent, OSError) as fault:
        print(f"error: {fault}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    paces = found.paces(asked.threads)
    best = fastest(found.rates)
    shown = training_page.page(asked, when, lesson, found, paces, best)
    print(shown)
    name = f"train-{asked.model}-{asked.data}-{asked.precision}"
    record = {"benchmark": "train", "occasion": when, "asked": vars(asked), "lesson": lesson, "environment": KEPT}
    record |= {"paces": paces, "heldout": found.heldout, "rates": found.rates, "runs": found.runs}
    places = [*report.write(asked.results, name, shown, record), asked.results / f"{name}.svg"]
    tokens = [(one, spread([run.tokens for run in made])) for one, made in paces.items()]
    places[-1].write_text(bars(f"{asked.model}, {asked.data}: tokens per second", tokens, ours=OURS), encoding="utf-8")
    print(f"written: {', '.join(place.name for place in places)} in {asked.results.name}/", file=sys.stderr)
    return 0


def _asked(words: Sequence[str]) -> argparse.Namespace:
    about = __doc__.partition("\n")[0] if __doc__ else None
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--model", choices=list(models.SHAPES), default="M", help="shape of the random model")
    parser.add_argument("--data", choices=list(tokenised.SOURCES), default="gsm8k")
    parser.add_argument("--precision", choices=["bf16-mixed", "float32"], default="bf16-mixed")
    parser.add_argument("--updates", type=options.positive, default=10, help="of each run; two are not counted")
    parser.add_argument("--batch", type=options.positive, default=8, help="examples of one update")
    parser.add_argument("--max-length", type=options.positive, default=512, help="tokens; what is longer is cut")
    parser.add_argument("--heldout", type=options.positive, default=64, help="held-out examples")
    parser.add_argument("--repeats", type=options.positive, default=5, help="rounds")
    parser.add_argument("--against", nargs="*", choices=_AGAINST, help="all of them, unless given")
    parser.add_argument("--threads", type=options.positive, default=len(os.sched_getaffinity(0)), help="of everyone")
    parser.add_argument("--trl-python", type=Path, help="Python that has TRL; else benchmarks/.env-trl is made")
    parser.add_argument("--work", type=Path, help="folder on the disk to work on; else that for temporary files")
    parser.add_argument("--results", type=Path, default=report.RESULTS, help="folder for the results")
    asked = parser.parse_args(words)
    if asked.against is None:  # in float32 nothing is pure bfloat16
        asked.against = [name for name in _AGAINST if asked.precision != "float32" or "pure" not in name]
    return asked


def contestants(asked: argparse.Namespace) -> list[Contestant]:
    """Ours first, then the others in the order in which they were named."""
    threads = {"OMP_NUM_THREADS": str(asked.threads)}
    made = [Contestant(OURS, "train_fulltune", environment=threads)]
    for name in dict.fromkeys(asked.against):
        if name == COMPILED:
            made.append(Contestant(COMPILED, "train_fulltune", options=("compiled",), environment=threads))
            continue
        plain = name.removesuffix("-kept")
        allocator = KEPT if name != plain else {}
        python = environment.trl_python(asked.trl_python)
        made.append(Contestant(name, "train_trainer", python, OTHERS[plain], environment=threads | allocator))
    return made


def prepared(asked: argparse.Namespace, folder: Path) -> tuple[Course, tokenised.Lesson]:
    """Weights and tokenised examples, for all alike; the course lacks its places."""
    model, rows, heldout = folder / "model", folder / "rows.jsonl", folder / "heldout.jsonl"
    models.save(model, asked.model)
    taught, kept = tokenised.SOURCES[asked.data]
    pool = folder / "pool.jsonl"
    tokenised.write(taught, model, pool, count=tokenised.POOL, max_length=asked.max_length)
    tokenised.write(kept, model, heldout, count=asked.heldout, max_length=asked.max_length)
    lesson = tokenised.pick(pool, rows, updates=asked.updates, batch=asked.batch)
    course = Course(
        model=str(model),
        rows=str(rows),
        heldout=str(heldout),
        order=tokenised.order(lesson.examples, lesson.examples, seed=0),
        batch=asked.batch,
        precision=asked.precision,
        out=str(folder / "out"),
        answer=str(folder / "answer.json"),
    )
    return course, lesson


def rounds(asked: argparse.Namespace, against: Sequence[Contestant], course: Course, lesson: tokenised.Lesson) -> Found:
    """A B C, A B C, and so on, before each round the machine's own rate. The models of the first round are scored."""
    found = Found()
    folder = Path(course.out).parent
    sizes = [asked.batch * lesson.tokens, lesson.tokens, asked.batch * lesson.supervised]
    words = tuple(str(max(1, size // lesson.examples)) for size in sizes)
    threads = {"OMP_NUM_THREADS": str(asked.threads)}
    for number in range(asked.repeats):
        found.rates.append(_told(Contestant("products", "products", options=words, environment=threads), course))
        said = ", ".join(f"{kind} {rate / 1e12:.3g}" for kind, rate in found.rates[-1].items())
        print(f"round {number + 1}, matrix products in 1e12 operations a second: {said}", file=sys.stderr, flush=True)
        for contestant in against:
            place = folder / f"{contestant.name}-{number}"
            own = replace(course, out=str(place), answer=f"{place}.json")
            execute(contestant, own, watched=False)
            made = Trained.read(Path(own.answer))
            found.runs.setdefault(contestant.name, []).append(made)
            one = pace(made, asked.threads)
            print(
                f"round {number + 1}, {contestant.name}: {one.tokens:,.0f} tokens/s, {one.seconds:.2f} s an update, "
                f"begun after {one.begun:.1f} s, {report.size(one.peak)}, CPU share {one.share:.2f}",
                file=sys.stderr,
                flush=True,
            )
            if number == 0:
                scorer = Contestant("heldout", "heldout", options=(made.weights,), environment=threads)
                found.heldout[contestant.name] = float(_told(scorer, course)["loss"])
            shutil.rmtree(place)
    return found


def _told(contestant: Contestant, course: Course) -> dict[str, float]:
    """The numbers that a helper answers with."""
    execute(contestant, course, watched=False)
    made: dict[str, float] = json.loads(Path(course.answer).read_text(encoding="utf-8"))
    return made


if __name__ == "__main__":
    sys.exit(main())
