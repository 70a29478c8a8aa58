"""fulltune.prepare: from the JSONL file to the prepared run folder, everything in it."""

from typing import Any

import numpy as np

from benchmarks.contestants import dump
from benchmarks.contestants.task import Answer, Clock, Task, main_peak, size, versions


def recipe(task: Task) -> tuple[dict[str, Any], dict[str, str]]:
    """The recipe, and remarks on it."""
    from fulltune.recipe.data import DataSection

    data: dict[str, Any] = {
        "train": task.rows,
        "heldout": task.heldout,
        "max_length": task.max_length,
        "over_length": "truncate",  # as the others do; by default such a row is an error
        "on_bad_row": "error",
    }
    if "processes" not in DataSection.model_fields:
        return {"model": {"path": task.model}, "data": data}, {"processes": "this fulltune has no data.processes"}
    return {"model": {"path": task.model}, "data": data | {"processes": task.processes}}, {}


def main() -> None:
    """Prepare, then say what it took."""
    task = Task.given()
    import fulltune
    from fulltune import lean

    asked, remarks = recipe(task)
    lean.begin(asked, {})  # as the command does
    from fulltune import preparing
    from fulltune.model.folder import load_tokenizer, section_of

    # transformers imports hundreds of modules when a tokenizer is first loaded; imports are not what is timed.
    load_tokenizer(section_of(task.model))
    clock = Clock()
    with clock.phase("prepare"):
        facts = preparing.prepare(asked, out=task.out)
    peak = main_peak()
    if task.dump is not None:
        write_dump(task.out, task.dump)
    kept = [split for split in facts.splits.values() if split.examples]
    Answer(
        phases=clock.phases,
        cpu=clock.cpu,
        main_peak=peak,
        rows=facts.kept,
        tokens=sum(split.tokens for split in kept),
        supervised_tokens=sum(split.supervised_tokens for split in kept),
        written=size([task.out]),
        versions={"fulltune": fulltune.__version__} | versions(),
        remarks=remarks,
    ).write(task.answer)


def write_dump(run: str, folder: str) -> None:
    """Every example of every split; labels there stand where the token before the taught one stands."""
    from fulltune.material import stores
    from fulltune.runs import open_run

    opened = open_run(run, {})
    examples = [
        store[number] for store in stores(opened.data, opened.data_facts()).values() for number in range(len(store))
    ]
    dump.write(
        folder,
        np.concatenate([example.ids for example in examples]),
        np.concatenate([np.append(False, example.labels[:-1] != dump.IGNORE) for example in examples]),
        np.array([len(example.ids) for example in examples]),
    )


if __name__ == "__main__":
    main()
