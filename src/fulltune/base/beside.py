"""Work in a thread beside the one that computes."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Generic, TypeVar

T = TypeVar("T")


class Beside(Generic[T]):
    """An act in a thread of its own, which begins at once and ends with it.

    It must end: a thread that has copied a large tensor once has threads of OpenMP for as long as it lives, and where
    there are more of these than cores OpenMP lets all of them sleep whenever they wait for each other. With two cores
    updates took 1.5 times as long.
    """

    def __init__(self, name: str, act: Callable[..., T], *args: Any) -> None:
        self._pool = ThreadPoolExecutor(1, name)
        self.found: Future[T] = self._pool.submit(act, *args)
        self._pool.shutdown(wait=False)

    def join(self) -> None:
        """Wait until the thread has ended; what the act raised stands in `found`."""
        self._pool.shutdown()
