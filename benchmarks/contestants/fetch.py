"""Examples at random positions of a prepared run folder, one at a time, as training fetches them."""

import json
import time
from pathlib import Path

import numpy as np

from benchmarks.contestants.task import Task

_FETCHES = 20_000
_SEED = 0


def main() -> None:
    """Microseconds to open the store and for each fetch, as JSON; `out` of the task is the run folder."""
    task = Task.given()
    from fulltune.material import stores
    from fulltune.runs import open_run

    run = open_run(task.out, {})
    facts = run.data_facts()
    begun = time.perf_counter_ns()
    store = stores(run.data, facts)["train"]
    opened = time.perf_counter_ns() - begun
    places = np.random.default_rng(_SEED).integers(len(store), size=_FETCHES).tolist()
    for place in places:  # once unmeasured: whether a page is in memory is the machine's doing
        int(store[place].ids.sum())
    taken = []
    for place in places:
        begun = time.perf_counter_ns()
        example = store[place]
        int(example.ids.sum() + example.labels.sum())  # a map reads nothing until it is looked at
        taken.append(time.perf_counter_ns() - begun)
    median, slow = np.quantile(taken, [0.5, 0.99]) / 1000
    found = {"open": opened / 1000, "median": float(median), "p99": float(slow), "fetches": _FETCHES}
    Path(task.answer).write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    main()
