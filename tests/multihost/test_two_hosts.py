"""Two hosts meet by torchrun's rendezvous, train one model in shards, lose one of them; by our own they go on.

Each host is a network namespace; a cable (veth) joins the two, and no other network is there.
"""

import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

import fulltune
from fulltune.training.journal import read
from tests import tiny
from tests.conftest import ROOT

PORT = 29471
UPDATES = 12

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@dataclass(frozen=True)
class Host:
    """A namespace, its end of the cable, and its address."""

    name: str
    end: str
    address: str


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, text=True)


@pytest.fixture
def hosts() -> Iterator[list[Host]]:
    tag = secrets.token_hex(3)
    made = [Host(f"ft{tag}{n}", f"v{tag}{n}", f"10.97.0.{n}") for n in (1, 2)]
    if shutil.which("ip") is None:
        pytest.skip("there is no `ip` command to make network namespaces with")
    try:
        for host in made:
            ip("netns", "add", host.name)
        ip(
            "link",
            "add",
            made[0].end,
            "netns",
            made[0].name,
            "type",
            "veth",
            "peer",
            made[1].end,
            "netns",
            made[1].name,
        )
        for host in made:
            ip("-n", host.name, "addr", "add", f"{host.address}/24", "dev", host.end)
            ip("-n", host.name, "link", "set", host.end, "up")
            ip("-n", host.name, "link", "set", "lo", "up")
    except subprocess.CalledProcessError as fault:
        remove(made)
        pytest.skip(f"network namespaces are not allowed here: {fault.stderr.strip()}")
    yield made
    remove(made)


def remove(hosts: list[Host]) -> None:
    for host in hosts:
        subprocess.run(["ip", "netns", "del", host.name], capture_output=True)


def torchrun(hosts: list[Host], number: int) -> list[str]:
    """One process on each host; the first has the rendezvous."""
    rendezvous = ["--rdzv-backend", "c10d", "--rdzv-endpoint", f"{hosts[0].address}:{PORT}"]
    rendezvous += ["--rdzv-id", "two-hosts", "--rdzv-conf", f"is_host={int(number == 0)}"]
    size = ["--nnodes", "2", "--nproc-per-node", "1", "--local-addr", hosts[number].address]
    return ["-m", "torch.distributed.run", *size, *rendezvous, "-m", "fulltune", "train"]


def ourselves(hosts: list[Host], number: int) -> list[str]:
    """The same without torchrun's words."""
    where = ["--nodes", "2", "--node-rank", str(number), "--rendezvous", f"{hosts[0].address}:{PORT}"]
    return ["-m", "fulltune", "train", *where]


Launch = Callable[[list[Host], int], list[str]]


def start(launch: Launch, hosts: list[Host], recipe: Path, run: Path) -> list[subprocess.Popen[str]]:
    """A run on each host."""
    started = []
    for number, host in enumerate(hosts):
        command = [sys.executable, *launch(hosts, number), str(recipe), "--out", str(run)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": host.end}
        started.append(
            subprocess.Popen(
                ["ip", "netns", "exec", host.name, *command],
                cwd=ROOT,
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
        )
    return started


def steps(run: Path) -> list[tuple[int, float]]:
    journal = run / "journal.jsonl"
    return [(line["step"], line["loss"]) for line in read(journal, "step")] if journal.exists() else []


def inside(host: Host) -> list[int]:
    found = subprocess.run(["ip", "netns", "pids", host.name], capture_output=True, text=True, check=True)
    return [int(pid) for pid in found.stdout.split()]


def test_a_host_is_lost_and_the_run_goes_on(tmp_path: Path, hosts: list[Host]) -> None:
    values = tiny.recipe(
        tiny.folder(tmp_path / "model"),
        tiny.jsonl(tmp_path / "rows.jsonl", tiny.rows(40)),
        data={"heldout": 0},
        train={"steps": UPDATES, "batch_examples": 5, "micro_examples": 2, "precision": "float32"},
        checkpoint={"every": 1, "keep": 3},
        evaluate={"samples": 0},
    )
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(json.dumps({**values, "engine": {"name": "fsdp2", "timeout": 20}}))
    recipe_alone = tmp_path / "alone.yaml"
    recipe_alone.write_text(json.dumps(values))
    fulltune.train(recipe_alone, out=tmp_path / "reference")

    run = tmp_path / "run"
    started = start(torchrun, hosts, recipe, run)
    begun = time.monotonic()
    while len(steps(run)) < 2 and all(one.poll() is None for one in started):
        assert time.monotonic() - begun < 200
        time.sleep(0.02)
    for pid in inside(hosts[1]):
        os.kill(pid, signal.SIGKILL)
    said = [one.communicate(timeout=120)[0] for one in started]
    assert all(one.returncode for one in started), said
    assert len(steps(run)) < UPDATES, "it was lost on the way"
    assert not inside(hosts[0]), "nobody is left behind"

    started = start(ourselves, hosts, recipe, run)
    said = [one.communicate(timeout=240)[0] for one in started]
    assert [one.returncode for one in started] == [0, 0], "\n".join(said)
    assert "going on after update" in said[0] + said[1]
    found, wanted = steps(run), steps(tmp_path / "reference")
    assert [step for step, _ in found] == list(range(1, UPDATES + 1))
    assert [loss for _, loss in found] == pytest.approx([loss for _, loss in wanted], abs=1e-5)
