"""A prepared split made by hand, for tests that need examples and no rows."""

from pathlib import Path

import numpy as np

from fulltune.base.records import SplitFacts
from fulltune.data.render import Encoded
from fulltune.data.store import INDEX, ShardWriter, SplitWriter, facts_of


class StoreWriter:
    """Appends examples to a split whose only shard lies in its own folder."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._index, self._taught = folder, [], []

    def __enter__(self) -> "StoreWriter":
        self._shard = ShardWriter(self._folder / "shard").__enter__()
        return self

    def append(self, encoded: Encoded, *, source: int, line: int, file: int = 0) -> None:
        start = self._shard.append(encoded)
        self._index.append((0, start, len(encoded.ids), source, file, line))
        self._taught.append(encoded.supervised)

    def __exit__(self, *_: object) -> None:
        self._shard.__exit__(None, None, None)
        made = self._folder / "split"
        with SplitWriter(made, [("../shard", self._shard.tokens)]) as writer:
            writer.append(np.array(self._index, INDEX))
        for path in made.iterdir():
            text = path.read_bytes()
            (self._folder / path.name).write_bytes(text.replace(b"../shard", b"shard"))

    @property
    def facts(self) -> SplitFacts:
        index = np.array(self._index, INDEX)
        return facts_of(index["length"], np.array(self._taught, np.int32), index["source"])
