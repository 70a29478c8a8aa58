"""One trial of a sweep in a process of its own: trains a run, says how it is going, and is told whether to go on.

What is to be done comes as a line of JSON on standard input. Evaluations go out on standard output, each answered by
`go` or `stop`, and at the end what came of it. It ends in order, and can be taken up again, when nobody answers.
"""

import json
import os
import signal
import sys
from collections.abc import Mapping
from typing import IO, Any

from fulltune import stages
from fulltune.base import stop
from fulltune.base.errors import FulltuneError, Interrupted, disk_error, told
from fulltune.base.log import speak

GO = "go"
"""What is answered where a trial may go on; all else ends it."""


class Asking:
    """Hears the journal of the run. It changes nothing: it asks for an end as anybody may, by a signal."""

    def __init__(self, said: IO[str], answers: IO[str], number: signal.Signals) -> None:
        self._said, self._answers, self._signal = said, answers, number
        self._parent, self._stops = os.getppid(), False

    def hear(self, kind: str, values: Mapping[str, Any]) -> None:
        """A line of the journal."""
        if os.getppid() != self._parent:  # killed: whoever goes on with the sweep wants this run's folder
            self._end()
        elif kind in ("evaluation", "suite") and not self._stops:
            try:
                say(self._said, {"kind": kind, **values})
            except BrokenPipeError:
                self._end()
                return
            if self._answers.readline().strip() != GO:
                self._end()

    def _end(self) -> None:
        if not self._stops and stop.asked() is None:  # a second signal would end it at once
            self._stops = True
            os.kill(os.getpid(), self._signal)


def say(out: IO[str], values: Mapping[str, Any]) -> None:
    """One line of JSON."""
    out.write(json.dumps(values) + "\n")
    out.flush()


def main() -> int:
    """Returns the exit code of the run."""
    said = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what libraries print is no answer
    speak()
    job = json.loads(sys.stdin.readline())
    asking = Asking(said, sys.stdin, signal.Signals[job["signal"]])
    try:
        stages.train(job["recipe"], out=job["out"], sinks=[asking], **job["values"])
    except FulltuneError as fault:
        return _failed(said, fault)
    except OSError as fault:
        return _failed(said, disk_error(fault))
    say(said, {"kind": "done"})
    return 0


def _failed(said: IO[str], fault: FulltuneError) -> int:
    sys.stderr.write(f"{fault}\n")
    if not isinstance(fault, Interrupted):
        say(said, {"kind": "fault", **told(fault)})
    return fault.exit_code


if __name__ == "__main__":
    raise SystemExit(main())
