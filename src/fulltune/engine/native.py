"""The engine on torch's own layers: one device, DDP or FSDP2, by how its layout lays the model over the processes."""

import copy
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from fulltune.base.allocator import returning
from fulltune.base.formats import PrecisionPlan
from fulltune.batch import Batch
from fulltune.engine.capture import Capture, Staging
from fulltune.engine.contract import Extra, MakeOptimizer, Pull, Read, Update, Visitor
from fulltune.engine.layout import Layout
from fulltune.engine.moments import require_numbers
from fulltune.engine.pieces import FILES, STEMS, Piece, Pieces, file_of, require_same
from fulltune.engine.precision import LossScale, autocast
from fulltune.engine.rounded import weights_for
from fulltune.engine.state import SEPARATOR, flatten, restore
from fulltune.engine.weights import local

T = TypeVar("T")

_LOSS_SCALE = "loss_scale"
"""Its key among a checkpoint's numbers; those of the optimizer have a slash."""


class NativeEngine:
    """A model laid out over the processes of a run, in the number formats that the plan decided on."""

    def __init__(
        self,
        model: nn.Module,
        objective: nn.Module,
        make_optimizer: MakeOptimizer,
        layout: Layout,
        *,
        clip: float | None,
        precision: PrecisionPlan,
        pulls: Sequence[Pull] = (),
    ) -> None:
        """`objective` is the module around `model` that computes the loss; None for `clip` means no limit."""
        self.world, self._layout = layout.world, layout
        self._objective = objective.train()
        self._model = model
        self._wrapped = layout.lay(self._objective)
        self._weights = weights_for(model, make_optimizer, precision, moments_wait=layout.moments_wait)
        self._names, self._optimizer = self._weights.names, self._weights.optimizer
        self._limit = math.inf if clip is None else clip
        self._precision = precision
        self._scale = LossScale() if precision.compute == "float16" else None
        self._pulls = tuple(pulls)
        self._staging: Staging = {}
        self._captured: Capture | None = None

    @property
    def whole(self) -> bool:
        return self._layout.whole

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        with self._autocast():
            sums: dict[str, Tensor] = self._wrapped(batch.to(self.world.device))
            return sums

    def _autocast(self) -> AbstractContextManager[Any]:
        return autocast(self._precision, self.world.device)

    def micro(self, *, last: bool) -> AbstractContextManager[None]:
        self._weights.begin(last=last)
        return self._layout.exchanging(last=last)

    def backward(self, share: Tensor) -> None:
        summed = share if self._layout.divisor == 1 else share * self._layout.divisor
        scaled = summed if self._scale is None else self._scale.scaled(summed)
        scaled.backward()  # type: ignore[no-untyped-call]

    def update(self, rates: Sequence[float]) -> Update:
        self._weights.gather()
        for group, rate in zip(self._optimizer.param_groups, rates, strict=True):
            group["lr"] = rate
            if rate == 0:  # optimizers leave a parameter without a gradient alone, and its moments
                self._weights.spare(group["params"])
        if self._scale is not None:
            self._scale.unscale(self._weights.gradients())
        self._weights.pull([pull for pull in self._pulls if pull.on_gradients])
        norm = self._layout.norm(self._weights.norm())
        applied = math.isfinite(norm)
        if applied:
            self._release()
            self._weights.step(norm, self._limit, self._pulls)
        again = self._scale is not None and self._scale.settle(applied=applied)
        self.clear()
        return Update(norm, applied, again)

    def look(self, pull: Pull) -> None:
        """Show a pull the gradients of the passes since the last update, then drop them: nothing moves."""
        self._weights.gather()
        self._weights.pull((pull,))
        self.clear()

    def clear(self) -> None:
        self._weights.clear()

    @contextmanager
    def rehearsing(self) -> Iterator[None]:
        fresh = not self._optimizer.state  # where a run goes on, the moments are there already
        groups = self._optimizer.param_groups
        kept = [{key: copy.deepcopy(value) for key, value in group.items() if key != "params"} for group in groups]
        try:
            if fresh:  # none of it stays, and nothing of it is to lie where passes will want to be
                with returning() if self.world.device == "cpu" else nullcontext():
                    self._step_in_place()
            yield
        finally:
            self.clear()
            if fresh:
                self._optimizer.state.clear()
                for group, values in zip(groups, kept, strict=True):  # some optimizers count in their groups
                    parameters = group["params"]
                    group.clear()
                    group.update(params=parameters, **values)

    def _step_in_place(self) -> None:
        """An update at rate 0 by gradients of 0, since 0 times a gradient that is not finite is NaN."""
        for group in self._optimizer.param_groups:
            group["lr"] = 0.0
            self._weights.rest(group["params"])
        self._weights.step(0.0, math.inf, ())
        self.clear()

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        before = self._objective.training
        self._objective.eval()
        try:
            with torch.no_grad(), self._autocast():
                yield
        finally:
            self._objective.train(before)

    def inside(self, act: Callable[[nn.Module], T]) -> T:
        # What answers are made of grows by every token: a compiled block would be compiled for each of their lengths.
        with torch.compiler.set_stance("force_eager"):
            return self._layout.inside(act)

    @torch.no_grad()
    def visit(self, act: Visitor) -> None:
        self._release()
        self._weights.visit(act)
        self._layout.forget()

    def sum(self, value: Tensor) -> Tensor:
        return self._layout.crew.sum(value)

    def any(self, flag: bool) -> bool:
        return self._layout.crew.any(flag)

    @property
    def files(self) -> frozenset[str]:
        return FILES

    def capture(self, extra: Extra) -> Capture:
        self._release()
        self._weights.settle()
        tensors, numbers = flatten(self._optimizer, self._names)
        buffers = {name for name, _ in self._model.named_buffers()}  # a forward pass may write into them: copied now
        weights = {n: v.clone() if n in buffers else v for n, v in unique_state(self._model).items()}
        rows = {name: self._layout.piece(value) for name, value in weights.items()}
        held = {"weights": weights, "optimizer": tensors, "extra": dict(extra)}
        places = {
            "weights": rows,
            "optimizer": {key: rows[_parameter(key)] for key in tensors if self._is_like(key, tensors[key], rows)},
            "extra": {key: rows[_parameter(key)] for key in extra if self._is_like(key, extra[key], rows)},
        }
        first = self.world.rank == 0
        files, pieces = {}, {}
        for stem in STEMS if self.world.rank < self._layout.writers else ():
            name, here = file_of(stem, self.world.rank), places[stem]
            # What is not cut is the same everywhere, and the first process has it.
            files[name] = {key: local(value) for key, value in held[stem].items() if first or here.get(key)}
            pieces[name] = {key: piece for key, piece in here.items() if piece is not None}
        texts = {"optimizer.json": json.dumps(numbers | self._numbers())} if first else {}
        self._captured = Capture(files, texts, self._staging, pieces, self._layout.writers)
        return self._captured

    def _is_like(self, key: str, value: Tensor, rows: Mapping[str, Piece | None]) -> bool:
        """Whether a tensor that belongs to a weight is cut as the weight is."""
        return value.ndim > 0 and _parameter(key) in rows

    def _release(self) -> None:
        """Before weights or moments move: the last capture must have been copied."""
        if self._captured is not None:
            self._captured.wait()
            self._captured = None

    @torch.no_grad()
    def load(self, folder: Path, *, weights_only: bool = False) -> Extra:
        self._release()
        saved = Pieces(folder, "weights")
        own = unique_state(self._model)
        require_same(saved, own, folder)
        for name, value in own.items():
            local(value).copy_(self._read(saved, name, value))
        self._layout.forget()
        if not weights_only:
            numbers = json.loads((folder / "optimizer.json").read_text(encoding="utf-8"))
            self._restore_numbers(numbers)
            moments = self._read_all(folder, "optimizer", own)
            if self._precision.weights == "float32":
                require_numbers(moments, folder)
            self._weights.settle()
            restore(self._optimizer, self._names, moments, numbers, here=not self._layout.moments_wait)
        return self._read_all(folder, "extra", own)

    def _read(self, saved: Pieces, key: str, weight: Tensor) -> Tensor:
        """What of a saved tensor belongs to this process, as its weight does."""
        piece = self._layout.piece(weight) if saved.shape(key) == weight.shape else None
        return saved.read(key, piece, local(weight).shape[0] if piece else 0)

    def _read_all(self, folder: Path, stem: str, own: Mapping[str, Tensor]) -> dict[str, Tensor]:
        saved = Pieces(folder, stem)
        return {
            key: self._read(saved, key, own[_parameter(key)]) if _parameter(key) in own else saved.read(key)
            for key in saved
        }

    def _numbers(self) -> dict[str, Any]:
        """What the engine itself remembers from update to update."""
        return {} if self._scale is None else {_LOSS_SCALE: self._scale.numbers()}

    def _restore_numbers(self, numbers: dict[str, Any]) -> None:
        """Take the engine's own out of a checkpoint's numbers; the optimizer's stay."""
        if self._scale is not None:
            self._scale.restore(numbers.pop(_LOSS_SCALE))

    def fill(self, read: Read) -> None:
        self._release()
        fill(self._model, self._layout, read)
        self._layout.forget()

    def full_weights(self) -> Iterator[tuple[str, Tensor]]:
        for name, value in unique_state(self._model).items():
            whole = value.full_tensor() if isinstance(value, DTensor) else value
            if self.world.rank == 0:
                yield name, whole.detach().cpu().contiguous()


@torch.no_grad()
def fill(model: nn.Module, layout: Layout, read: Read) -> None:
    """Give a model that was laid out its weights, in each process those rows that are there."""
    for name, value in unique_state(model).items():
        here, piece = local(value), layout.piece(value)
        here.copy_(read(name, None if piece is None else slice(piece.start, piece.start + here.shape[0])))


def _parameter(key: str) -> str:
    """The weight that an entry of optimizer or extra belongs to: `parameter/entry`."""
    return key.rpartition(SEPARATOR)[0]


def unique_state(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and persistent buffers, each once: tied weights stand under the first of their names."""
    seen: set[int] = set()
    unique: dict[str, Tensor] = {}
    for name, value in model.state_dict(keep_vars=True).items():
        if id(value) not in seen:
            seen.add(id(value))
            unique[name] = value.detach()
    return unique
