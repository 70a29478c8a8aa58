"""What a person sees while a run goes on: a live line on a terminal, now and then a plain line elsewhere."""

import os
import time
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

_PLAIN_SECONDS = 10.0
"""Between two plain lines; a log file of a long run stays readable."""
_ROWS = 5
"""Rows that a warning names here; the journal has them all."""
_WINDOW = 20
"""Updates over which the rate of tokens is averaged."""


class ProgressLine:
    """A sink of the journal. Close it at the end, so that the terminal is left in order."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._recent: deque[tuple[int, float]] = deque(maxlen=_WINDOW)
        self._updates = 0
        self._here = False
        """Whether the run is trained by this process, whose memory can be told."""
        self._spoken = -_PLAIN_SECONDS
        self._bar: Progress | None = None
        self._task: TaskID | None = None

    def hear(self, kind: str, values: Mapping[str, Any]) -> None:
        """Show one line of the journal."""
        match kind:
            case "start":
                self._updates = int(values["updates"])
                self._here = values["pid"] == os.getpid()
                self._begin(int(values.get("resumed_at", 0)))
            case "step":
                self._step(values)
            case "evaluation":
                losses = {name: score for name, score in values["scores"].items() if name.endswith(".loss")}
                shown = "  ".join(f"{name} {float(score):.4f}" for name, score in losses.items())
                self._say(f"after {values['step']:>6} updates: {shown}")
            case "warning" | "rollback":
                places = ", ".join([f"update {values['step']}", *values.get("rows", ())[:_ROWS]])
                self._say(f"{kind}: {values['what']} ({places})")
            case "end":
                self.close()

    def close(self) -> None:
        """Take the live line away."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def _begin(self, done: int) -> None:
        if not self._console.is_terminal:
            return
        columns = (TextColumn("{task.completed}/{task.total}"), BarColumn(), TextColumn("{task.description}"))
        self._bar = Progress(*columns, TimeRemainingColumn(), console=self._console, transient=True)
        self._task = self._bar.add_task("", total=self._updates, completed=done)
        self._bar.start()

    def _step(self, values: Mapping[str, Any]) -> None:
        self._recent.append((int(values["tokens"]), float(values["seconds"])))
        tokens, seconds = (sum(column) for column in zip(*self._recent, strict=True))
        text = f"loss {float(values['loss']):.4f}  lr {values['lr']:.2e}  {tokens / seconds:,.0f} tokens/s"
        text += f"  {_memory()}" if self._here else ""
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=values["step"], description=text)
            return
        now = time.monotonic()
        if now - self._spoken >= _PLAIN_SECONDS or values["step"] == self._updates:
            self._spoken = now
            left = (self._updates - int(values["step"])) * seconds / len(self._recent)
            self._say(f"update {values['step']}/{self._updates}  {text}  {_duration(left)} left")

    def _say(self, text: str) -> None:
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)


def _memory() -> str:
    if torch.cuda.is_available():
        return f"{torch.cuda.memory_allocated() / 2**30:.1f} GiB"
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return f"{pages * 4096 / 2**30:.1f} GiB"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
