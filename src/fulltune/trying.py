"""Runs the trials of a sweep, each in a process of its own, and ends those that are not worth going on with."""

import json
import math
import os
import selectors
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fulltune.base import stop
from fulltune.base.errors import (
    CheckpointError,
    DataError,
    DiskError,
    FulltuneError,
    Interrupted,
    LockedError,
    RankError,
    RecipeError,
    again,
)
from fulltune.base.lock import locked
from fulltune.base.log import LOGGER
from fulltune.base.processors import cores
from fulltune.standings import said
from fulltune.sweeping.study import Study

_LOOK = 0.5
"""Seconds between two looks whether a signal came."""
_ATTEMPTS = 2
"""A trial that was killed is taken up again once; memory that ran out will run out again."""
_OF_ALL = (DiskError, LockedError, CheckpointError)
"""What would come of every other trial too: the sweep ends."""
_OF_THE_RECIPE = (RecipeError, DataError)
"""The same, as long as no trial has shown that others may do better."""
_QUESTIONS = 8
"""More than a trial may ask between a signal and its end."""
_PATIENCE = 60.0
"""Seconds in which a trial whose sweep was killed has seen that, and left its folder."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What one process is to do."""

    values: Mapping[str, Any]
    """Fields of the recipe, with what the sweep itself changes."""
    told: Mapping[str, Any]
    """Those of them that are varied, for people."""
    folder: Path
    updates: Callable[[], int]
    """How many there will be; asked after the run began."""
    number: signal.Signals
    """The signal that ends the run in order."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Bench:
    """What all trials share."""

    recipe: str | Mapping[str, Any]
    by: str
    prunes: bool
    jobs: int
    by_share: bool
    """Whether trials are compared at the same part of their runs, and not evaluation by evaluation."""
    job: Callable[[int], Job]
    """Makes a trial ready to run."""
    score: Callable[[int], float | None]
    """Of the result of a trial."""
    tell: Callable[[], None]
    """Writes down how the sweep stands."""


@dataclass(slots=True, kw_only=True)
class _Running:
    """A trial and its process."""

    number: int
    job: Job
    process: subprocess.Popen[bytes]
    slot: int
    rest: bytes = b""
    evaluations: int = 0
    fault: FulltuneError | None = None
    done: bool = False
    pruned: str = ""

    def lines(self) -> Iterator[dict[str, Any]] | None:
        """What it says now; None when it says nothing any more."""
        assert self.process.stdout is not None
        read = os.read(self.process.stdout.fileno(), 1 << 16)
        if not read:
            return None
        *whole, self.rest = (self.rest + read).split(b"\n")
        return iter([json.loads(line) for line in whole])

    def answer(self, word: str) -> None:
        """`go` or `stop`. One that was killed meanwhile needs none: its end is seen next."""
        try:
            _say(self.process, word)
        except BrokenPipeError:
            LOGGER.info(f"trial {self.number} ended before it was answered")


@dataclass(slots=True)
class Trying:
    """All trials up to a budget, so many at a time."""

    bench: Bench
    study: Study
    running: dict[int, _Running] = field(default_factory=dict)
    attempts: Counter[int] = field(default_factory=Counter)
    succeeded: bool = False

    def __call__(self, budget: int) -> None:
        """Interrupted by a signal, after what runs has ended in order; the same goes on with it."""
        states = list(self.study.states())
        waiting = [number for number, state, _, _ in states if state == "open"]
        self.succeeded = any(state in ("done", "pruned") for _, state, _, _ in states)
        with selectors.DefaultSelector() as selector:
            try:
                while True:
                    stop.check()
                    while len(self.running) < self.bench.jobs:
                        number = waiting.pop(0) if waiting else self.study.next(budget)
                        if number is None:
                            break
                        self._start(number, selector)
                    if not self.running:
                        return
                    for key, _ in selector.select(_LOOK):
                        trial = self.running[key.fd]
                        if (lines := trial.lines()) is not None:
                            self._hear(trial, lines)
                            continue
                        selector.unregister(key.fd)
                        del self.running[key.fd]
                        waiting += self._ended(trial)
                        self.bench.tell()
            finally:
                self._end_all()

    def _start(self, number: int, selector: selectors.BaseSelector) -> None:
        job = self.bench.job(number)
        if job.folder.exists():
            _wait_for(job.folder)
        log = job.folder.parent.parent / "logs" / f"{job.folder.name}.log"
        log.parent.mkdir(exist_ok=True)
        slot = min(set(range(self.bench.jobs)) - {trial.slot for trial in self.running.values()})
        process = launch(log, shares(self.bench.jobs, slot))
        self.attempts[number] += 1
        trial = _Running(number=number, job=job, process=process, slot=slot)
        asked = {"recipe": self.bench.recipe, "values": job.values, "out": str(job.folder), "signal": job.number.name}
        assert process.stdout is not None
        self.running[process.stdout.fileno()] = trial
        selector.register(process.stdout, selectors.EVENT_READ)
        trial.answer(json.dumps(asked))
        LOGGER.info(f"trial {number}: {said(job.told)}")

    def _hear(self, trial: _Running, lines: Iterator[dict[str, Any]]) -> None:
        for line in lines:
            match line["kind"]:
                case "evaluation":
                    trial.answer("go" if self._goes_on(trial, line) else "stop")
                case "suite":
                    trial.answer("go")
                case "fault":
                    trial.fault = again(line)
                case "done":
                    trial.done = True

    def _goes_on(self, trial: _Running, line: Mapping[str, Any]) -> bool:
        step, score = int(line["step"]), float(line["scores"].get(self.bench.by, math.nan))
        if step == 0 or math.isnan(score):
            return True
        share = step / trial.job.updates()
        trial.evaluations += 1
        LOGGER.info(f"trial {trial.number}: {self.bench.by} {score:.4f} at {min(share, 1):.0%}")
        if not self.bench.prunes or math.isinf(score):
            return True
        ends = self.study.hear(trial.number, round(100 * share) if self.bench.by_share else trial.evaluations, score)
        if ends and share < 1:
            trial.pruned = f"{self.bench.by} {score:.4f} at {share:.0%}, behind the others there"
        return not trial.pruned

    def _ended(self, trial: _Running) -> list[int]:
        """Note what came of a trial; it is among the numbers that are returned if it is to be taken up again."""
        code, fault = trial.process.wait(), trial.fault
        _close(trial.process)
        if isinstance(fault, _OF_ALL) or (isinstance(fault, _OF_THE_RECIPE) and not self.succeeded):
            raise fault
        score = self.bench.score(trial.number) if trial.done else None
        if score is not None and math.isfinite(score):
            self.study.done(trial.number, score)
            self.succeeded = True
            LOGGER.info(f"trial {trial.number} is done: {self.bench.by} {score:.4f}")
            return []
        if trial.pruned and (code < 0 or code == Interrupted.exit_code):
            self.study.pruned(trial.number, trial.pruned)
            self.succeeded = True
            LOGGER.info(f"trial {trial.number} was ended early: {trial.pruned}")
            return []
        killed = code < 0 or code in (Interrupted.exit_code, RankError.exit_code)
        if killed and self.attempts[trial.number] < _ATTEMPTS:
            LOGGER.warning(f"trial {trial.number} {_how(code)}; it is taken up again")
            return [trial.number]
        reason = fault.faults[0].what if fault is not None else _how(code) if not trial.done else _LACKS
        self.study.failed(trial.number, f"{reason} (exit code {code})" if code > 0 else reason)
        LOGGER.warning(f"trial {trial.number} failed: {reason}")
        return []

    def _end_all(self) -> None:
        """Ask what still runs for an end in order, and wait; what it saved is gone on with."""
        for trial in self.running.values():
            trial.process.send_signal(trial.job.number)
            trial.answer("\n".join(["go"] * _QUESTIONS))  # who waits for an answer hears no signal
        for trial in self.running.values():
            trial.process.wait()
            _close(trial.process)
        self.running.clear()


_LACKS = "the score that trials are ranked by was not measured"


def launch(log: Path, variables: Mapping[str, str]) -> subprocess.Popen[bytes]:
    """A process that makes one trial (trial.py); what it has to say besides goes to a file."""
    with log.open("ab") as told:
        return subprocess.Popen(
            [sys.executable, "-m", "fulltune.trial"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=told,
            env={**os.environ, **variables},
            start_new_session=True,  # Ctrl-C is for the sweep, which ends its trials itself
        )


def shares(jobs: int, slot: int) -> dict[str, str]:
    """Variables by which one of several processes takes its part of cores and GPUs."""
    if jobs == 1:
        return {}
    have = int(os.environ.get("OMP_NUM_THREADS") or cores())
    made = {"OMP_NUM_THREADS": str(max(1, have // jobs))}
    devices = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", _devices()).split(",") if name]
    if devices:
        mine = devices[slot::jobs] or [devices[slot % len(devices)]]
        made["CUDA_VISIBLE_DEVICES"] = ",".join(mine)
    return made


def _devices() -> str:
    """All GPUs, by their numbers."""
    import torch

    return ",".join(map(str, range(torch.cuda.device_count()))) if torch.cuda.is_available() else ""


def _how(code: int) -> str:
    return f"was ended by signal {-code}" if code < 0 else f"ended with exit code {code}; its log says why"


def _say(process: subprocess.Popen[bytes], word: str) -> None:
    assert process.stdin is not None
    process.stdin.write(word.encode() + b"\n")
    process.stdin.flush()


def _close(process: subprocess.Popen[bytes]) -> None:
    for pipe in (process.stdin, process.stdout):
        if pipe is not None and not pipe.closed:
            pipe.close()


def _wait_for(folder: Path) -> None:
    """Until a trial of a sweep that was killed has seen that and left; LockedError if it does not."""
    until = time.monotonic() + _PATIENCE
    while True:
        try:
            with locked(folder):
                return
        except LockedError:
            if time.monotonic() > until:
                raise
            time.sleep(_LOOK)
