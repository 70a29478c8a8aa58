"""How many processors this process may use."""

import os


def cores() -> int:
    """Those that it is allowed, which in a container may be fewer than the machine has."""
    return len(os.sched_getaffinity(0))
