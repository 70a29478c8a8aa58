"""What a run's numbers mean, in words, by rules that are written here: gained, lost, overfitted or not."""

import math
import shlex
from collections.abc import Sequence
from dataclasses import dataclass

from fulltune.reporting.figures import change, number, percent
from fulltune.reporting.story import Evaluation, Story

_FALLING = ("loss", "perplexity", "bits_per_byte", "kl", "ece", "brier", "error")
"""Last words of scores of which less is better, where a report does not say itself which way is up."""
_NOISE = 0.01
"""By so much of its lowest value held-out loss must grow before it is called growth."""
_KEPT, _LITTLE = 0.01, 0.05
"""Growth of retention loss (nats per token) up to which it is called kept, and a little."""
_SMALL, _WIDE = 0.10, 0.30
"""Gap between training and held-out loss, as a part of the latter, up to which it is small, and above which wide."""
_FLAT = 0.02
"""A gap below so many nats per token is small whatever part of the loss it is."""
_AVERAGES = "schedule_free_adamw"
"""An optimizer whose model is an average of the weights that it trains."""


@dataclass(frozen=True, slots=True)
class Score:
    """One score of the base and of the result."""

    name: str
    before: float | None
    after: float | None
    before_interval: tuple[float, float] | None
    after_interval: tuple[float, float] | None
    falls: bool
    """Whether less is better."""
    counted: int | None
    """Tokens or questions that it is over."""

    @property
    def better(self) -> bool | None:
        """Whether the result is better; None if that cannot be said, or they are equal."""
        if self.before is None or self.after is None or not math.isfinite(self.after - self.before):
            return None
        return None if self.after == self.before else (self.after < self.before) == self.falls

    @property
    def sure(self) -> bool | None:
        """Whether the intervals of both lie apart; None if they have none."""
        if self.before_interval is None or self.after_interval is None:
            return None
        low, high = sorted((self.before_interval, self.after_interval))
        return low[1] < high[0]


@dataclass(frozen=True, slots=True)
class Verdict:
    """A question to a run, its two figures, and the answer in words."""

    asked: str
    said: str
    """One word or two."""
    before: str = ""
    after: str = ""
    words: str = ""
    tone: str = ""
    """`good`, `bad` or nothing."""


def falls(name: str, told: str | None = None) -> bool:
    """Whether less of a score is better."""
    return told == "lower" if told else name.rpartition(".")[2].lower() in _FALLING


def scores(story: Story) -> list[Score]:
    """Every score of the base beside that of the result."""
    old, new = story.baseline, story.after
    made = []
    for name in story.scores:
        if not any(report and name in report.scores for report in (old, new)):
            continue
        told = next((report.better[name] for report in (new, old) if report and name in report.better), None)
        made.append(
            Score(
                name,
                old.scores.get(name) if old else None,
                new.scores.get(name) if new else None,
                old.intervals.get(name) if old else None,
                new.intervals.get(name) if new else None,
                falls(name, told),
                _counted(new or old, name),
            )
        )
    return made


def _counted(report: Evaluation | None, name: str) -> int | None:
    return report.counts.get(name, report.counts.get(name.rpartition(".")[0])) if report else None


def gained(story: Story) -> Verdict:
    """What the model learned: the loss of what it was not taught by."""
    asked = "What it learned"
    by_name = {score.name: score for score in scores(story)}
    for name, split in (("test.loss", "test data"), ("heldout.loss", "held-out data")):
        score = by_name.get(name)
        if score is not None and score.before is not None and score.after is not None:
            words = f"Loss on {split}, {change(score.before, score.after)}."
            if score.better is False:
                return Verdict(asked, "worse", number(score.before), number(score.after), words, "bad")
            if score.sure is False:
                words += " The intervals of both overlap."
            said = "better" if score.better else "unchanged"
            return Verdict(
                asked, said, number(score.before), number(score.after), words, "good" if score.better else ""
            )
    curve = story.curve("loss")
    if not curve:
        return Verdict(asked, "unknown", words="No update was made, and nothing was measured.")
    some = max(1, min(len(curve) // 10, 50))
    first, last = (math.fsum(y for _, y in part) / some for part in (curve[:some], curve[-some:]))
    words = (
        f"Nothing was held back, or not measured. This is training loss (means of {some} updates), which says how well"
        " the rows were learned, not whether anything else would be."
    )
    return Verdict(asked, "unproven", number(first), number(last), words)


def kept(story: Story) -> Verdict:
    """What the model lost: the loss of texts that it should not forget."""
    asked = "What it kept"
    score = next((score for score in scores(story) if score.name == "retention.loss"), None)
    if score is None:
        words = "Nothing says what the base could do before: there is no data.retention in the recipe."
        return Verdict(asked, "not measured", words=words)
    if score.before is None or score.after is None:
        return Verdict(asked, "unknown", words="Retention loss was not measured both before and after.")
    grown = score.after - score.before
    times = f", perplexity × {number(math.exp(grown))}" if abs(grown) < 50 else ""
    said, tone = (
        ("lost", "bad") if not grown <= _LITTLE else ("a little lost", "") if grown > _KEPT else ("kept", "good")
    )
    words = f"Loss on retention data, {change(score.before, score.after)}{times}."
    apart = story.after.scores.get("retention.kl") if story.after else None
    words += f" KL from the base there: {number(apart)} nats per token." if apart is not None else ""
    return Verdict(asked, said, number(score.before), number(score.after), words, tone)


def fitted(story: Story) -> Verdict:
    """Whether it overfitted: the gap between training and held-out loss, and where held-out loss began to grow."""
    asked = "Overfitting"
    held = [(int(step), loss) for step, loss in story.scored("heldout.loss") if math.isfinite(loss)]
    if not any(step > 0 for step, _ in held):
        return Verdict(asked, "unknown", words="No held-out loss was measured after training began.")
    best_step, best = min(held, key=lambda point: (point[1], point[0]))
    last_step, last = held[-1]
    gap = _gap(story, held)
    if best_step < last_step and last - best > _NOISE * abs(best):
        words = f"Held-out loss was lowest after update {best_step:,} and grew from there by {change(best, last)[1:]}. "
        chosen = story.result_step
        words += f"The result is of update {chosen:,}. " if chosen is not None else ""
        return Verdict(asked, f"from update {best_step:,}", number(best), number(last), words + gap[1], "bad")
    falling = len(held) > 1 and held[-2][1] - last > _NOISE * abs(last)
    if best_step < last_step:
        words = f"Held-out loss grew by less than {_NOISE:.0%} of its lowest value. "
    else:
        words = "Held-out loss never grew" + (" and was still falling at the end. " if falling else ". ")
    wide = gap[0] == "wide"
    said = "none seen, but the gap is wide" if wide else "none seen"
    return Verdict(asked, said, words=words + gap[1], tone="" if wide else "good")


def _gap(story: Story, held: Sequence[tuple[int, float]]) -> tuple[str, str]:
    """How far held-out loss lies above training loss where the result stands, as a word and a sentence."""
    chosen = story.result_step
    at, loss = next((point for point in reversed(held) if chosen in (None, point[0])), held[-1])
    before = max((step for step, _ in held if step < at), default=0)
    taught = [
        (value, weight)
        for step, value, weight in zip(
            story.steps, story.columns["loss"], story.columns["supervised_tokens"], strict=True
        )
        if before < step <= at and math.isfinite(value)
    ]
    weights = math.fsum(weight for _, weight in taught)
    if not weights > 0:
        return "", ""
    trained = math.fsum(value * weight for value, weight in taught) / weights
    gap = loss - trained
    share = gap / loss if loss > 0 else 0.0
    word = "small" if gap <= _FLAT or share <= _SMALL else "wide" if share > _WIDE else "moderate"
    sentence = f"Held-out loss is {number(loss)}, training loss over the updates before it {number(trained)}: "
    if gap <= 0:
        return "small", sentence + "no gap."
    if gap <= _FLAT:
        return word, sentence + f"a gap of {number(gap)}, too small to matter."
    return word, sentence + f"a {word} gap of {number(gap)}, {percent(share)} of held-out loss."


def cautions(story: Story) -> list[tuple[str, str]]:
    """What a reader must know before believing the verdict, and a command that helps, if there is one."""
    made: list[tuple[str, str]] = []
    splits = story.data.get("splits", {})
    names = set(story.scores)
    chosen = story.result_step
    tried = [report for report in story.evaluations if report.step > 0 and "heldout.loss" in report.scores]
    tested = bool(splits.get("test", {}).get("examples"))
    if chosen is not None and len(tried) > 1 and "test.loss" not in names:
        said = f"The result was chosen by held-out data out of {len(tried)} states, so its held-out loss flatters it."
        if tested:
            command = f"fulltune evaluate {shlex.quote(str(story.path))}"
            made.append((f"{said} data.test chose nothing; it was not measured yet:", command))
        else:
            made.append((f"{said} No data.test was kept apart for a figure that nothing was chosen by.", ""))
    measured = {name for name in names if name.endswith(".loss")}
    if measured and not any(measured & report.intervals.keys() for report in story.evaluations):
        made.append(("Losses are over all tokens of a split and have no intervals.", ""))
    averages = ["ema" for used in story.pulls if used["use"] == "ema" and used["options"].get("result", True)]
    if (story.recipe.get("optim") or {}).get("name") == _AVERAGES:
        averages.append(_AVERAGES)
    for average in averages:
        said = (
            f"Held-out and retention losses are of the average of the weights ({average}), as the result is; training"
        )
        made.append((f"{said} loss is of the weights that move, so the gap between them says less.", ""))
    for kind, one, many in (
        ("warning", "update drew a warning", "updates drew a warning"),
        ("rollback", "time the run went back to a checkpoint", "times the run went back to a checkpoint"),
        ("change", "setting changed while the run was stopped", "settings changed while the run was stopped"),
    ):
        if count := sum(line["kind"] == kind for line in story.odd):
            made.append((f"{count:,} {one if count == 1 else many}; see Plan and actual.", ""))
    return made
