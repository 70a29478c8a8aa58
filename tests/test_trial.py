"""The process of a trial asks whether to go on, and ends in order, by one signal, when it is told to or left alone."""

import io
import json
import os
import signal
from collections.abc import Iterator

import pytest

from fulltune.base import stop
from fulltune.trial import Asking
from fulltune.trying import shares

EVALUATION = {"step": 2, "scores": {"heldout.loss": 1.5}}


@pytest.fixture
def heard() -> Iterator[list[int]]:
    """Signals that came; two of them would end a process at once."""
    came: list[int] = []
    before = signal.signal(signal.SIGUSR2, lambda number, _: came.append(number))
    yield came
    signal.signal(signal.SIGUSR2, before)


def asking(answers: str) -> tuple[Asking, io.StringIO]:
    said = io.StringIO()
    return Asking(said, io.StringIO(answers), signal.SIGUSR2), said


def test_it_says_what_was_measured_and_goes_on_if_it_may(heard: list[int]) -> None:
    one, said = asking("go\ngo\n")
    one.hear("step", {"step": 1, "loss": 2.0})
    one.hear("evaluation", EVALUATION)
    one.hear("evaluation", {**EVALUATION, "step": 4})
    assert [json.loads(line)["step"] for line in said.getvalue().splitlines()] == [2, 4]
    assert heard == []


@pytest.mark.parametrize("answers", ["stop\n", ""], ids=["told", "left alone"])
def test_one_signal_ends_it(heard: list[int], answers: str) -> None:
    one, said = asking(answers)
    one.hear("evaluation", EVALUATION)
    one.hear("evaluation", EVALUATION)
    assert heard == [signal.SIGUSR2]
    assert len(said.getvalue().splitlines()) == 1


def test_who_was_asked_to_stop_already_sends_itself_no_second_signal() -> None:
    """The second would end it at once, and what it has learned would not be saved."""
    one, _ = asking("")
    with stop.listening(("SIGUSR2",)):
        os.kill(os.getpid(), signal.SIGUSR2)
        one.hear("evaluation", EVALUATION)
        assert stop.asked() == "SIGUSR2"


def test_it_sees_that_its_sweep_was_killed(heard: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    one, said = asking("go\n")
    parent = os.getppid()  # 1 where whoever started the tests has ended
    monkeypatch.setattr(os, "getppid", lambda: parent + 1)
    one.hear("step", {"step": 1})
    assert heard == [signal.SIGUSR2]
    assert said.getvalue() == ""


def test_trials_at_a_time_divide_cores_and_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "8")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,6")
    assert shares(1, 0) == {}
    assert shares(2, 0) == {"OMP_NUM_THREADS": "4", "CUDA_VISIBLE_DEVICES": "4,6"}
    assert shares(2, 1) == {"OMP_NUM_THREADS": "4", "CUDA_VISIBLE_DEVICES": "5"}
    assert shares(4, 3)["CUDA_VISIBLE_DEVICES"] == "4", "more trials than GPUs share them"
