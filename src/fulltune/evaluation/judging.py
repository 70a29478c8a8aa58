"""A judge's command: which of two answers is better, asked in both orders, since judges like the first or the last.

The command is started without a shell, once. It reads a JSON object a line from standard input (`prompt`, `reference`,
`a`, `b`) and writes `a`, `b` or `tie` for each on a line of standard output, in the same order.
"""

import json
import os
import shlex
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import NoReturn

from fulltune.base.errors import DataError, RecipeError
from fulltune.base.secrets import masked, masked_command
from fulltune.base.visible import visible
from fulltune.evaluation.pairs import Pair
from fulltune.evaluation.wins import Verdict

_SAID = ("a", "b", "tie")
_LOOK_EVERY = 0.2
"""Seconds between two looks for a signal."""
_SHOWN = 400
"""Characters that are shown of what a command said."""
_WHERE = "--judge"


@dataclass(frozen=True, slots=True)
class Judged:
    """One pair: what was said with the first model's answer as `a`, and with it as `b`, and what that means."""

    pair: Pair
    said: tuple[str, str]
    verdict: Verdict

    @property
    def swayed(self) -> bool:
        """Whether the places of the answers decided."""
        straight, turned = self.said
        return (straight, turned) not in (("a", "b"), ("b", "a"), ("tie", "tie"))


@dataclass(frozen=True, slots=True)
class Judge:
    """A command and how long it may take."""

    arguments: tuple[str, ...]
    seconds: float

    @classmethod
    def of(cls, command: str, seconds: float) -> "Judge":
        """RecipeError if this is no command."""
        try:
            arguments = tuple(shlex.split(command))
        except ValueError as fault:
            raise RecipeError(f"not a command: {fault}", where=_WHERE, mend="close the quotes") from fault
        if not arguments:
            raise RecipeError("the judge's command is empty", where=_WHERE, mend='such as --judge "python judge.py"')
        return cls(arguments, seconds)

    def __str__(self) -> str:
        return visible(masked_command(self.arguments))

    def __call__(self, pairs: Sequence[Pair], check: Callable[[], None]) -> list[Judged]:
        """A verdict for each pair: the answer that was preferred in both orders, else a tie; of equal answers unasked.

        DataError if the command fails, takes too long, or answers anything else. `check` is called while it works.
        """
        apart = [pair for pair in pairs if pair.one != pair.other]
        straight = [_line(pair, pair.one, pair.other) for pair in apart]
        turned = [_line(pair, pair.other, pair.one) for pair in apart]
        said = self._answers([*straight, *turned], check) if apart else []
        both = iter(zip(said[: len(apart)], said[len(apart) :], strict=True))
        orders = [("tie", "tie") if pair.one == pair.other else next(both) for pair in pairs]
        return [Judged(pair, one, _meant(one)) for pair, one in zip(pairs, orders, strict=True)]

    def _answers(self, lines: Sequence[str], check: Callable[[], None]) -> list[str]:
        written, code, faults = self._run("".join(lines), check)
        if code != 0:
            self._fail(f"ended with {code}: {_short(faults) or 'nothing was said on standard error'}")
        said = [line.strip() for line in written.splitlines()]
        for number, one in enumerate(said, 1):
            if one not in _SAID:
                self._fail(f"wrote {_short(one)!r} in line {number}, which is not a, b or tie")
        if len(said) != len(lines):
            self._fail(f"wrote {len(said):,} lines for {len(lines):,} questions")
        return said

    def _run(self, text: str, check: Callable[[], None]) -> tuple[str, int, str]:
        """What the command wrote, its exit code, and what it said on standard error."""
        end = time.monotonic() + self.seconds
        with self._started() as process:
            given: str | None = text
            while True:
                try:
                    out, faults = process.communicate(given, timeout=_LOOK_EVERY)
                except subprocess.TimeoutExpired:
                    given = None
                    check()
                    if time.monotonic() > end:
                        self._fail(f"gave no whole answer within {self.seconds:g} seconds", mend="--judge-timeout N")
                except UnicodeDecodeError:
                    self._fail("wrote what is not UTF-8")
                else:
                    return out, process.returncode, faults

    @contextmanager
    def _started(self) -> Iterator[subprocess.Popen[str]]:
        """The command with its own children in a group, of which nothing stays however this ends."""
        pipe = subprocess.PIPE
        try:
            process = subprocess.Popen(  # noqa: S603  the user gave this command, and no shell reads it
                self.arguments, stdin=pipe, stdout=pipe, stderr=pipe, encoding="utf-8", start_new_session=True
            )
        except OSError as fault:
            raise RecipeError(
                f"the judge's command cannot be started: {fault.strerror}", where=f"{_WHERE} {self}", mend="check it"
            ) from fault
        try:
            yield process
        finally:
            with suppress(ProcessLookupError):  # all of them ended by themselves
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            for stream in (process.stdin, process.stdout, process.stderr):
                if stream is not None:
                    with suppress(BrokenPipeError):  # what was not written to it is of no use any more
                        stream.close()

    def _fail(self, what: str, *, mend: str = "try the command by hand with one line; nothing was kept") -> NoReturn:
        raise DataError(f"the judge {what}", where=f"{_WHERE} {self}", mend=mend)


def _line(pair: Pair, a: str, b: str) -> str:
    asked = {"prompt": pair.prompt, "reference": list(pair.right) or None, "a": a, "b": b}
    return json.dumps(asked, ensure_ascii=True) + "\n"


def _meant(said: tuple[str, str]) -> Verdict:
    return {("a", "b"): "one", ("b", "a"): "other"}.get(said, "tie")  # type: ignore[return-value]


def _short(text: str) -> str:
    shown = " ".join(visible(masked(text)).split())
    return shown if len(shown) <= _SHOWN else f"{shown[:_SHOWN]}..."
