"""What docs/scale gives to copy parses, and says what the command line takes."""

import shlex
import subprocess
from pathlib import Path

import pytest
from ruamel.yaml import YAML
from typer.main import get_command

from fulltune.cli import app
from tests.conftest import ROOT
from tools import make_scale

SCALE = ROOT / "docs/scale"


def test_the_table_is_what_the_formulas_say() -> None:
    assert make_scale.TARGET.read_text() == make_scale.page(), "run: make docs"
    for name, billions in (("Llama 3.1 8B", 8.03), ("Llama 3.1 70B", 70.55)):
        assert round(make_scale.MODELS[name].parameters / 1e9, 2) == billions


def test_what_is_exchanged_by_hand() -> None:
    """Of N parameters among 8: 4 bytes twice; 2 bytes twice and 4 once; 2 and 4 once. In 7 of 8 parts each."""
    model = make_scale.MODELS["Llama 3.1 8B"]
    size = model.parameters * 7 / 8
    ddp, sharded, kept = (make_scale.exchanged(way, model) for _, way in make_scale.ways(8))
    assert ddp == (8 * size, 0)
    assert sharded == (8 * size, 8 * size)
    assert kept == (6 * size, 2 * size)
    *_, (_, grid) = make_scale.ways(16)
    among = 2 * 4 * model.parameters / 8 * 1 / 2
    assert make_scale.exchanged(grid, model) == (8 * size + among, 8 * size + among)


def trained(words: list[str]) -> list[str]:
    """What stands behind `fulltune train`; it must be what that takes."""
    at = words.index("train")
    assert words[at - 1] == "fulltune"
    rest = words[at + 1 :]
    command = get_command(app).commands["train"]  # type: ignore[attr-defined]
    known = {name for parameter in command.params for name in parameter.opts}
    assert all(word in known for word in rest if word.startswith("--"))
    return rest


def test_the_batch_script_is_bash_and_starts_again_what_asks_for_it() -> None:
    script = SCALE / "slurm.sh"
    subprocess.run(["bash", "-n", str(script)], check=True)
    text = script.read_text()
    [line] = [line for line in text.splitlines() if line.startswith("srun")]
    assert trained(shlex.split(line.replace('"$recipe"', "recipe.yaml"))) == ["recipe.yaml"]
    assert "#SBATCH --signal=USR1@" in text and "-eq 75" in text and "scontrol requeue" in text


def test_what_it_does_with_exit_codes(tmp_path: Path) -> None:
    """With an srun and an scontrol that only say what they were told."""
    for code, requeued in ((75, True), (0, False), (5, False)):
        (tmp_path / "srun").write_text(f"#!/bin/bash\nexit {code}\n")
        (tmp_path / "scontrol").write_text(f'#!/bin/bash\necho "$@" > {tmp_path}/told\n')
        for name in ("srun", "scontrol"):
            (tmp_path / name).chmod(0o755)
        (tmp_path / "told").unlink(missing_ok=True)
        environment = {"PATH": f"{tmp_path}:/usr/bin:/bin", "SLURM_JOB_ID": "17"}
        done = subprocess.run(["bash", str(SCALE / "slurm.sh"), "recipe.yaml"], env=environment)
        assert done.returncode == code
        assert (tmp_path / "told").exists() == requeued
        assert not requeued or (tmp_path / "told").read_text() == "requeue 17\n"


def test_the_job_of_kubernetes() -> None:
    job = YAML(typ="safe").load(SCALE / "kubernetes.yaml")
    assert (job["apiVersion"], job["kind"]) == ("kubeflow.org/v1", "PyTorchJob")
    replicas = job["spec"]["pytorchReplicaSpecs"]
    nodes = sum(part["replicas"] for part in replicas.values())
    for part in replicas.values():
        [container] = part["template"]["spec"]["containers"]
        assert container["name"] == "pytorch", "the operator looks for this name"
        words = container["command"]
        assert words[0] == "torchrun" and f"--nnodes={nodes}" in words
        assert f"--nproc-per-node={job['spec']['nprocPerNode']}" in words
        assert container["resources"]["limits"]["nvidia.com/gpu"] == int(job["spec"]["nprocPerNode"])
        trained(words)


def test_the_task_of_skypilot(tmp_path: Path) -> None:
    task = YAML(typ="safe").load(SCALE / "skypilot.yaml")
    assert task["num_nodes"] == 2
    (tmp_path / "torchrun").write_text(f'#!/bin/bash\nprintf "%s\\n" "$@" > {tmp_path}/told\n')
    (tmp_path / "torchrun").chmod(0o755)
    variables = {
        "PATH": f"{tmp_path}:/usr/bin:/bin",
        "SKYPILOT_NUM_NODES": "2",
        "SKYPILOT_NODE_RANK": "1",
        "SKYPILOT_NUM_GPUS_PER_NODE": "8",
        "SKYPILOT_NODE_IPS": "10.0.0.1\n10.0.0.2",
    }
    subprocess.run(["bash", "-c", task["run"]], env=variables, check=True)
    words = (tmp_path / "told").read_text().splitlines()
    assert words[words.index("--master-addr") + 1] == "10.0.0.1"
    assert words[words.index("--node-rank") + 1] == "1"
    assert trained(words)[0] == "/work/recipe.yaml"


@pytest.mark.parametrize("name", ["slurm.sh", "kubernetes.yaml", "skypilot.yaml"])
def test_the_page_leads_to_it(name: str) -> None:
    assert f"({name})" in (SCALE / "README.md").read_text()
