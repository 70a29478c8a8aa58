"""What all tests share."""

import gc
import os
import signal
from pathlib import Path

import pytest
import torch

from tests import tiny

ROOT = Path(__file__).resolve().parent.parent
SHARED = Path(os.environ.get("FULLTUNE_SHARED", ROOT.parent / "shared"))


@pytest.fixture(autouse=True, scope="session")
def _threads() -> None:
    """One: models of 32 numbers wide gain nothing from two, which wait for each other in a loop that burns both cores.

    Six updates of the embedded model took 1.5 s of one core, and 14 s where something else ran on the machine too.
    """
    torch.set_num_threads(1)


@pytest.fixture(autouse=True, scope="session")
def _libraries_are_no_garbage() -> None:
    """A run collects garbage once, which takes 0.3 s among half a million objects of torch and transformers."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True, scope="session")
def _ctrl_c() -> None:
    """Heard, as in a terminal: a shell that starts the tests in the background has it ignored, and so has a child."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def shared() -> Path:
    """Real data and models that lie beside the project; what needs them is skipped where they do not."""
    if not SHARED.is_dir():
        pytest.skip(f"there is no {SHARED.name} folder beside the project (FULLTUNE_SHARED names another)")
    return SHARED


@pytest.fixture(scope="session")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder that tests read and never change."""
    return tiny.folder(tmp_path_factory.mktemp("llama") / "model")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Forty uneven rows."""
    return tiny.jsonl(tmp_path / "rows.jsonl", tiny.rows(40))
