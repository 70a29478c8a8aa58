"""One run and hundreds of faults: `python -m tests.faults.soak --faults 200 --seed 0`; its end is that of a calm run.

Every fault is followed by the same command. What is damaged is the newest of at least two whole checkpoints: with all
of them gone there is nothing to go on from, and exit code 6 is right.
"""

import argparse
import errno
import os
import platform
import random
import re
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import date
from pathlib import Path
from typing import Any

from fulltune.base.errors import CheckpointError
from fulltune.training import manifest
from tests.faults.calls import FORWARD, STEP, UPDATE
from tests.faults.forkserver import ROOT, Child, Ended, ForkServer
from tests.faults.ground import Ground, checkpoints, lines, require

PAGE = ROOT / "docs" / "reliability.md"
BEGIN, END = "<!-- soak -->", "<!-- /soak -->"
UPDATES = 2000
"""Two hundred faults, ten updates between two of them, do not reach the end; what is left is made undisturbed."""
FAR = 12
"""Most updates that a process makes before a signal befalls it; a checkpoint is written every 5."""


class Soak:
    """The run that is disturbed, and the faults by their names."""

    def __init__(self, ground: Ground, run: Path, server: ForkServer, rng: random.Random) -> None:
        self._ground, self._run, self._server, self._rng = ground, run, server, rng
        self.counts: Counter[str] = Counter()
        self.codes: Counter[int] = Counter()
        self._kinds: dict[str, Callable[[], Ended]] = {
            "kill": self._kill,
            "kill at a write": self._kill_at_a_write,
            "kill from outside": self._kill_from_outside,
            "term": self._term,
            "stop/cont": self._stop_and_go_on,
            "truncate": self._truncate,
            "flip": self._flip,
            "disk full": self._full,
        }

    def fault(self) -> bool:
        """Let one befall the run; False once the run is done."""
        kind = self._rng.choice(list(self._kinds))
        ended = self._kinds[kind]()
        self.codes[ended.returncode] += 1
        self.counts[kind] += 1
        return not self.done

    @property
    def done(self) -> bool:
        """Whether the result and the record stand."""
        return (self._run / "record.json").exists()

    def go_on(self, *faults: dict[str, Any]) -> Ended:
        """The same command."""
        return self._server.run(self._ground.job(self._run, *faults), timeout=300)

    def _befall(self, act: str) -> dict[str, Any]:
        target = self._rng.choice((STEP, FORWARD, UPDATE))
        most = FAR * (2 if target == FORWARD else 1)
        return {"do": "befall", "target": target, "act": act, "calls": [self._rng.randint(1, most)]}

    def _boundary(self, act: str, *, lasting: bool = False) -> dict[str, Any]:
        at = self._rng.randint(1, 250)
        return {"folder": str(self._run), "at": at, "act": act, "lasting": lasting}

    def _kill(self) -> Ended:
        return require(self.go_on(self._befall("KILL")), -signal.SIGKILL, 0)

    def _kill_at_a_write(self) -> Ended:
        return require(self.go_on(self._boundary("kill")), -signal.SIGKILL, 0)

    def _kill_from_outside(self) -> Ended:
        child = self._server.start(self._ground.job(self._run))
        time.sleep(self._rng.uniform(0.05, 1.5))
        child.signal(signal.SIGKILL)
        return require(child.wait(), -signal.SIGKILL, 0)

    def _term(self) -> Ended:
        return require(self.go_on(self._befall(self._rng.choice(("TERM", "INT", "USR1")))), 75, 0)

    def _stop_and_go_on(self) -> Ended:
        """Stands still for a while, goes on, and is killed later."""
        kill = {"do": "befall", "target": STEP, "act": "KILL", "calls": [FAR]}
        child = self._server.start(self._ground.job(self._run, self._befall("STOP"), kill))
        while not child.ended:
            if _stands_still(child):
                child.signal(signal.SIGCONT)
            time.sleep(0.01)
        return require(child.wait(), -signal.SIGKILL, 0)

    def _truncate(self) -> Ended:
        def damage(path: Path) -> None:
            os.truncate(path, self._rng.randrange(max(path.stat().st_size, 1)))

        return self._damaged(damage)

    def _flip(self) -> Ended:
        def damage(path: Path) -> None:
            content = bytearray(path.read_bytes())
            content[self._rng.randrange(len(content))] ^= 1 << self._rng.randrange(8)
            path.write_bytes(content)

        return self._damaged(damage)

    def _damaged(self, damage: Callable[[Path], None]) -> Ended:
        """Damage the newest checkpoint if there is an older one to go on from; then the command, killed later."""
        whole = list(self._whole())
        if len(whole) >= 2:
            damage(self._rng.choice(sorted(path for path in whole[-1].iterdir() if path.stat().st_size)))
        return self._kill()

    def _whole(self) -> Iterator[Path]:
        for step in checkpoints(self._run):
            try:
                manifest.verify(step)
            except CheckpointError as fault:
                sys.stderr.write(f"{fault.faults[0].what}: {step.name}\n")
            else:
                yield step

    def _full(self) -> Ended:
        return require(self.go_on(self._boundary(errno.errorcode[errno.ENOSPC], lasting=True)), 7, 0)


def _stands_still(child: Child) -> bool:
    try:
        return Path(f"/proc/{child.pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"
    except OSError:
        return False


def soak(folder: Path, faults: int, seed: int) -> str:
    """Disturb one run so often; AssertionError unless it ends as the calm one does. Returns a row for the page."""
    begun = time.monotonic()
    with ForkServer() as server:
        changes = {
            "train": {"steps": UPDATES},
            "evaluate": {"every": 50, "samples": 1},
            "checkpoint": {"every": 5, "keep": 3},
        }
        ground = Ground.make(folder / "ground", server, **changes)
        run = ground.copy(folder / "run")
        disturbed = Soak(ground, run, server, random.Random(seed))
        for number in range(1, faults + 1):
            if not disturbed.fault():
                raise AssertionError(f"the run was over after {number} faults; it needs more updates")
            at = lines(run, "step") if (run / "journal.jsonl").exists() else []
            sys.stderr.write(f"\r{number} of {faults} faults, update {at[-1]['step'] if at else 0} of {UPDATES} ")
        require(disturbed.go_on(), 0)
        ground.require_same_end(run)
    kinds = ", ".join(f"{kind} {count}" for kind, count in sorted(disturbed.counts.items()))
    codes = ", ".join(f"{code}: {count}" for code, count in sorted(disturbed.codes.items()))
    minutes = (time.monotonic() - begun) / 60
    machine = f"{platform.machine()}, {len(os.sched_getaffinity(0))} cores"
    return (
        f"| {date.today()} | {machine} | {faults} ({kinds}) | {codes} | {UPDATES} updates, {minutes:.1f} min | {seed} "
        "| the same bits |"
    )


def main() -> None:
    """Parse, soak, and write the row into the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--faults", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--write", action="store_true", help="put the result into docs/reliability.md")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="soak-") as folder:
        row = soak(Path(folder), asked.faults, asked.seed)
    print("\n" + row)
    if asked.write:
        page = PAGE.read_text(encoding="utf-8")
        head = "| date | machine | faults | exit codes | run | seed | its end |\n|---|---|---|---|---|---|---|\n"
        made = re.sub(f"{BEGIN}.*{END}", f"{BEGIN}\n{head}{row}\n{END}", page, flags=re.DOTALL)
        PAGE.write_text(made, encoding="utf-8")


if __name__ == "__main__":
    main()
