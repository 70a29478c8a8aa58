"""Signals that ask for an end: the first is polled, a second ends the process, and nothing of it stays behind."""

import os
import signal
import subprocess
import sys
import threading

import pytest

from fulltune.base import stop
from fulltune.base.errors import Interrupted
from tests.conftest import ROOT


def send(name: str) -> None:
    os.kill(os.getpid(), signal.Signals[name])


@pytest.mark.parametrize("name", stop.DEFAULT)
def test_the_first_signal_is_polled_and_forgotten_at_the_end(name: str) -> None:
    before = signal.getsignal(signal.Signals[name])
    with pytest.raises(Interrupted, match=f"stopped by {name}") as caught, stop.listening():
        stop.check()
        assert stop.asked() is None
        send(name)
        assert stop.asked() == name
        stop.check()
    assert caught.value.exit_code == 75
    assert "same command" in caught.value.faults[0].mend
    assert signal.getsignal(signal.Signals[name]) is before
    stop.check()


def test_only_the_signals_that_were_named_are_heard() -> None:
    with stop.listening(["SIGUSR2"]):
        with pytest.raises(KeyboardInterrupt):
            send("SIGINT")
        send("SIGUSR2")
        assert stop.asked() == "SIGUSR2"


def test_an_inner_listener_changes_nothing() -> None:
    with stop.listening():
        heard = signal.getsignal(signal.SIGTERM)
        with stop.listening(["SIGUSR2"]):
            assert signal.getsignal(signal.SIGUSR2) is signal.SIG_DFL
            send("SIGTERM")
        assert stop.asked() == "SIGTERM", "the flag is that of the outer one"
        assert signal.getsignal(signal.SIGTERM) is heard
    assert stop.asked() is None


def test_a_thread_does_not_listen() -> None:
    before, seen = signal.getsignal(signal.SIGTERM), []

    def work() -> None:
        with stop.listening():
            seen.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [before]


SCRIPT = """
import os, signal, sys
from fulltune.base import stop
with stop.listening():
    try:
        for name in sys.argv[1:]:
            os.kill(os.getpid(), signal.Signals[name])
            print(stop.asked(), flush=True)
    finally:
        print("tidied up", flush=True)
"""


@pytest.mark.parametrize(
    ("sent", "heard", "code"),
    [
        ("SIGTERM SIGTERM", ["SIGTERM"], 143),
        ("SIGINT SIGINT", ["SIGINT"], 130),
        ("SIGTERM SIGINT", ["SIGTERM"], 130),
        ("SIGUSR1 SIGUSR1", ["SIGUSR1"], 138),
        ("SIGUSR1 SIGTERM SIGTERM", ["SIGUSR1", "SIGTERM"], 143),
    ],
)
def test_a_second_signal_leaves_at_once(sent: str, heard: list[str], code: int) -> None:
    """But for SIGTERM after SIGUSR1: Slurm sends both for one end, and what is being saved has until then."""
    done = subprocess.run([sys.executable, "-c", SCRIPT, *sent.split()], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == code
    assert done.stdout.split("\n") == [*heard, ""], "not even what tidies up gets its turn"
    assert done.stderr.splitlines() == ["stopping at the next border; the same signal again leaves at once"] * len(
        heard
    )
