"""Which process this is, among which others, as a launcher says it."""

import os
from dataclasses import dataclass

FOLLOWED = "FULLTUNE_FOLLOWED"
"""Set for processes whose journal is shown by the one that started them."""


@dataclass(frozen=True, slots=True)
class Place:
    """Which of how many processes this is, over all machines and on this one."""

    rank: int = 0
    size: int = 1
    local: int = 0
    here: int = 1
    """Processes on this machine."""
    launched: bool = False
    """Whether a launcher started it."""


def place() -> Place:
    """As the launcher says: torchrun and accelerate by RANK, srun by SLURM_PROCID. Alone without one."""
    said = os.environ
    if "RANK" in said and "WORLD_SIZE" in said:
        size, local = int(said["WORLD_SIZE"]), int(said.get("LOCAL_RANK", "0"))
        return Place(int(said["RANK"]), size, local, int(said.get("LOCAL_WORLD_SIZE", size)), launched=True)
    if "SLURM_PROCID" in said and int(said.get("SLURM_STEP_NUM_TASKS", "1")) > 1:
        size = int(said["SLURM_STEP_NUM_TASKS"])
        here = size // int(said.get("SLURM_STEP_NUM_NODES", "1"))
        return Place(int(said["SLURM_PROCID"]), size, int(said["SLURM_LOCALID"]), here, launched=True)
    return Place()
