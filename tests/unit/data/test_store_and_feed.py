"""The store on disk, and batches from it."""

from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies

from fulltune.base.errors import CheckpointError
from fulltune.base.records import IGNORE
from fulltune.data.feed import Feed, Portion, collate, once
from fulltune.data.lay import Budget
from fulltune.data.order import Order
from fulltune.data.render import Encoded
from fulltune.data.store import Store
from tests.stored import StoreWriter

PADDED, PACKED = Budget(8, 4096, "padded"), Budget(8, 4096, "packed")


def example(ids: list[int], answer: int) -> Encoded:
    """The last `answer` tokens are taught."""
    labels = [*ids[1:], IGNORE]
    labels[: len(ids) - 1 - answer] = [IGNORE] * (len(ids) - 1 - answer)
    return Encoded(
        np.array(ids, np.int32),
        np.array(labels, np.int32),
        np.array([float(label != IGNORE) for label in labels], np.float32),
    )


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    folder = tmp_path_factory.mktemp("store") / "s"
    rng = np.random.default_rng(0)
    with StoreWriter(folder) as writer:
        for n in range(20):
            ids = rng.integers(0, 50, size=int(rng.integers(3, 30))).tolist()
            writer.append(example(ids, min(n % 5 + 1, len(ids) - 1)), source=n // 15, line=n + 1)
        assert writer.facts.examples == 20
        assert writer.facts.by_source == (15, 5)
    return Store(folder, [("a.jsonl",), ("b.jsonl",)])


def test_what_was_written_is_read(store: Store) -> None:
    assert len(store) == 20
    assert store.origin(0) == "a.jsonl:1"
    assert store.origin(19) == "b.jsonl:20"
    for index in range(20):
        encoded = store[index]
        assert len(encoded.ids) == store.lengths[index]
        assert encoded.supervised == min(index % 5 + 1, len(encoded.ids) - 1)


def test_facts(tmp_path: Path) -> None:
    with StoreWriter(tmp_path / "s") as writer:
        for length in (2, 4, 6, 100):
            writer.append(example(list(range(length)), 1), source=0, line=1)
        assert writer.facts.tokens == 112
        assert writer.facts.supervised_tokens == 4
        assert writer.facts.lengths == {"min": 2, "p50": 6, "p90": 100, "p99": 100, "max": 100}
    with StoreWriter(tmp_path / "empty") as writer:
        assert writer.facts.examples == 0
    assert len(Store(tmp_path / "empty", [])) == 0


def test_a_damaged_store_is_refused(tmp_path: Path) -> None:
    with StoreWriter(tmp_path / "s") as writer:
        writer.append(example([1, 2, 3], 1), source=0, line=1)
    (tmp_path / "s/shard/labels.bin").write_bytes(b"\0\0\0\0")
    with pytest.raises(CheckpointError, match="1 of 3 tokens"):
        Store(tmp_path / "s", [("a",)])
    (tmp_path / "s/shard/labels.bin").unlink()
    with pytest.raises(CheckpointError, match="missing"):
        Store(tmp_path / "s", [("a",)])


def test_the_last_answer_is_cut_off_its_prompt(tmp_path: Path) -> None:
    ids = [1, 2, 3, 4, 5, 6, 7]
    labels = [IGNORE, 3, 4, IGNORE, IGNORE, 7, IGNORE]
    with StoreWriter(tmp_path / "s") as writer:
        encoded = Encoded(np.array(ids, np.int32), np.array(labels, np.int32), np.ones(7, np.float32))
        writer.append(encoded, source=0, line=1)
    assert Store(tmp_path / "s", [("a",)]).prompt_and_answer(0) == ([1, 2, 3, 4, 5, 6], [7])


@pytest.mark.parametrize("budget", [PADDED, PACKED])
def test_a_batch_holds_its_examples_whole(store: Store, budget: Budget) -> None:
    batch = collate(store, [3, 7, 11], budget)
    wanted = sorted(label for i in (3, 7, 11) for label in store[i].labels.tolist() if label != IGNORE)
    found = batch.labels.flatten()[batch.taught].tolist()
    assert sorted(found) == wanted
    assert batch.tokens == sum(int(store.lengths[i]) for i in (3, 7, 11))
    assert batch.supervised == len(wanted)
    assert batch.weight == len(wanted)
    assert (batch.labels != IGNORE).sum() == len(wanted)


def test_padding_comes_last_and_teaches_nothing(store: Store) -> None:
    batch = collate(store, [3, 7], PADDED)
    for row, index in enumerate((3, 7)):
        length = int(store.lengths[index])
        assert batch.ids[row, :length].tolist() == store[index].ids.tolist()
        assert (batch.labels[row, length:] == IGNORE).all()
        assert (batch.weights[row, length:] == 0).all()
    assert batch.positions is None
    assert batch.ids.shape[1] % 16 == 0


def test_packed_positions_restart_and_are_whole(store: Store) -> None:
    batch = collate(store, [3, 7, 11], PACKED)
    assert batch.positions is not None
    lengths = [int(store.lengths[i]) for i in (3, 7, 11)]
    assert batch.positions[0].tolist() == [p for length in lengths for p in range(length)]
    assert batch.positions.dtype == torch.int64


@pytest.mark.parametrize("budget", [PADDED, PACKED])
def test_an_empty_batch_teaches_nothing(store: Store, budget: Budget) -> None:
    batch = collate(store, [], budget)
    assert batch.supervised == batch.tokens == batch.weight == 0
    assert batch.ids.numel() > 0


def test_a_feed_by_examples(store: Store) -> None:
    order = Order([15, 5], shares=None, seed=0)
    feed = Feed(store, order, Portion(8, None), end=30)
    taken, position = [], 0
    while members := feed.take(position):
        taken.append(members)
        position += len(members)
    assert [len(members) for members in taken] == [8, 8, 8, 6], "updates cross the epoch; the last is short"
    assert [i for members in taken for i in members] == order.at(0, 30).tolist()
    assert feed.take(8) == taken[1], "the same whenever it is asked"


def test_a_feed_by_tokens(store: Store) -> None:
    order = Order([15, 5], shares=None, seed=0)
    feed = Feed(store, order, Portion(None, 50), end=40)
    position = 0
    while members := feed.take(position):
        tokens = int(store.lengths[members].sum())
        assert tokens <= 50 or len(members) == 1
        after = order.at(position + len(members), position + len(members) + 1)
        assert position + len(members) == 40 or tokens + int(store.lengths[after].sum()) > 50
        position += len(members)
    assert position == 40


@given(strategies.lists(strategies.integers(2, 60), min_size=1, max_size=60), strategies.integers(1, 200))
@settings(deadline=None, max_examples=40)
def test_updates_by_tokens_are_as_full_as_whole_examples_allow(lengths: list[int], tokens: int) -> None:
    """No update exceeds its tokens but one of a single example, and none has room for the next one."""
    with TemporaryDirectory() as scratch:
        with StoreWriter(Path(scratch) / "s") as writer:
            for line, length in enumerate(lengths, 1):
                writer.append(example(list(range(length)), 1), source=0, line=line)
        order, end = Order([len(lengths)], shares=None, seed=1), 3 * len(lengths)
        feed = Feed(Store(Path(scratch) / "s", [("a",)]), order, Portion(None, tokens), end=end)
        seen: list[int] = []
        while members := feed.take(len(seen)):
            held = [lengths[i] for i in members]
            assert sum(held) <= tokens or len(held) == 1
            seen += members
            assert len(seen) == end or sum(held) + lengths[order.at(len(seen), len(seen) + 1)[0]] > tokens
        assert seen == order.at(0, end).tolist(), "every example is taken, in order, none twice"


@pytest.mark.parametrize("budget", [Budget(4, 64, "packed"), Budget(99, 40, "packed"), Budget(99, 8, "packed")])
def test_packed_rows_hold_the_examples_of_an_update_token_for_token(store: Store, budget: Budget) -> None:
    """Nothing is cut, lost or moved from one example into another, whatever shares a row."""
    feed = Feed(store, Order([15, 5], shares=None, seed=3), Portion(17, None), end=20)
    members, found = feed.take(0), []
    for batch in feed.batches(members, budget):
        assert batch.positions is not None
        starts = np.flatnonzero(batch.positions[0].numpy() == 0).tolist()
        assert starts == np.cumsum([0, *batch.lengths[:-1]]).tolist(), "positions say where each one begins"
        for index, start, length in zip(batch.examples, starts, batch.lengths, strict=True):
            here = slice(start, start + length)
            for made, kept in zip((batch.ids, batch.labels, batch.weights), columns_of(store[index]), strict=True):
                assert made[0, here].tolist() == kept.tolist()
            assert int(batch.labels[0, start + length - 1]) == IGNORE, "the last token teaches none of the next"
            found.append(index)
        assert batch.ids.shape == (1, sum(batch.lengths))
    assert sorted(found) == sorted(members)


def columns_of(encoded: Encoded) -> tuple[np.ndarray, ...]:
    return encoded.ids, encoded.labels, encoded.weights


def test_an_example_longer_than_the_portion_is_taken_alone(store: Store) -> None:
    feed = Feed(store, Order([20], shares=None, seed=0), Portion(None, 2), end=20)
    assert len(feed.take(0)) == 1


def test_a_feed_without_end_goes_on(store: Store) -> None:
    feed = Feed(store, Order([20], shares=None, seed=0), Portion(8, None), end=None)
    assert len(feed.take(100_000)) == 8


def test_ranks_share_an_update(store: Store) -> None:
    order = Order([20], shares=None, seed=0)
    feeds = [Feed(store, order, Portion(10, None), end=20, rank=rank, size=3) for rank in range(3)]
    members = feeds[0].take(0)
    batches = [list(feed.batches(members, Budget(2, 99, "padded"))) for feed in feeds]
    assert len({len(b) for b in batches}) == 1
    assert sorted(i for b in batches for batch in b for i in batch.examples) == sorted(members)


def test_once_gives_every_example_once(store: Store) -> None:
    batches = list(once(store, Budget(3, 64, "padded")))
    assert sorted(i for batch in batches for i in batch.examples) == list(range(20))
