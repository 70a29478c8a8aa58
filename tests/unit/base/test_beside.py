"""Work in a thread of its own."""

import os
import threading
import time

import pytest
import torch

from fulltune.base.beside import Beside


def threads() -> int:
    """Of the process, those of libraries too."""
    return len(os.listdir("/proc/self/task"))


def test_it_begins_at_once_and_tells_what_was_found() -> None:
    going = threading.Event()
    work = Beside("some-work", lambda a, b: going.wait(20) and (threading.current_thread().name, a + b), 1, 2)
    assert not work.found.done()
    going.set()
    work.join()
    name, found = work.found.result()  # type: ignore[misc]
    assert (name.startswith("some-work"), found) == (True, 3)


def test_what_it_raises_is_raised_where_the_result_is_asked_for() -> None:
    work = Beside("some-work", lambda: 1 / 0)
    work.join()
    with pytest.raises(ZeroDivisionError):
        work.found.result()


@pytest.mark.skipif(not os.path.isdir("/proc/self/task"), reason="threads are counted in /proc")
def test_it_leaves_no_thread_nor_openmps_threads() -> None:
    """Threads of OpenMP are more than cores as long as another thread has some, and then they sleep while they wait."""
    before_torch = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        large = torch.zeros(1 << 22)
        large.clone()
        before, inside = threads(), []
        work = Beside("some-work", lambda: (large.clone(), inside.append(threads())))
        work.join()
        assert inside[0] >= before + 2, "it has one besides itself, or this test shows nothing"
        until = time.monotonic() + 10
        while threads() > before and time.monotonic() < until:
            time.sleep(0.01)
        assert threads() == before
    finally:
        torch.set_num_threads(before_torch)
