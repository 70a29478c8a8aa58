"""How often an update waits for the device: for each number that Python asks of a tensor it computed."""

import traceback
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from tests import tiny
from tests.contract.updates import BATCH, Updates


class Asked(TorchDispatchMode):
    """Counts the modules of fulltune that ask, or through which transformers does."""

    def __init__(self) -> None:
        super().__init__()
        self.by: Counter[str] = Counter()

    def note(self) -> None:
        frames = [Path(frame.filename) for frame in traceback.extract_stack()]
        own = [path for path in frames if "fulltune" in path.parts]
        self.by[next((path.name for path in frames[::-1] if path.parent.name == "transformers"), own[-1].name)] += 1

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func._schema.name in ("aten::_local_scalar_dense", "aten::nonzero", "aten::masked_select", "aten::_unique2"):
            self.note()
        return func(*args, **(kwargs or {}))


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Asked:
    """`tolist` waits for a device as `item` does, but reads a tensor on the host without an operation."""
    seen, real = Asked(), Tensor.tolist

    def tolist(tensor: Tensor) -> Any:
        seen.note()
        return real(tensor)

    monkeypatch.setattr(Tensor, "tolist", tolist)
    return seen


@pytest.mark.parametrize("settings", [{}, {"kl": 0.1}, {"precision": "bf16-mixed"}, {"precision": "bf16-sr"}])
@pytest.mark.parametrize("micro", [BATCH, 1])
def test_an_update_waits_for_loss_and_norm_and_nothing_else(
    tmp_path: Path, asked: Asked, settings: dict[str, Any], micro: int
) -> None:
    """However many micro-batches it has. The counts and the clock are the host's own numbers.

    Transformers asks once in each forward pass whether its rows are packed.
    """
    updates = Updates(tmp_path, micro=micro, model=tiny.model("llama"), ground={"clip": 1e-3, **settings})
    progress = updates.make(1)
    asked.by.clear()
    with asked:
        updates.make(1, progress)
    of_transformers = asked.by.pop("masking_utils.py")
    assert of_transformers == BATCH // micro
    norm = "rounded.py" if settings.get("precision") == "bf16-sr" else "weights.py"
    assert asked.by == {"step.py": 2, norm: 1, "updating.py": 1}
