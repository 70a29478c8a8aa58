"""One fork server and one tiny run for all tests here."""

from collections.abc import Iterator

import pytest

from tests.faults.forkserver import ForkServer
from tests.faults.ground import Ground


@pytest.fixture(scope="session")
def server() -> Iterator[ForkServer]:
    """The process that forks all others."""
    with ForkServer() as started:
        yield started


@pytest.fixture(scope="session")
def ground(server: ForkServer, tmp_path_factory: pytest.TempPathFactory) -> Ground:
    """Twelve updates, prepared, and their undisturbed end."""
    return Ground.make(tmp_path_factory.mktemp("ground"), server)
