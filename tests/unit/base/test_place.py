"""Which process this is: variables that no launcher set make one of several of nobody."""

import pytest

from fulltune.base.place import Place, place


def test_a_batch_script_of_slurm_is_no_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its variables stand in the script itself too, which is one process."""
    monkeypatch.setenv("SLURM_PROCID", "0")
    monkeypatch.setenv("SLURM_NTASKS", "8")
    assert place() == Place()


@pytest.mark.parametrize("name", ["RANK", "WORLD_SIZE", "LOCAL_RANK"])
def test_one_variable_alone_is_no_launcher(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv(name, "2")
    assert place() == Place()
