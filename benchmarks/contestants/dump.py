"""Rows as they came out of a contestant, in flat arrays: enough to compare two of them token by token."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

IGNORE = -100
_NAMES = {"ids": np.int32, "taught": np.bool_, "lengths": np.int64}

Flat = NDArray[Any]


def write(folder: str, ids: Flat, taught: Flat, lengths: Flat) -> None:
    """`taught[i]` says whether token i is one that the model learns to produce."""
    target = Path(folder)
    target.mkdir(parents=True)
    for name, values in {"ids": ids, "taught": taught, "lengths": lengths}.items():
        np.save(target / f"{name}.npy", np.asarray(values, _NAMES[name]))


def read(folder: Path) -> tuple[Flat, Flat, Flat]:
    """Ids, what is taught, lengths."""
    ids, taught, lengths = (np.load(folder / f"{name}.npy") for name in _NAMES)
    return ids, taught, lengths
