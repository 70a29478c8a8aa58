"""A ground on which updates are made one after the other, and the trouble that can be brought upon it."""

import weakref
from collections.abc import Callable, Collection
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fulltune.base.records import Progress
from fulltune.data.feed import Feed, Portion
from fulltune.data.lay import Budget
from fulltune.data.order import Order
from fulltune.engine.crew import Alone
from fulltune.training.acts import Saving
from fulltune.training.checkpoint import Belonging, Checkpoints
from fulltune.training.journal import Journal, read
from fulltune.training.pulling import Pulling
from fulltune.training.spikes import Spikes
from fulltune.training.updating import Updating
from tests import tiny
from tests.contract.ground import Ground

BATCH = 4
NO_ROOM = "[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory: you tried to allocate 64"


class Updates:
    """Updates of four examples each, in the store's shuffled order; policies are given by name."""

    def __init__(
        self,
        folder: Path,
        *,
        count: int = 32,
        micro: int = BATCH,
        tokens: int = 10_000,
        model: Any = None,
        ground: Any = None,
        **policies: Any,
    ) -> None:
        made = tiny.model("llama") if model is None else model
        self.ground = Ground(folder / "ground", made, count=count, micro=micro, **(ground or {}))
        self.journal = Journal(folder / "journal.jsonl")
        weakref.finalize(self, self.journal.__exit__, None, None, None)
        self.checkpoints = Checkpoints(folder / "checkpoints", keep=9, belonging=Belonging({}, {}, 1))
        pulling = Pulling(
            pulls={}, engine=self.ground.engine, crew=Alone(), files={}, file=folder / "none", estimate=lambda _: {}
        )
        self.saving = Saving(
            checkpoints=self.checkpoints, engine=self.ground.engine, pulling=pulling, journal=self.journal
        )
        self.feed = Feed(self.ground.store, Order([count], shares=None, seed=0), Portion(BATCH, None), end=None)
        values: dict[str, Any] = {
            "on_nonfinite": "skip",
            "max_skipped": 3,
            "spikes": Spikes(policy="warn", window=64, limit=10.0),
            "max_rollbacks": 1,
            "back": self.saving.back,
            "stopped": lambda: False,
            "mixing": pulling.mixing,
        }
        self.update = Updating(
            feed=self.feed,
            budget=Budget(micro, tokens, "padded"),
            engine=self.ground.engine,
            objective=self.ground.objective,
            rates=lambda update: [1e-3, 1e-3],
            seed=0,
            journal=self.journal,
            **{**values, **policies},
        )

    def make(self, count: int, progress: Progress | None = None) -> Progress:
        """So many updates, one after the other."""
        progress = Progress() if progress is None else progress
        for _ in range(count):
            progress = self.update(progress)
        return progress

    def save(self, progress: Progress) -> None:
        self.checkpoints.save(self.ground.engine.capture({}), progress, journal=0)
        self.checkpoints.wait()

    def lines(self, kind: str) -> list[dict[str, Any]]:
        return list(read(self.journal.path, kind))

    def losses(self) -> list[float]:
        return [line["loss"] for line in self.lines("step")]

    def state(self) -> dict[str, Tensor]:
        """Weights and moments, to the bit."""
        optimizer = self.ground.engine._optimizer
        names = {parameter: name for name, parameter in self.ground.model.named_parameters()}
        values = {name: parameter.detach().clone() for parameter, name in names.items()}
        for parameter, entries in optimizer.state.items():
            values.update({f"{names[parameter]}/{key}": value.clone() for key, value in entries.items()})
        return values

    def members(self, update: int) -> list[int]:
        """The examples of an update, counted from 0."""
        return self.feed.take(update * BATCH)

    def scale(self, examples: Collection[int], factor: float) -> None:
        """While training, multiply the loss of micro-batches that hold one of these examples."""

        def hook(module: Any, inputs: Any, sums: dict[str, Tensor]) -> dict[str, Tensor]:
            hit = module.training and set(inputs[0].examples) & set(examples)
            return {term: total * factor for term, total in sums.items()} if hit else sums

        self.ground.objective.register_forward_hook(hook)

    def fill(self, fits: Callable[[Any], bool], *, where: str = "forward") -> None:
        """From now on a batch that does not fit finds no memory: a real error, raised as the allocator raises it."""

        def refuse(*_: Any) -> None:
            raise RuntimeError(NO_ROOM)

        def forward(module: Any, inputs: Any) -> None:
            if not fits(inputs[0]):
                refuse()

        def backward(module: Any, inputs: Any, sums: dict[str, Tensor]) -> None:
            if not fits(inputs[0]) and torch.is_grad_enabled():
                sums["next_token"].register_hook(partial(refuse))

        objective = self.ground.objective
        if where == "forward":
            objective.register_forward_pre_hook(forward)
        else:
            objective.register_forward_hook(backward)


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    """Whether two states are equal to the bit."""
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)
