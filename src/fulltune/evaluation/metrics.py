"""METRICS: what a suite may be scored by. Every one keeps what each question adds to it."""

import inspect
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from fulltune.base.errors import RecipeError
from fulltune.base.table import Table
from fulltune.evaluation import labels, likelihoods, texts
from fulltune.evaluation.answers import Kind, Metric
from fulltune.evaluation.overlap import Bleu, ChrF

MakeMetric = Callable[..., Metric]

METRICS: Table[MakeMetric] = Table(
    "metric",
    {
        "exact_match": texts.exact_match,
        "token_f1": texts.token_f1,
        "rouge_l": texts.rouge_l,
        "bleu": Bleu,
        "chrf": ChrF,
        "numeric": texts.numeric,
        "contains": texts.contains,
        "regex": texts.regex,
        "json_valid": texts.json_valid,
        "json_schema": texts.json_schema,
        "accuracy": labels.accuracy,
        "macro_f1": partial(labels.F1, "macro"),
        "micro_f1": partial(labels.F1, "micro"),
        "choice": partial(likelihoods.Choice, "sum"),
        "choice_by_length": partial(likelihoods.Choice, "characters"),
        "choice_by_tokens": partial(likelihoods.Choice, "tokens"),
        "calibration": likelihoods.Calibration,
        "loss": likelihoods.loss,
        "perplexity": likelihoods.perplexity,
        "bits_per_byte": likelihoods.bits_per_byte,
        "token_accuracy": likelihoods.token_accuracy,
        "last_words": likelihoods.LastWords,
    },
)

DEFAULTS: Mapping[Kind, tuple[str, ...]] = {
    "answer": ("exact_match",),
    "choice": ("choice", "choice_by_length"),
    "text": ("loss", "perplexity", "bits_per_byte", "token_accuracy"),
}
"""What a suite that names no metric is scored by."""


def metric(name: str, options: Mapping[str, Any], kind: Kind, *, where: str) -> Metric:
    """The metric of this name, made with its options; RecipeError if it takes others, or reads other answers."""
    make = METRICS.find(name, where=where)
    try:
        inspect.signature(make).bind(**options)
    except TypeError as fault:
        takes = ", ".join(inspect.signature(make).parameters) or "none"
        raise RecipeError(f"{name}: {fault}", where=where, mend=f"its options: {takes}") from fault
    try:
        made = make(**options)
    except (TypeError, ValueError) as fault:  # of an option's value
        raise RecipeError(f"{name}: {fault}", where=where, mend="check its options") from fault
    if kind not in made.for_kinds:
        fitting = ", ".join(other for other in METRICS if other in _FOR[kind])
        raise RecipeError(
            f"{name} reads suites of kind {' and '.join(made.for_kinds)}, and this one is of kind {kind}",
            where=where,
            mend=f"one of {fitting}",
        )
    return made


_TEXTS = ("exact_match", "token_f1", "rouge_l", "numeric", "contains", "regex", "json_valid", "json_schema")
_LABELS = ("accuracy", "macro_f1", "micro_f1")
_FOR: Mapping[Kind, tuple[str, ...]] = {
    "answer": (*_TEXTS, *_LABELS, "bleu", "chrf"),
    "choice": ("choice", "choice_by_length", "choice_by_tokens", "calibration", *_TEXTS, *_LABELS),
    "text": (*DEFAULTS["text"], "last_words"),
}
"""What is named to who asked for another."""
