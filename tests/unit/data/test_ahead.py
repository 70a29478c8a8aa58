"""Batches that a thread makes while an update runs: the same ones, used where they are asked for and nowhere else."""

import threading
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from fulltune.base.records import Progress
from fulltune.batch import Batch, Reference
from fulltune.data.feed import Feed, Portion
from fulltune.data.lay import Budget
from fulltune.data.order import Order
from tests.contract.ground import Ground
from tests.contract.updates import BATCH, Updates
from tests.tiny import model

BUDGET = Budget(2, 4096, "padded")


class Watched:
    """A feed of twelve examples, and which thread made what of it; examples of `broken` cannot be made."""

    def __init__(self, folder: Path, *, end: int | None = 12) -> None:
        self.by: dict[int, str] = {}
        self.broken: set[int] = set()
        store = Ground(folder, model("llama"), count=12).store
        self.feed = Feed(store, Order([12], shares=None, seed=0), Portion(4, None), end=end, refer=self._refer)

    def _refer(self, members: Sequence[int], counts: Sequence[int], weights: Any) -> Reference:
        self.by |= dict.fromkeys(members, threading.current_thread().name.partition("_")[0])
        if self.broken & set(members):
            raise OSError("torn")
        none = torch.zeros(0, dtype=torch.long)
        return Reference(none, none[:, None], none[:, None].float(), none.float(), 0.0)

    def made(self, position: int, budget: Budget = BUDGET) -> list[Batch]:
        return list(self.feed.batches(self.feed.take(position), budget))


def same(one: Sequence[Batch], other: Sequence[Batch]) -> bool:
    columns = ("ids", "labels", "weights", "taught")
    return len(one) == len(other) and all(
        a.examples == b.examples and all(torch.equal(getattr(a, name), getattr(b, name)) for name in columns)
        for a, b in zip(one, other, strict=True)
    )


def test_batches_made_ahead_are_those_that_are_made_when_they_are_asked(tmp_path: Path) -> None:
    plain, watched = Watched(tmp_path / "plain"), Watched(tmp_path / "watched")
    threads = threading.active_count()
    for position in (0, 4, 8):
        assert same(watched.made(position), plain.made(position))
        members = plain.feed.take(position)
        assert {watched.by[member] for member in members} == {"MainThread" if position == 0 else "next-batches"}
        with watched.feed.ahead(position + 4, BUDGET):
            pass
        assert threading.active_count() == threads, "the thread ends with the update"
    assert watched.made(12) == [], "the data is used up"


def test_batches_of_other_examples_or_of_another_budget_are_made_anew(tmp_path: Path) -> None:
    """After a rollback, or where memory ran out."""
    watched = Watched(tmp_path)
    for position, budget in ((8, BUDGET), (4, replace(BUDGET, examples=1))):
        with watched.feed.ahead(4, BUDGET):
            pass
        watched.by.clear()
        assert sum(len(batch.examples) for batch in watched.made(position, budget)) == 4
        assert set(watched.by.values()) == {"MainThread"}
    with watched.feed.ahead(4, BUDGET):
        pass
    watched.made(8)
    watched.by.clear()
    watched.made(4)
    assert set(watched.by.values()) == {"MainThread"}, "what was not wanted is not kept"


def test_an_error_comes_where_the_batches_are_asked_for(tmp_path: Path) -> None:
    watched = Watched(tmp_path)
    watched.broken = set(watched.feed.take(4))
    with watched.feed.ahead(4, BUDGET):
        pass
    assert {watched.by[member] for member in watched.broken if member in watched.by} == {"next-batches"}
    assert len(watched.made(0)) == 2, "another update is none the worse"
    with watched.feed.ahead(4, BUDGET):
        pass
    with pytest.raises(OSError, match="torn"):
        watched.made(4)
    with watched.feed.ahead(4, BUDGET):
        pass
    watched.broken.clear()
    assert len(watched.made(4)) == 2, "what came to pass beside an update is tried once more"


def test_every_update_after_the_first_finds_its_batches(tmp_path: Path) -> None:
    updates = Updates(tmp_path, count=16)
    asked: list[str] = []
    real = Feed._one_by_one

    class Told(Feed):
        def _one_by_one(self, members: Sequence[int], budget: Budget) -> Any:
            asked.append(threading.current_thread().name.partition("_")[0])
            return real(self, members, budget)

    updates.feed.__class__ = Told
    progress = updates.make(3)
    assert asked == ["MainThread", *["next-batches"] * 3]
    assert progress.position == 3 * BATCH
    again = replace(Progress(), position=BATCH)
    updates.update(again)
    assert asked[4:] == ["MainThread", "next-batches"], "another position"
