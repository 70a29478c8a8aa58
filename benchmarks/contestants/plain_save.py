"""What a training script does to save: the optimizer by torch, which pickles it, and the model by transformers."""

import os
from pathlib import Path
from typing import Any

import torch


def plain_save(model: Any, optimizer: torch.optim.Optimizer, folder: Path, *, flushed: bool) -> None:
    """Into a new folder. `flushed`: return when it is on the disk."""
    folder.mkdir()
    torch.save(optimizer.state_dict(), folder / "optimizer.pt")
    model.save_pretrained(folder)
    if flushed:
        for path in (*folder.iterdir(), folder):
            handle = os.open(path, os.O_RDONLY)
            try:
                os.fsync(handle)
            finally:
                os.close(handle)
