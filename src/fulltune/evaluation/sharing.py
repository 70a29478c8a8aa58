"""Questions shared among the processes of a run: each answers some, and all know every answer."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import astuple
from typing import Any

from fulltune.base import stop
from fulltune.base.errors import FulltuneError, Interrupted, again, told
from fulltune.engine.crew import Crew
from fulltune.evaluation.answers import Answer, Likelihood
from fulltune.evaluation.questions import Question

Answering = Callable[[Sequence[Question], Sequence[int], Counter[str]], list[Answer]]
"""Gives the answers to questions at these places of their file, and counts what is odd about them."""


def shared(answering: Answering, crew: Crew) -> Answering:
    """The same answers, of which each process gives every n-th.

    What one fails of all fail of; Interrupted on all where a signal came to one.
    """

    def act(window: Sequence[Question], places: Sequence[int], counts: Counter[str]) -> list[Answer]:
        own = slice(crew.rank, None, crew.size)
        mine: Counter[str] = Counter()
        said: list[Any] | None = None
        failed: dict[str, Any] | None = None
        try:
            said = [_plain(answer) for answer in answering(window[own], places[own], mine)] if window[own] else []
        except Interrupted:
            mine.clear()  # the others are told below, since they wait for this process
        except FulltuneError as fault:  # of a question that only this process has
            said, failed = [], told(fault)
        stop.check_all(lambda asked: crew.any(asked or said is None))
        answers: list[Answer | None] = [None] * len(window)
        for rank, (given, counted, fell) in enumerate(crew.gathered((said, dict(mine), failed))):
            if fell is not None:
                raise again(fell)
            answers[rank :: crew.size] = [_answer(values) for values in given or ()]
            counts.update(counted)
        return [answer for answer in answers if answer is not None]

    return act


def _plain(answer: Answer) -> list[Any]:
    return [answer.text, [astuple(one) for one in answer.likelihoods]]


def _answer(values: Sequence[Any]) -> Answer:
    text, likelihoods = values
    return Answer(text, tuple(Likelihood(*one) for one in likelihoods))
