"""Tasks of EleutherAI's lm-evaluation-harness as suites: its prompts and metrics, our answers and likelihoods."""

import logging
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch.distributed import DistError

from fulltune.base.errors import DataError, FulltuneError, RecipeError
from fulltune.base.files import fingerprint, sha256, write_record
from fulltune.base.results import SuiteReport
from fulltune.engine.room import out_of_memory
from fulltune.evaluation.answers import Items
from fulltune.evaluation.asking import Examinee, Spelling
from fulltune.evaluation.intervals import bootstrap
from fulltune.evaluation.scoring import Found, Scored, Scorer
from fulltune.evaluation.speaking import Decoding, Speaker
from fulltune.evaluation.suites import LONGEST, SEED, Examined, pieces_of, writing_lines

_OFFLINE = ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE")
_TOKENS = 256
"""Of an answer, where a task does not say; as lm-eval."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """A task file of lm-eval, with its data beside it or wherever it says. What it holds is believed, code too."""

    name: str
    path: Path
    limit: int | None
    resamples: int
    confidence: float

    def check(self) -> int:
        """0, since how many questions there are is known when they are asked. RecipeError if lm-eval is not there."""
        if not self.path.is_file():
            raise DataError("there is no such task file", where=str(self.path), mend="check the suite's `data`")
        try:
            import lm_eval  # noqa: F401
        except ImportError as fault:
            raise RecipeError(
                "a task of lm-eval needs the package lm-eval",
                where=str(self.path),
                mend="pip install 'fulltune[lm-eval]'",
            ) from fault
        return 0

    def examine(self, asked: Examinee, *, model: str, step: int | None, folder: Path | None) -> Examined:
        """Have lm-eval put the task to the model. Scores are its own; an interval stands beside each that is a mean."""
        begun = time.monotonic()
        found, name = _asked_by_harness(self, asked)
        samples, totals = found["samples"][name], _totals(found["results"][name])
        up: dict[str, bool] = found["higher_is_better"][name]
        items = {key: column for key in totals if (column := _column(samples, key)) is not None}
        drawn: dict[str, Any] = {"resamples": self.resamples, "confidence": self.confidence}
        with writing_lines(None if folder is None else folder / f"{self.name}.jsonl") as write:
            for number, sample in enumerate(samples):
                write(_line(sample, {key: float(column[number, 0]) for key, column in items.items()}))
        report = SuiteReport(
            suite=self.name,
            model=model,
            step=step,
            form="task",
            questions=len(samples),
            scores=totals,
            intervals={key: bootstrap(items[key], _mean, seed=SEED, **drawn) for key in items},
            better={key: "higher" if up[key.partition(",")[0]] else "lower" for key in totals},
            counts={},
            confusion=None,
            asked="plain",
            fingerprint=fingerprint([sha256(self.path), self.limit, [sample["doc_hash"] for sample in samples]]),
            items=None if folder is None else f"{self.name}.jsonl",
            seconds=time.monotonic() - begun,
            **drawn,
        )
        if folder is not None:
            write_record(folder / f"{self.name}.json", report)
        return Examined(report, items, dict.fromkeys(items, _mean))


def _mean(items: Items) -> float:
    return float(items[:, 0].mean())


def _totals(results: Mapping[str, Any]) -> dict[str, float]:
    """`acc,none` as `acc`: the task's scores, without the name of the filter that changes nothing."""
    numbers = {key: value for key, value in results.items() if "," in key and isinstance(value, float | int)}
    scores = {key: float(value) for key, value in numbers.items() if "_stderr" not in key}
    return {key.removesuffix(",none"): value for key, value in scores.items()}


def _column(samples: Sequence[Mapping[str, Any]], name: str) -> Items | None:
    """A metric's own number of each question; None if it has none, as of a total that is no mean."""
    values = [sample.get(name) for sample in samples]
    if not all(isinstance(value, float | int) for value in values):
        return None
    return np.array(values, dtype=np.float64)[:, None]


def _line(sample: Mapping[str, Any], scores: Mapping[str, float]) -> dict[str, Any]:
    (context, *_), *_others = sample["arguments"]
    return {
        "id": str(sample["doc_id"]),
        "question": context,
        "choices": [rest[0] for _, *rest in sample["arguments"]] if len(sample["arguments"]) > 1 else None,
        "right": [str(sample["target"])],
        "answer": str(sample["filtered_resps"][0]) if len(sample["arguments"]) == 1 else "",
        "logprobs": [one[0] for one in sample["filtered_resps"]] if len(sample["arguments"]) > 1 else None,
        "scores": dict(scores),
        "numbers": {name: [value] for name, value in scores.items()},
    }


def _asked_by_harness(task: Task, asked: Examinee) -> tuple[dict[str, Any], str]:
    """lm-eval's results, and what it calls the task."""
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    with _quiet():
        manager = TaskManager(include_path=str(task.path.parent), include_defaults=False)
        names = [name for name in manager.all_tasks if Path(manager.task_index[name].yaml_path or "") == task.path]
        if len(names) != 1:
            raise DataError("no task is defined here", where=str(task.path), mend="write `task: NAME` into it")
        try:
            found: dict[str, Any] = simple_evaluate(
                model=_model(asked), tasks=names, task_manager=manager, limit=task.limit, bootstrap_iters=0
            )
        except FulltuneError:
            raise
        except Exception as fault:  # a task is foreign code, and names foreign data
            if out_of_memory(fault) or isinstance(fault, DistError):
                raise
            told = f"{type(fault).__name__}: {' '.join(str(fault).split())[:300]}"
            raise DataError(
                f"lm-eval cannot do this task: {told}", where=str(task.path), mend="mend the task"
            ) from fault
    if names[0] not in found["samples"]:
        raise DataError("this is a group of tasks", where=str(task.path), mend="name the file of one task")
    return found, names[0]


@contextmanager
def _quiet() -> Iterator[None]:
    """In here nothing is fetched, and lm-eval says only what is wrong."""
    before = {name: os.environ.get(name) for name in _OFFLINE}
    logger = logging.getLogger("lm_eval")
    level = logger.level
    os.environ.update(dict.fromkeys(_OFFLINE, "1"))
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
        for name, value in before.items():
            os.environ.pop(name)
            if value is not None:
                os.environ[name] = value


def _model(asked: Examinee) -> Any:
    """Our model as lm-eval wants one: it is asked in batches, as of our own suites."""
    from lm_eval.api.model import LM

    spelling = Spelling(asked, "plain")
    scorer = Scorer(asked)
    limit = asked.context or LONGEST

    class Asked(LM):  # type: ignore[misc]  # lm-eval has no types
        """Requests are (context, continuation), (text,) or (context, how to generate)."""

        def loglikelihood(self, requests: Any) -> list[tuple[float, bool]]:
            rows = [_behind(spelling, request.args[0], request.args[1], limit) for request in requests]
            found = _summed(scorer, rows)
            return [(one.logprob, one.hits == one.tokens) for one in found]

        def loglikelihood_rolling(self, requests: Any) -> list[float]:
            found = _summed(scorer, [_behind(spelling, "", request.args[0], limit) for request in requests])
            return [one.logprob for one in found]

        def generate_until(self, requests: Any) -> list[str]:
            said = []
            for number, request in enumerate(requests):
                said.append((number, request.args[0], _decoding(request.args[1])))
            answers: dict[int, str] = {}
            for how in dict.fromkeys(how for _, _, how in said):
                some = [(number, context) for number, context, other in said if other == how]
                prompts = [spelling.prompt((), context, "lm-eval") for _, context in some]
                spoken = Speaker(asked, how)(prompts, [str(number) for number, _ in some])
                answers.update({number: one.text for (number, _), one in zip(some, spoken, strict=True)})
            return [answers[number] for number in range(len(said))]

    return Asked()


def _behind(spelling: Spelling, context: str, continuation: str, limit: int) -> list[Scored]:
    prompt = spelling.prompt((), context, "lm-eval") if context else []
    ids, start = spelling.followed(prompt, context, "", continuation)
    return pieces_of(ids, start, limit)[0]


def _summed(scorer: Scorer, rows: Sequence[Sequence[Scored]]) -> list[Found]:
    found = iter(scorer([piece for pieces in rows for piece in pieces]))
    sums = []
    for pieces in rows:
        parts = [next(found) for _ in pieces]
        columns = zip(*((one.logprob, one.tokens, one.hits) for one in parts), strict=True)
        sums.append(Found(*map(sum, columns)))
    return sums


def _decoding(wanted: Mapping[str, Any]) -> Decoding:
    until = wanted.get("until", [])
    drawn = wanted.get("do_sample", False) and wanted.get("temperature", 1.0) > 0
    return Decoding(
        tokens=int(wanted.get("max_gen_toks", _TOKENS)),
        stop_texts=tuple([until] if isinstance(until, str) else until),
        temperature=float(wanted.get("temperature", 1.0)) if drawn else 0.0,
    )
