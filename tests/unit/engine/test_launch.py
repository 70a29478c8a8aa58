"""Which process this is, as launchers say it; who failed first; what one tells the others."""

import dataclasses
import json
import os
import signal
import socket
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch._C._distributed_c10d import HashStore

from fulltune.base import stop
from fulltune.base.errors import DataError, Fault, Interrupted, RankError, RecipeError
from fulltune.base.place import Place, place
from fulltune.engine import agent, crew, launch
from fulltune.engine.crew import Several

TORCHRUN = {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4"}
SRUN = {
    "SLURM_PROCID": "5",
    "SLURM_STEP_NUM_TASKS": "8",
    "SLURM_STEP_NUM_NODES": "2",
    "SLURM_LOCALID": "1",
    "SLURM_STEP_NODELIST": "gpu[03-04]",
    "SLURM_JOB_ID": "31415",
}


@pytest.mark.parametrize("said", [TORCHRUN, SRUN])
def test_a_launcher_says_who_this_is(monkeypatch: pytest.MonkeyPatch, said: dict[str, str]) -> None:
    for name, value in said.items():
        monkeypatch.setenv(name, value)
    assert place() == Place(rank=5, size=8, local=1, here=4, launched=True)
    with pytest.raises(RecipeError, match="one of 8 processes"):
        launch.world()


@pytest.mark.parametrize(
    ("listed", "first"),
    [
        ("gpu03", "gpu03"),
        ("gpu[03-07,12],big1", "gpu03"),
        ("gpu[7]", "gpu7"),
        ("one,two[1-3]", "one"),
        ("rack[1-2]-node", "rack1-node"),
    ],
)
def test_the_first_host_of_slurms_short_form(listed: str, first: str) -> None:
    assert launch.first_host(listed) == first


def test_ranks_of_srun_meet_on_the_first_host(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    monkeypatch.delenv("MASTER_PORT", raising=False)
    for name, value in SRUN.items():
        monkeypatch.setenv(name, value)
    launch._meet_by_slurm()
    assert (os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"]) == ("gpu03", "31415")
    monkeypatch.delenv("MASTER_ADDR")
    monkeypatch.delenv("MASTER_PORT")


def test_a_port_to_meet_at_that_is_taken_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        said = {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        for name, value in said.items():
            monkeypatch.setenv(name, value)
        with pytest.raises(RankError, match=f"port {port}.*another program"), launch.joined(5.0):
            pytest.fail("they cannot meet")


class Listener(Several):
    """A rank without a group: only what goes through the store."""

    def __init__(self, rank: int, store: HashStore) -> None:
        self.rank, self.size = rank, 2
        self._store, self._told, self.patience = store, 0, 3600.0


def test_what_the_first_finds_or_fails_of_all_hear() -> None:
    store = HashStore()
    first, second = Listener(0, store), Listener(1, store)
    try:
        assert first.told(lambda: {"rows": 3}) == {"rows": 3}
        assert second.told(lambda: pytest.fail("the first alone does it")) == {"rows": 3}

        def refuse() -> None:
            raise DataError(faults=[Fault("no rows", "a.jsonl", "add some", "empty"), Fault("no file", "b.jsonl")])

        with pytest.raises(DataError):
            first.told(refuse)
        with pytest.raises(DataError) as heard:
            second.told(lambda: None)
        assert heard.value.faults == (Fault("no rows", "a.jsonl", "add some", "empty"), Fault("no file", "b.jsonl"))

        def fail() -> None:
            raise KeyError("a bug")

        with pytest.raises(KeyError):
            first.told(fail)
        with pytest.raises(RankError, match="KeyError"):
            second.told(lambda: None)
    finally:
        first.rest()


def test_one_that_waits_and_is_asked_to_stop_leaves_at_last(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first is asked too and says so; if it is gone, nobody ever will."""
    monkeypatch.setattr(stop, "_asked", "SIGTERM")
    monkeypatch.setattr(crew, "_GRACE", 0.1)
    second = Listener(1, HashStore())
    try:
        with pytest.raises(Interrupted, match="another process worked for all"):
            second.told(lambda: None)
    finally:
        second.rest()


def test_a_collective_that_fails_is_a_rank_that_was_lost() -> None:
    fault = crew.lost(RuntimeError("Connection closed by peer\nmore"))
    assert fault.exit_code == 8
    assert "Connection closed by peer" in str(fault) and "more" not in str(fault)


def test_one_process_meets_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    with launch.joined(5) as meeting:
        assert (meeting.world.rank, meeting.world.size) == (0, 1)
        assert not dist.is_initialized()
        value = torch.ones(2)
        assert meeting.crew.sum(value) is value
    with launch.joined(5, grouped=True):
        assert dist.get_world_size() == 1, "fully_shard needs a group, be it of one"
    assert not dist.is_initialized()


def test_what_cannot_be_told_is_a_fault_for_all() -> None:
    """A value that is no JSON: nobody waits for an answer that never comes."""
    store = HashStore()
    first, second = Listener(0, store), Listener(1, store)
    with pytest.raises(TypeError):
        first.told(lambda: {1, 2})
    with pytest.raises(RankError, match="not JSON serializable"):
        second.told(lambda: None)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # torch leaves its logs open
def test_an_agent_without_an_end_to_its_patience(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """torch 2.11 has no such option."""
    real = dataclasses.fields
    less = [field for field in real(agent.LaunchConfig) if field.name != "shutdown_timeout"]
    monkeypatch.setattr(agent.dataclasses, "fields", lambda kind: less if kind is agent.LaunchConfig else real(kind))
    given: list[Any] = []
    monkeypatch.setattr(agent, "launch_agent", lambda config, *_: given.append(config))
    assert agent.run_agent(1, ["true"], tmp_path / "logs", patience=7) is None
    assert given[0].shutdown_timeout == 30
    monkeypatch.undo()
    monkeypatch.setattr(agent, "launch_agent", lambda config, *_: given.append(config))
    assert agent.run_agent(1, ["true"], tmp_path / "logs", patience=7) is None
    assert given[1].shutdown_timeout == 7


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # torch leaves its logs open
def test_the_agent_names_who_failed_first(tmp_path: Path) -> None:
    """Rank 1 fails by itself; rank 0 is then ended by the agent, which is no failure of its own."""
    code = (
        "import os, sys, time\n"
        "if os.environ['RANK'] == '1': print('the cause', file=sys.stderr); sys.exit(5)\n"
        "time.sleep(60)\n"
    )
    failed = agent.run_agent(2, [sys.executable, "-c", code], tmp_path / "logs", patience=5)
    assert failed is not None
    assert (failed.rank, failed.code, failed.said) == (1, 5, "the cause")


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # torch leaves its logs open
def test_the_agent_says_nothing_of_success(tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGTERM)
    code = "import json, os; print(json.dumps([os.environ['RANK'], os.environ['WORLD_SIZE']]))"
    assert agent.run_agent(2, [sys.executable, "-c", code], tmp_path / "logs", patience=5) is None
    said = sorted(json.loads(path.read_text()) for path in tmp_path.rglob("stdout.log"))
    assert said == [["0", "2"], ["1", "2"]]
    assert signal.getsignal(signal.SIGTERM) is before, "it leaves no handlers behind"
