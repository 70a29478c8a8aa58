"""What pulls remember: begun with, saved, brought back, and put in the place of the weights."""

import hashlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

from fulltune.base.errors import CheckpointError
from fulltune.base.log import LOGGER
from fulltune.engine.contract import Engine, Extra
from fulltune.engine.crew import Crew
from fulltune.optim.pulls import SEPARATOR, Pull
from fulltune.training import fisher

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Pulling:
    """The pulls of a run on its engine, which calls them at each update. All processes call every method."""

    pulls: Mapping[str, Pull]
    engine: Engine
    crew: Crew
    files: Mapping[str, Path]
    """By pull: Fisher information that is there already."""
    file: Path
    """Where that of this run is written."""
    estimate: fisher.Estimate
    seed: int = 0
    """Of what pulls draw."""

    @property
    def estimates(self) -> bool:
        """Whether Fisher information is estimated before the first update, and written into `file`."""
        return any(map(self._is_estimated, self.pulls))

    def _is_estimated(self, name: str) -> bool:
        pull = self.pulls[name]
        return pull.needs_fisher and (name not in self.files or pull.online > 0)

    def begin(self) -> None:
        """Before the first update: remember the weights, and what they are worth."""
        self._remember()
        for name, pull in self.pulls.items():
            if pull.needs_fisher:
                self._take_fisher(name, pull)

    def remembered(self) -> Extra:
        """What a checkpoint has to hold, `weight/pull.what`."""
        return {_key(name, key): value for name, pull in self.pulls.items() for key, value in pull.kept.items()}

    def recall(self, extra: Extra) -> None:
        """Go on with what a checkpoint holds. CheckpointError if it holds nothing of a pull."""
        self._remember()  # the places, each on its device
        for name, pull in self.pulls.items():
            for key, place in pull.kept.items():
                if (saved := extra.get(_key(name, key))) is None:
                    raise CheckpointError(
                        f"the checkpoint does not hold what {name} remembers of {key.rpartition(SEPARATOR)[0]}",
                        where="optim.pulls",
                        mend=f"train it without {name}, or begin anew: --fresh makes a new folder",
                    )
                place.copy_(saved)

    @contextmanager
    def mixing(self, position: int) -> Iterator[None]:
        """In here weights are what pulls make of them for the update that begins at this position."""
        mixing = [pull for pull in self.pulls.values() if pull.mixes]
        if not mixing:
            yield
            return

        def enter(name: str, shard: Tensor) -> None:
            for number, pull in enumerate(mixing):
                pull.enter(name, shard, partial(_drawn, f"{self.seed}/{position}/{name}/{number}"))

        def leave(name: str, shard: Tensor) -> None:
            for pull in mixing:
                pull.leave(name, shard)

        try:
            self.engine.visit(enter)
            yield
        finally:
            self.engine.visit(leave)

    def instead(self, act: Callable[[], T]) -> T:
        """`act` while averages, if a pull has any that stand for weights, are in their place."""
        # Asked of all: a process that holds no part of an average takes part in the exchange of weights all the same.
        if not self.crew.any(any(self._stand_in(name) is not None for name in self._weights())):
            return act()
        with self._borrowed():
            self._put(self._stand_in)
            return act()

    def _stand_in(self, name: str) -> Tensor | None:
        """Of the first pull that has one."""
        return next((found for pull in self.pulls.values() if (found := pull.instead(name)) is not None), None)

    def _weights(self) -> set[str]:
        """Of which anything is remembered here."""
        return {key.rpartition(SEPARATOR)[0] for pull in self.pulls.values() for key in pull.kept}

    def _remember(self) -> None:
        def begin(name: str, shard: Tensor) -> None:
            for pull in self.pulls.values():
                pull.begin(name, shard)

        if self.pulls:
            self.engine.visit(begin)

    @contextmanager
    def _borrowed(self) -> Iterator[None]:
        """Weights may be overwritten in here; they are what they were behind it."""
        aside: dict[str, Tensor] = {}
        self.engine.visit(lambda name, shard: aside.update({name: shard.clone()}))
        try:
            yield
        finally:
            self._put(aside.get)

    def _put(self, found: Callable[[str], Tensor | None]) -> None:
        """Other numbers in the place of weights."""
        torch.manual_seed(0)  # bfloat16 weights are rounded by it: the same way whenever these numbers are put here

        def put(name: str, shard: Tensor) -> None:
            if (value := found(name)) is not None:
                shard.copy_(value)

        self.engine.visit(put)

    def _take_fisher(self, name: str, pull: Pull) -> None:
        """From its file, or estimated and written, and read again: what comes of it is the same in another run.

        It goes through the places of the weights, since an engine knows how to gather and to divide those.
        """
        estimated, earlier = self._is_estimated(name), self.files.get(name)
        if estimated:
            LOGGER.info(f"{name}: estimating Fisher information from up to {pull.examples} examples of data.retention")
            found = dict(self.estimate(pull.examples))
            for weight, value in {} if earlier is None else self._read_fisher(earlier).items():
                found[weight] = pull.online * value + found.get(weight, torch.zeros_like(value))
            self._write_fisher(found)
        for weight, value in self._read_fisher(self.file if estimated else self.files[name]).items():
            pull.kept[f"{weight}{SEPARATOR}fisher"].copy_(value)

    def _write_fisher(self, found: Mapping[str, Tensor]) -> None:
        nothing = torch.zeros(())
        with self._borrowed():
            self._put(lambda weight: found.get(weight, nothing))
            # In here: a whole weight may be no copy.
            self.crew.told(partial(fisher.write, self.file, dict(self.engine.full_weights())))

    def _read_fisher(self, file: Path) -> dict[str, Tensor]:
        """What of it belongs to the shards of this process."""
        found: dict[str, Tensor] = {}
        with self._borrowed():
            self.engine.fill(fisher.reader(file))
            self.engine.visit(lambda weight, shard: found.update({weight: shard.clone()}))
        return found


def _drawn(seed: str, like: Tensor) -> Tensor:
    """The same on every process."""
    generator = torch.Generator(like.device)
    generator.manual_seed(int.from_bytes(hashlib.sha256(seed.encode()).digest()[:6], "little"))
    return torch.rand(like.shape, generator=generator, device=like.device)


def _key(pull: str, kept: str) -> str:
    """In a checkpoint: `weight/what` of a pull as `weight/pull.what`."""
    weight, _, what = kept.rpartition(SEPARATOR)
    return f"{weight}{SEPARATOR}{pull}.{what}"
