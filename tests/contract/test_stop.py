"""A preparation that a signal ends keeps its parts, and the same command ends with the bytes of an undisturbed one."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

import fulltune
from tests import tiny
from tests.conftest import ROOT

SCRIPT = """
import os, signal, sys
from pathlib import Path
from fulltune import cli
from fulltune.data import gather, pool, work
gather.ROWS = 4
sent, real, settle, done = sys.argv[1], work.Worker.__call__, pool._settle, []
def worker(self, task):
    real(self, task)
    done.append(task)
    if sent != "twice" and len(done) == 4:
        os.killpg(0, signal.SIGINT) if sent == "group" else os.kill(os.getpid(), signal.SIGTERM)
def settled(pending):
    left = settle(pending)  # so the other processes are at work by now
    for _ in range(2):
        os.kill(os.getpid(), signal.SIGTERM)
    return left
work.Worker.__call__ = worker
if sent == "twice":
    pool._settle = settled
sys.argv = ["fulltune", "prepare", "recipe.json", "--out", "run"]
sys.exit(cli.main())
"""


def prepare(folder: Path, sent: str) -> subprocess.Popen[str]:
    """Ends itself by signals in the middle; leads a group of processes of its own."""
    command = [sys.executable, "-c", SCRIPT, sent]
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}/src"}
    return subprocess.Popen(
        command, cwd=folder, stderr=subprocess.PIPE, text=True, start_new_session=True, env=environment
    )


def asked(folder: Path, llama: Path, **data: Any) -> dict[str, Any]:
    rows = tiny.jsonl(folder / "rows.jsonl", tiny.rows(60))
    values = tiny.recipe(llama, rows, data=data)
    (folder / "recipe.json").write_text(json.dumps(values))
    return values


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    ("processes", "sent", "name"), [(1, "one", "SIGTERM"), (2, "group", "SIGINT")], ids=["sigterm", "ctrl-c"]
)
def test_a_stopped_preparation_goes_on_and_ends_with_the_same_bytes(
    tmp_path: Path, llama: Path, monkeypatch: pytest.MonkeyPatch, processes: int, sent: str, name: str
) -> None:
    """Ctrl-C is sent to all processes, here while the workers still start; they must neither die of it nor complain."""
    recipe = asked(tmp_path, llama, processes=processes)
    with prepare(tmp_path, sent) as stopped:
        _, told = stopped.communicate(timeout=120)
    assert stopped.returncode == 75, told
    assert told.splitlines() == [
        "stopping at the next border; the same signal again leaves at once",
        f"error: stopped by {name}",
        "mend:  the same command goes on",
    ]
    (begun,) = (tmp_path / "run").iterdir()
    kept = {path.stat().st_ino for path in begun.glob("*/ids.bin")}
    assert 4 <= len(kept) < 15
    monkeypatch.setattr("fulltune.data.gather.ROWS", 4)
    facts = [fulltune.prepare(recipe, out=tmp_path / out, data={"processes": 1}) for out in ("run", "whole")]
    assert facts[0] == facts[1]
    assert contents(tmp_path / "run/data") == contents(tmp_path / "whole/data")
    assert kept <= {path.stat().st_ino for path in (tmp_path / "run/data/shards").glob("*/ids.bin")}, "none made twice"


@pytest.mark.slow
def test_a_second_signal_leaves_no_process_behind(tmp_path: Path, llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = asked(tmp_path, llama, processes=2)
    with prepare(tmp_path, "twice") as left:
        _, told = left.communicate(timeout=120)
    assert left.returncode == 128 + signal.SIGTERM, told
    assert (tmp_path / "run/.lock").exists()
    for _ in range(100):  # the kernel ends the workers; none waits for its next task forever
        try:
            os.killpg(left.pid, 0)
        except ProcessLookupError:
            break
        time.sleep(0.1)
    else:
        pytest.fail("workers are left")
    monkeypatch.setattr("fulltune.data.gather.ROWS", 4)
    assert fulltune.prepare(recipe, out=tmp_path / "run", data={"processes": 1}).kept == 60
    assert not (tmp_path / "run/.lock").exists()
