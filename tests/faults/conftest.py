"""One fork server and one tiny run for all tests here."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import tiny
from tests.faults.forkserver import ForkServer
from tests.faults.ground import Ground


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What asks every boundary takes minutes, and more on a busy machine."""
    for item in items:
        if item.path.parent == Path(__file__).parent:
            item.add_marker(pytest.mark.timeout(1800))


@pytest.fixture(scope="session")
def server() -> Iterator[ForkServer]:
    """The process that forks all others."""
    with ForkServer() as started:
        yield started


@pytest.fixture(scope="session")
def ground(server: ForkServer, tmp_path_factory: pytest.TempPathFactory) -> Ground:
    """Twelve updates, prepared, and their undisturbed end."""
    return Ground.make(tmp_path_factory.mktemp("ground"), server)


@pytest.fixture(scope="session")
def short(server: ForkServer, tmp_path_factory: pytest.TempPathFactory) -> Ground:
    """Four updates of one layer, two checkpoints, of which one is kept: every kind of write, and few of each.

    Without samples, which write nothing of their own.
    """
    folder = tmp_path_factory.mktemp("short")
    tiny.folder(folder / "base", "gpt2", n_layer=1, attn_pdrop=0.1, embd_pdrop=0.1, resid_pdrop=0.1)
    changes = {"train": {"steps": 4}, "evaluate": {"every": 2, "samples": 0}, "checkpoint": {"every": 2, "keep": 1}}
    return Ground.make(folder, server, **changes)
