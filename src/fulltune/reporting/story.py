"""What a run folder tells: every card and line that is there, whatever is missing, also of a run that was killed."""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fulltune.recipe.tree import parse

COLUMNS = ("loss", "lr", "grad_norm", "tokens", "supervised_tokens", "seconds")
"""What the journal says of every update."""


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Scores by name after so many updates."""

    step: int
    scores: Mapping[str, float]
    counts: Mapping[str, int] = field(default_factory=dict)
    """Tokens by split, questions by suite."""
    intervals: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    """Of those scores that have one."""
    better: Mapping[str, str] = field(default_factory=dict)
    """`higher` or `lower`, of those scores that say so."""


@dataclass(frozen=True, slots=True)
class Story:
    """A run as its folder tells it. A card that is not there is empty, and `missing` says so."""

    path: Path
    recipe_text: str
    recipe: Mapping[str, Any]
    """The same as values; secrets are masked in it."""
    data: Mapping[str, Any]
    plan: Mapping[str, Any]
    record: Mapping[str, Any]
    blend: Mapping[str, Any]
    """Mixtures of its result with other models, if `fulltune blend` made any."""
    start: Mapping[str, Any]
    """The last line of the journal that says who trains, by what."""
    resumed: tuple[int, ...]
    """The updates at which the run went on after a stop."""
    steps: tuple[int, ...]
    columns: Mapping[str, tuple[float, ...]]
    """For each name of COLUMNS a number for each of `steps`."""
    evaluations: tuple[Evaluation, ...]
    answers: tuple[str, ...]
    """Before training."""
    odd: tuple[Mapping[str, Any], ...]
    """Lines of kind warning, rollback and change."""
    ended: bool
    missing: tuple[str, ...]
    """What is not in the folder, and why."""

    @property
    def name(self) -> str:
        """What the folder is called."""
        return self.path.resolve().name

    @property
    def base(self) -> str:
        """What the recipe calls the base: a hub id, or the name of a folder without those above it."""
        path = str((self.recipe.get("model") or {}).get("path") or "")
        return path.rstrip("/").rpartition("/")[2] if path.startswith("/") else path

    @property
    def pulls(self) -> list[Mapping[str, Any]]:
        """What held weights near their start, or averaged them, as the resolved recipe has it."""
        return list((self.recipe.get("optim") or {}).get("pulls") or [])

    @property
    def last(self) -> int:
        """The last update that was made and still counts."""
        return self.steps[-1] if self.steps else 0

    @property
    def result_step(self) -> int | None:
        """The update that the result is of; None if there is none."""
        chosen = self.record.get("result_step")
        return int(chosen) if chosen is not None else None

    @property
    def baseline(self) -> Evaluation | None:
        """What was measured before the first update."""
        return next((report for report in self.evaluations if report.step == 0), None)

    @property
    def after(self) -> Evaluation | None:
        """What was measured of the result; of a run without one, of its last state that was measured."""
        chosen = self.result_step
        reports = [report for report in self.evaluations if report.step > 0 and chosen in (None, report.step)]
        return reports[-1] if reports else None

    def curve(self, column: str) -> list[tuple[float, float]]:
        """(update, value) of what the journal says of every update."""
        return list(zip(self.steps, self.columns[column], strict=True))

    def scored(self, name: str) -> list[tuple[float, float]]:
        """(update, value) of a score."""
        return [(report.step, report.scores[name]) for report in self.evaluations if name in report.scores]

    @property
    def scores(self) -> list[str]:
        """Names of all scores, in the order in which they came up."""
        return list(dict.fromkeys(name for report in self.evaluations for name in report.scores))


def read_story(folder: Path) -> Story:
    """Read a run folder. Nothing in it is changed, and a line that a kill tore is left out."""
    missing: list[str] = []
    recipe = folder / "recipe.yaml"
    text = recipe.read_text(encoding="utf-8") if recipe.exists() else ""
    data, plan, record = (_card(folder / f"{name}.json", missing) for name in ("data", "plan", "record"))
    log = _Log()
    journal = folder / "journal.jsonl"
    if journal.exists():
        for line in _lines(journal, missing):
            log.take(line)
    else:
        missing.append("journal.jsonl: there is none, so training did not begin")
    reports = _with_suites(log, folder / "evaluations", record)
    return Story(
        path=folder,
        recipe_text=text,
        recipe=parse(text, str(recipe)).values,
        data=data,
        plan=plan,
        record=record,
        blend=_card(folder / "blend.json", missing) if (folder / "blend.json").exists() else {},
        start=log.start,
        resumed=tuple(log.resumed),
        steps=tuple(int(line["step"]) for line in log.steps),
        columns={name: tuple(_number(line.get(name, math.nan)) for line in log.steps) for name in COLUMNS},
        evaluations=tuple(reports),
        answers=tuple(log.answers),
        odd=tuple(log.odd),
        ended=log.ended,
        missing=tuple(missing),
    )


@dataclass(slots=True)
class _Log:
    """The journal, line by line; what was taken back by a rollback does not count."""

    start: dict[str, Any] = field(default_factory=dict)
    resumed: list[int] = field(default_factory=list)
    steps: list[dict[str, Any]] = field(default_factory=list)
    evaluations: list[Evaluation] = field(default_factory=list)
    suites: list[dict[str, Any]] = field(default_factory=list)
    answers: list[str] = field(default_factory=list)
    odd: list[dict[str, Any]] = field(default_factory=list)
    ended: bool = False

    def take(self, line: dict[str, Any]) -> None:
        """One line."""
        match line.get("kind"):
            case "start":
                self.start = {**self.start, **line}
                self.resumed += [int(line["resumed_at"])] if "resumed_at" in line else []
                self.ended = False
            case "step":
                self._back(int(line["step"]) - 1)
                self.steps.append(line)
            case "evaluation":
                self.evaluations = [report for report in self.evaluations if report.step != line["step"]]
                self.evaluations.append(_evaluation(line))
                self.answers = self.answers or [str(answer) for answer in line.get("answers", ())]
            case "suite":
                self.suites.append(line)
            case "rollback":
                self.odd.append(line)
                self._back(int(line.get("to", line["step"])))
            case "warning" | "change":
                self.odd.append(line)
            case "end":
                self.ended = True

    def _back(self, step: int) -> None:
        """Forget what was done after an update."""
        while self.steps and self.steps[-1]["step"] > step:
            self.steps.pop()
        while self.evaluations and self.evaluations[-1].step > step:
            self.evaluations.pop()
        self.suites = [line for line in self.suites if line["step"] <= step]


def _card(path: Path, missing: list[str]) -> dict[str, Any]:
    if not path.exists():
        missing.append(f"{path.name}: there is none")
        return {}
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as fault:
        missing.append(f"{path.name}: it cannot be read ({fault})")
        return {}
    if isinstance(values, dict):
        return values
    missing.append(f"{path.name}: it holds no JSON object")
    return {}


def _lines(path: Path, missing: list[str]) -> Iterator[dict[str, Any]]:
    with path.open(encoding="utf-8", errors="replace") as lines:
        for number, line in enumerate(lines, 1):
            try:
                values = json.loads(line)
            except ValueError:
                torn = "" if line.endswith("\n") else ": the run was killed while it was written"
                missing.append(f"journal.jsonl:{number}: the line is not whole{torn}")
                continue
            if isinstance(values, dict):
                yield values


def _evaluation(line: Mapping[str, Any], before: str = "") -> Evaluation:
    """A report of scores, with intervals wherever it has pairs of numbers under the names of scores."""
    scores = {f"{before}{name}": _number(score) for name, score in line["scores"].items()}
    intervals: dict[str, tuple[float, float]] = {}
    better: dict[str, str] = {}
    for values in line.values():
        for name, value in values.items() if isinstance(values, Mapping) else ():
            if f"{before}{name}" not in scores:
                continue
            if isinstance(value, Sequence) and len(value) == 2 and not isinstance(value, str):
                intervals[f"{before}{name}"] = (_number(value[0]), _number(value[1]))
            elif value in ("higher", "lower"):
                better[f"{before}{name}"] = str(value)
    counts = {str(name): int(count) for name, count in line.get("counts", {}).items()}
    return Evaluation(int(line.get("step") or 0), scores, {} if before else counts, intervals, better)


def _with_suites(log: _Log, folder: Path, record: Mapping[str, Any]) -> list[Evaluation]:
    """With what suites of questions gave, by the journal and by records in `evaluations/`.

    Of the base they stand before the first update, of the result at its own; models of other runs are left out.
    """
    last = log.steps[-1]["step"] if log.steps else 0
    found = {report.step: report for report in log.evaluations}
    cards = [_card(path, []) for path in sorted(folder.rglob("*.json"))] if folder.is_dir() else []
    for values in [*cards, *log.suites]:
        if not isinstance(values.get("scores"), dict) or not values.get("suite"):
            continue
        places = {"base": 0, "result": record.get("result_step")}
        step = places.get(str(values.get("model")), values.get("step"))
        if step is None or step > last:
            continue
        suite = _evaluation(values, f"{values['suite']}.")
        old = found.get(step, Evaluation(step, {}))
        found[step] = Evaluation(
            step,
            {**old.scores, **suite.scores},
            {**old.counts, str(values["suite"]): int(values.get("questions", 0))},
            {**old.intervals, **suite.intervals},
            {**old.better, **suite.better},
        )
    return [found[step] for step in sorted(found)]


def _number(value: Any) -> float:
    """A number, also one that stands there by its name."""
    try:
        return float(value)
    except (TypeError, ValueError):
        return math.nan
