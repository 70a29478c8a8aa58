"""fulltune's side: a run, and which examples each of its updates took."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fulltune
from fulltune.base.files import read_record
from fulltune.base.records import DataFacts
from fulltune.data.mixing import mixture
from fulltune.data.store import Store
from fulltune.material import stores
from fulltune.recipe.load import load_recipe
from fulltune.training.journal import read
from tests import tiny
from tests.parity.plain import Example

BATCH = 8
CUTS = [(parts, layout) for parts in (1, 4) for layout in ("padded", "packed")]
"""Micro-batches of an update, and how examples lie in them."""


@dataclass(frozen=True)
class Told:
    """What a run of fulltune says of itself."""

    folder: Path
    steps: list[dict[str, Any]]
    updates: list[list[Example]]
    """The examples of each update, in order."""


def run(folder: Path, model: Path, data: Path, cut: tuple[int, str], *, updates: int, **optim: Any) -> Told:
    """So many updates of eight examples in float32, each cut into micro-batches."""
    parts, layout = cut
    recipe = tiny.recipe(
        model,
        data,
        data={"heldout": 0, "max_length": 256},
        train={"steps": updates, "batch_examples": BATCH, "micro_examples": BATCH // parts, "layout": layout},
        optim=optim,
        evaluate={"samples": 0},
    )
    fulltune.train(recipe, out=folder)
    steps = list(read(folder / "journal.jsonl", "step"))
    return Told(folder, steps, _taken(folder, steps))


def _taken(folder: Path, steps: list[dict[str, Any]]) -> list[list[Example]]:
    """As prepared, in the order of the run; the number of tokens of every update is the one in the journal."""
    facts = read_record(folder / "data.json", DataFacts)
    recipe, store = load_recipe(folder / "recipe.yaml"), stores(folder / "data", facts)["train"]
    order = mixture(recipe.data, facts.splits["train"]).order(recipe.train.seed)
    members = [order.at(BATCH * number, BATCH * (number + 1)) for number in range(len(steps))]
    taken = [[_example(store, int(i)) for i in each] for each in members]
    assert [step["tokens"] for step in steps] == [sum(len(ids) for ids, _ in each) for each in taken]
    return taken


def _example(store: Store, index: int) -> Example:
    """Labels as others have them, one place to the right of ours: they say what a token is, not what it predicts."""
    encoded = store[index]
    assert encoded.labels[-1] == -100, "nothing follows the last token"
    ids, labels = encoded.ids.tolist(), [-100, *encoded.labels[:-1].tolist()]
    assert all(label in (-100, token) for token, label in zip(ids, labels, strict=True))
    return ids, labels
