"""What suites of questions gave: records as in records.py, with intervals, paired tests and where every answer lies."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True, kw_only=True)
class Confusion:
    """Which label was taken for which. A row of `counts` is a right label, a column what was said."""

    labels: tuple[str, ...]
    """The labels, and as the last column whatever is none."""
    counts: tuple[tuple[int, ...], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class SuiteReport:
    """What one model scored on one suite of questions."""

    suite: str
    model: str
    """Who was asked: a folder or a hub id; of a run `base` or `result`, or `step-00000120` while it trains."""
    step: int | None
    """After how many updates of a run; None for a model of no run."""
    form: Literal["answer", "choice", "text", "task"]
    """What was asked: to say something, to prefer a text, how likely a text is; or a task of lm-eval."""
    questions: int
    scores: dict[str, float]
    """By metric."""
    intervals: dict[str, tuple[float, float]]
    """By metric: percentile bootstrap over questions, of `resamples` draws, covering `confidence`. A score of lm-eval
    that is no mean has none.
    """
    better: dict[str, Literal["higher", "lower"]]
    """By metric: which way is up."""
    confidence: float
    resamples: int
    counts: dict[str, int]
    """`tokens` that were scored or said; `too_long`: questions that the context has no room to answer; `cut`: prompts
    whose beginning had to go; `unfinished`: answers that ended at the limit and not at a stop token.
    """
    confusion: Confusion | None
    asked: Literal["chat", "plain"]
    """Whether questions went through the chat template."""
    fingerprint: str
    """Of the questions and how they were asked: reports with the same one may be compared."""
    items: str | None
    """The file with a line for every question, beside this record; None if it was not kept."""
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Compared:
    """One metric of two models over the same questions."""

    difference: float
    """The first model's score minus the second's."""
    interval: tuple[float, float]
    """Of the difference: percentile bootstrap of pairs."""
    p: float
    """How likely a difference as large is where the two are alike; two-sided."""
    test: Literal["McNemar exact", "permutation of pairs"]
    questions: int
    higher: int
    """Questions on which the first model's own number is the higher one."""
    lower: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SuiteComparison:
    """Two models on one suite, metric by metric."""

    suite: str
    one: str
    other: str
    metrics: dict[str, Compared]


@dataclass(frozen=True, slots=True, kw_only=True)
class Wins:
    """How often one of two models was preferred on the same prompts, by a person or by a judge's command."""

    suite: str
    """Empty where choices of several suites were counted together."""
    one: str
    other: str
    prompts: int
    """Those that were judged."""
    one_wins: int
    other_wins: int
    ties: int
    swayed: int
    """Ties because the judge answered otherwise when the answers changed places."""
    shares: dict[str, float]
    """By model: its part of the prompts that are no ties; empty where all are."""
    intervals: dict[str, tuple[float, float]]
    """By model: Wilson's score interval of that part, covering `confidence`."""
    p: float
    """How likely a fair coin splits the prompts that are no ties at least so unevenly; exact, two-sided."""
    confidence: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Examination:
    """What `fulltune evaluate --suite` gives: a report for each model and suite, and the paired tests of two models."""

    reports: tuple[SuiteReport, ...]
    comparisons: tuple[SuiteComparison, ...]
    judged: tuple[Wins, ...] = ()
    """What a judge's command preferred, suite by suite."""
    folder: str | None
    """Where records and answers lie; None if they were not kept."""
