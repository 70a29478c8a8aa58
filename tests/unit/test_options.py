"""What is said of several machines on the command line."""

import json
from pathlib import Path

import pytest

from fulltune.base.errors import RecipeError
from fulltune.engine.agent import Hosts
from fulltune.gathering import train_here
from fulltune.options import machines
from tests import tiny

ALONE = {"--dry-run": False, "--fresh": False}


def test_one_machine_needs_no_meeting_and_several_do() -> None:
    assert machines(1, None, None, alone=ALONE) is None
    hosts = machines(2, 1, "first:29500", alone=ALONE)
    assert hosts is not None
    told = hosts.config()
    assert (told["min_nodes"], told["max_nodes"], told["rdzv_endpoint"]) == (2, 2, "first:29500")
    assert (told["rdzv_backend"], told["rdzv_configs"]) == ("static", {"rank": 1})
    unnumbered = machines(2, None, "first:29500", alone=ALONE)
    assert unnumbered is not None
    assert unnumbered.config()["rdzv_backend"] == "c10d"


def test_machines_that_meet_are_not_started_anew_by_one_of_them(tmp_path: Path, llama: Path, data: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(json.dumps(tiny.recipe(llama, data)))
    with pytest.raises(RecipeError, match="cannot start those of the others anew"):
        train_here(path, Hosts(2, "first:29500", 0), ["engine.restarts=2"], out=tmp_path / "run")


@pytest.mark.parametrize(
    ("given", "where"),
    [
        ((1, 0, None, ALONE), "--node-rank"),
        ((1, None, "first:29500", ALONE), "--rendezvous"),
        ((2, 0, None, ALONE), "--rendezvous"),
        ((2, 0, "first", ALONE), "--rendezvous"),
        ((2, 2, "first:29500", ALONE), "--node-rank"),
        ((2, 0, "first:29500", {"--dry-run": True, "--fresh": False}), "--dry-run"),
        ((2, 0, "first:29500", {"--dry-run": False, "--fresh": True}), "--fresh"),
    ],
)
def test_what_does_not_go_together_is_refused(given: tuple[object, ...], where: str) -> None:
    nodes, number, rendezvous, alone = given
    with pytest.raises(RecipeError) as refused:
        machines(nodes, number, rendezvous, alone=alone)  # type: ignore[arg-type]
    assert refused.value.faults[0].where == where
